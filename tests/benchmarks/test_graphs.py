"""Device times by CUDA graphs, on a device that is made up: what is captured, what is refused, what a failure leaves;
and what a case makes of it."""

import contextlib
import gc
import sys
import types
import weakref

import pytest
import torch

from benchmarks import measure as m
from benchmarks.measure import case, graphs

CUDA = torch.device("cuda", 0)


class FakeCuda:
    """Has torch.cuda's names. Work takes time on the device's clock alone; as with torch, a capture whose end fails
    stays in the allocator's books and in the generator's."""

    def __init__(self):
        self.clock, self.recording, self.sync_mode = 0.0, None, "default"
        self.stream_now = self.current = self.Stream(CUDA)
        self.invalid = self.generator_captures = False
        self.captures, self.released, self.on_streams, self.emptied, self.pools = [], [], [], 0, 0
        renew = lambda state: setattr(self, "generator_captures", state != "fresh")  # noqa: E731
        self.default_generators = [types.SimpleNamespace(clone_state=lambda: "fresh", graphsafe_set_state=renew)]
        self.c = types.SimpleNamespace(
            _cuda_endAllocateToPool=lambda index, pool: self.captures.remove(pool),
            _cuda_releasePool=lambda index, pool: self.released.append(pool),
        )

    def work(self, milliseconds):
        self.on_streams.append((self.stream_now, self.recording is not None))
        if self.recording is None:
            self.clock += milliseconds
        else:
            self.recording.append(milliseconds)

    def wait(self):
        if self.sync_mode == "error":
            raise RuntimeError("called a synchronizing CUDA operation")
        self.trip()

    def trip(self):
        """What a capture does not permit, though it waits for nothing."""
        if self.recording is not None:
            self.invalid = True
            raise RuntimeError("operation not permitted when stream is capturing. More text")

    def draw(self):
        if self.generator_captures:
            raise RuntimeError("Offset increment outside graph capture encountered unexpectedly.")

    def CUDAGraph(self):
        made = types.SimpleNamespace(work=[])
        made.replay = lambda: setattr(self, "clock", self.clock + sum(made.work))
        made.reset = lambda: self.released.append(made.pool)
        return made

    def graph_pool_handle(self):
        self.pools += 1
        return (self.pools, 0)

    @contextlib.contextmanager
    def graph(self, made, pool, stream):
        assert self.recording is None
        made.pool, self.recording, self.generator_captures = pool, made.work, True
        self.captures.append(pool)
        before, self.stream_now = self.stream_now, stream
        try:
            yield
        finally:
            self.recording = None
            if self.invalid:
                self.invalid = False
                raise RuntimeError("operation failed due to a previous error during capture")
            self.captures.remove(pool)
            self.generator_captures, self.stream_now = False, before
            if sys.exc_info()[0]:
                self.released.append(pool)  # by the graph's end

    def Stream(self, device):
        return types.SimpleNamespace(wait_stream=lambda other: None)

    def current_stream(self, device):
        return self.stream_now

    def set_stream(self, stream):
        self.stream_now = stream

    @contextlib.contextmanager
    def stream(self, stream):
        before, self.stream_now = self.stream_now, stream
        yield
        self.stream_now = before

    def Event(self, enable_timing):
        event = types.SimpleNamespace(synchronize=lambda: None)
        event.record = lambda: setattr(event, "at", self.clock)
        event.elapsed_time = lambda end: end.at - event.at
        return event

    def device(self, device):
        return contextlib.nullcontext()

    def get_sync_debug_mode(self):
        return self.sync_mode

    def set_sync_debug_mode(self, mode):
        self.sync_mode = mode

    def empty_cache(self):
        self.emptied += 1
        if self.captures:
            raise RuntimeError("a capture is under way")

    def _sleep(self, cycles):
        self.clock += 1000.0  # before the events, so it must not count

    def synchronize(self, device=None):
        pass


@pytest.fixture
def cuda(monkeypatch):
    fake = FakeCuda()
    monkeypatch.setattr(graphs, "torch", types.SimpleNamespace(cuda=fake, _C=fake.c))
    graphs._stream.cache_clear()
    yield fake
    graphs._stream.cache_clear()


@pytest.mark.parametrize(("ms", "calls"), [(0.05, 20), (3.0, 1), (0.001, graphs.CALLS_LIMIT)])
def test_a_call_takes_what_the_device_takes_however_many_a_graph_has(cuda, ms, calls):
    graph = graphs.captured(lambda: cuda.work(ms), CUDA)
    assert graph.calls == calls
    assert graph.milliseconds() == pytest.approx(ms)
    graph.free()
    assert sorted(cuda.released) == [(number + 1, 0) for number in range(cuda.pools)]
    assert cuda.emptied == cuda.pools


def test_warm_up_is_on_the_stream_of_the_capture_and_before_it(cuda):
    graphs.captured(lambda: cuda.work(1.0), CUDA)
    assert [captured for _, captured in cuda.on_streams] == [False] * graphs.WARMUP + [True]
    assert len({id(stream) for stream, _ in cuda.on_streams}) == 1
    assert cuda.on_streams[0][0] is not cuda.current


def test_results_are_let_go_so_that_a_graph_holds_no_more_than_one_call(cuda):
    alive = weakref.WeakSet()

    def run():
        assert not alive
        cuda.work(0.125)
        result = torch.ones(1)
        alive.add(result)
        return result

    assert graphs.captured(run, CUDA).calls == 8


def test_a_call_that_waits_for_the_device_is_not_captured(cuda):
    with pytest.raises(RuntimeError, match="called a synchronizing CUDA operation"):
        graphs.captured(cuda.wait, CUDA)
    assert cuda.pools == 0
    assert cuda.sync_mode == "default"


@pytest.mark.parametrize("fails_in", ["first", "second", "the call"])
def test_after_a_capture_that_failed_all_goes_on(cuda, fails_in):
    def run():
        cuda.work(0.1)
        if cuda.recording is not None and fails_in == "the call":
            raise ValueError("operation not permitted when stream is capturing")
        if cuda.recording is not None and (fails_in == "first" or len(cuda.recording) == 5):
            cuda.trip()

    with pytest.raises((RuntimeError, ValueError), match="operation not permitted when stream is capturing"):
        graphs.captured(run, CUDA)
    assert cuda.captures == []
    assert sorted(cuda.released) == [(number + 1, 0) for number in range(cuda.pools)]  # each once
    assert cuda.stream_now is cuda.current
    assert gc.isenabled()
    cuda.draw()
    cuda.empty_cache()
    assert graphs.captured(lambda: cuda.work(2.0), CUDA).milliseconds() == pytest.approx(2.0)


# ---- a real device ---------------------------------------------------------------------------------------------------


@pytest.mark.gpu
def test_a_replay_does_every_call_of_the_graph_forward_and_backward():
    count = torch.zeros(1, device="cuda")
    graph = graphs.captured(lambda: count.add_(1), torch.device("cuda"))
    before = count.item()
    assert graph.milliseconds() > 0
    assert count.item() - before == graph.calls > 1
    graph.free()
    x = torch.randn(256, 256, device="cuda", requires_grad=True)
    step = m.Alternative(lambda: (x @ x).relu(), {"x": x}).step(m.BOTH, torch.ones(256, 256, device="cuda"))
    graph = graphs.captured(step, torch.device("cuda"))
    assert graph.milliseconds() > 0
    graph.free()


@pytest.mark.gpu
@pytest.mark.parametrize("waits", [torch.cuda.synchronize, lambda: torch.ones(1, device="cuda").item()])
def test_the_device_works_on_after_a_capture_that_failed(waits):
    x = torch.randn(64, 64, device="cuda")

    def run():
        y = x @ x
        if torch.cuda.is_current_stream_capturing():
            waits()
        return y

    for _ in range(2):
        with pytest.raises(RuntimeError):
            graphs.captured(run, torch.device("cuda"))
        torch.cuda.synchronize()
        torch.randn(8, device="cuda")
        torch.testing.assert_close(x @ x, (x.double() @ x.double()).float(), rtol=1e-4, atol=1e-3)
        graph = graphs.captured(lambda: x @ x, torch.device("cuda"))
        assert 0 < graph.milliseconds() < 1
        graph.free()
    held = torch.cuda.memory_reserved()
    big = torch.empty(2**28, dtype=torch.uint8, device="cuda")
    del big
    torch.cuda.empty_cache()  # which the allocator refuses while it counts a capture
    assert torch.cuda.memory_reserved() <= held


@pytest.mark.gpu
def test_a_call_that_waits_is_named_and_not_captured():
    with pytest.raises(RuntimeError, match="synchronizing"):
        graphs.captured(lambda: torch.ones(3, device="cuda").nonzero(), torch.device("cuda"))
    assert torch.cuda.get_sync_debug_mode() == 0


# ---- a case ----------------------------------------------------------------------------------------------------------

SETTINGS = m.Settings(CUDA, torch.float32, {"tflops": 2.0, "gbytes_per_s": 100.0}, rounds=4)


@pytest.fixture
def measured(monkeypatch):
    """Measures a case on a made-up GPU: the rows by alternative, and what was done in which order. Graphs take a tenth
    of the milliseconds that an alternative's name gives, calls from Python all of them."""
    log = []

    def name_of(run):
        return run()["output"]

    def timed(run, device):
        log.append(f"{name_of(run)} eager")
        return float(name_of(run).split()[-1])

    def captured(run, device):
        name = name_of(run)
        if name.startswith("waits"):
            raise RuntimeError("called a synchronizing CUDA operation")
        replayed = lambda: log.append(name) or float(name.split()[-1]) / 10  # noqa: E731
        return types.SimpleNamespace(milliseconds=replayed, free=lambda: log.append(f"{name} freed"))

    monkeypatch.setattr(case.correctness, "synchronize", lambda device: None)
    monkeypatch.setattr(case.memory, "peak_extra_bytes", lambda run, device, warm: 2**20)
    monkeypatch.setattr(case.timing, "timed", timed)
    monkeypatch.setattr(case.graphs, "captured", captured)

    def run(which, names, settings=SETTINGS, **options):
        alternatives = {name: m.Alternative(lambda name=name: name, **options.get(name, {})) for name in names}
        prepared = m.Prepared(alternatives, {which: m.Work(10**9, 10**6)}, baseline=names[0])
        rows = m.measure_prepared(prepared, (which,), settings)
        return {row["alternative"]: row for row in rows}, log

    return run


def test_times_are_the_graphs_and_the_eager_ones_stand_beside(measured):
    rows, log = measured(m.FORWARD, ["a 2", "b 4"])
    for name, ms, ratio in (("a 2", 0.2, 1.0), ("b 4", 0.4, 2.0)):
        wanted = {"ms": ms, "lower_ms": ms, "upper_ms": ms, "ratio": ratio, "graph": True, "eager_ms": 10 * ms}
        assert rows[name].items() >= wanted.items()
        assert rows[name]["tflops"] == pytest.approx(1 / ms)
    turns = [entry for entry in log if entry in ("a 2", "b 4")]
    assert turns == ["a 2", "b 4"] * SETTINGS.rounds
    assert log[-2:] == ["a 2 freed", "b 4 freed"]


def test_what_cannot_be_captured_takes_turns_eagerly_and_says_so(measured):
    rows, log = measured(m.FORWARD, ["a 2", "waits 6"])
    wanted = {"ms": 6.0, "ratio": 30.0, "graph": False, "eager_ms": 6.0}
    assert rows["waits 6"].items() >= wanted.items()
    assert rows["waits 6"]["not_captured"] == "called a synchronizing CUDA operation"
    assert log[-1 - 2 * SETTINGS.rounds : -1] == ["a 2", "waits 6 eager"] * SETTINGS.rounds
    assert "not_captured" not in rows["a 2"]


def test_training_steps_and_what_makes_graphs_itself_are_not_captured(measured):
    rows, _ = measured(m.STEP, ["a 2"])
    assert (rows["a 2"]["graph"], rows["a 2"]["ms"]) == (False, 2.0)
    rows, _ = measured(m.FORWARD, ["a 2", "b 4"], **{"b 4": {"capture": False}})
    assert [row["graph"] for row in rows.values()] == [True, False]
    assert rows["b 4"]["not_captured"] == "it makes CUDA graphs of its own"


def test_on_a_cpu_no_graph_is_tried_and_nothing_said_of_any(measured):
    cpu = m.Settings(torch.device("cpu"), torch.float32, SETTINGS.roofs, rounds=2)
    rows, log = measured(m.FORWARD, ["a 2"], cpu)
    assert not {"graph", "eager_ms", "not_captured"} & rows["a 2"].keys()
    assert log == ["a 2 eager"] * 2
