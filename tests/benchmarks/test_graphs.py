"""Device times by CUDA graphs: what is captured, what is refused, and what a case makes of it."""

import gc
import types
from unittest import mock

import pytest
import torch

from benchmarks import measure as m
from benchmarks.measure import case, graphs

CUDA = torch.device("cuda", 0)


@pytest.fixture
def cuda(monkeypatch):
    """Stands for torch.cuda; a replay takes 0.05 ms per captured call. Yields it with the runs and their captures."""
    fake, calls = mock.MagicMock(), []
    monkeypatch.setattr(graphs, "torch", types.SimpleNamespace(cuda=fake))
    fake.graph.return_value.__exit__.return_value = False
    fake.graph.return_value.__enter__.side_effect = calls.clear
    fake.Event.return_value.elapsed_time.side_effect = lambda end: 0.05 * len(calls)
    graphs._stream.cache_clear()
    yield fake, calls
    graphs._stream.cache_clear()


def test_a_graph_has_as_many_calls_as_a_replay_needs_to_be_timed(cuda):
    fake, calls = cuda
    graph = graphs.captured(lambda: calls.append(gc.isenabled()), CUDA)
    assert graph.calls == len(calls) == 20
    assert not any(calls)
    assert gc.isenabled()
    assert graph.milliseconds() == pytest.approx(0.05)
    graph.free()
    assert fake.CUDAGraph.return_value.reset.call_count == fake.CUDAGraph.call_count == 2


def test_a_call_that_waits_for_the_device_is_not_captured(cuda):
    fake, _ = cuda
    fake.get_sync_debug_mode.return_value = "default"
    with pytest.raises(RuntimeError, match="synchronizing"):
        graphs.captured(mock.Mock(side_effect=[None, None, RuntimeError("called a synchronizing operation")]), CUDA)
    assert not fake.CUDAGraph.called
    assert [call.args for call in fake.set_sync_debug_mode.call_args_list] == [("error",), ("default",)]


@pytest.mark.gpu
def test_a_replay_does_every_call_of_the_graph_forward_and_backward():
    count = torch.zeros(1, device="cuda")
    graph = graphs.captured(lambda: count.add_(1), torch.device("cuda"))
    before = count.item()
    assert graph.milliseconds() > 0
    assert count.item() - before == graph.calls > 1
    graph.free()
    x = torch.randn(256, 256, device="cuda", requires_grad=True)
    alternative, grad = m.Alternative(lambda x: (x @ x).relu(), {"x": x}), torch.ones(256, 256, device="cuda")
    graph = graphs.captured(lambda: alternative.step(m.BOTH, grad), torch.device("cuda"))
    assert graph.milliseconds() > 0
    graph.free()


@pytest.mark.gpu
def test_a_call_that_waits_is_named_and_the_device_works_on():
    for _ in range(2):
        with pytest.raises(RuntimeError, match="synchronizing"):
            graphs.captured(lambda: torch.ones(3, device="cuda").nonzero(), torch.device("cuda"))
        assert torch.cuda.get_sync_debug_mode() == 0
        x = torch.randn(64, 64, device="cuda")
        graph = graphs.captured(lambda x=x: x @ x, torch.device("cuda"))
        assert 0 < graph.milliseconds() < 1
        graph.free()


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
    monkeypatch.setattr(case.memory, "peak_extra_bytes", lambda run, device: 2**20)
    monkeypatch.setattr(case.timing, "timed", timed)
    monkeypatch.setattr(case.graphs, "captured", captured)

    def run(which, names, settings=SETTINGS, **options):
        alternatives = {name: m.Alternative(lambda name=name: name, **options.get(name, {})) for name in names}
        prepared = m.Prepared(alternatives, baseline=names[0])
        rows = m.measure_case(m.Case("", "", "", (), lambda _: prepared, (which,)), settings)
        return {row["alternative"]: row for row in rows}, log

    return run


def test_times_are_the_graphs_and_the_eager_ones_stand_beside(measured):
    rows, log = measured(m.FORWARD, ["a 2", "b 4", "waits 6"])
    for name, ms, ratio in (("a 2", 0.2, 1.0), ("b 4", 0.4, 2.0)):
        wanted = {"ms": ms, "lower_ms": ms, "upper_ms": ms, "ratio": ratio, "graph": True, "eager_ms": 10 * ms}
        assert rows[name].items() >= wanted.items()
        assert "not_captured" not in rows[name]
    wanted = {"ms": 6.0, "ratio": 30.0, "graph": False, "eager_ms": 6.0}
    assert rows["waits 6"].items() >= wanted.items()
    assert rows["waits 6"]["not_captured"] == "called a synchronizing CUDA operation"
    turns = ["a 2", "b 4", "waits 6 eager"] * SETTINGS.rounds
    assert log[-len(turns) - 2 :] == [*turns, "a 2 freed", "b 4 freed"]


def test_training_steps_and_what_makes_graphs_itself_are_not_captured(measured):
    rows, _ = measured(m.STEP, ["a 2"])
    assert (rows["a 2"]["graph"], rows["a 2"]["ms"]) == (False, 2.0)
    rows, _ = measured(m.FORWARD, ["a 2", "b 4"], **{"b 4": {"capture": False}})
    assert [row["graph"] for row in rows.values()] == [True, False]
    assert rows["b 4"]["not_captured"] == "it makes CUDA graphs of its own"


def test_on_a_cpu_no_graph_is_tried_and_nothing_said_of_any(measured):
    rows, log = measured(m.FORWARD, ["a 2"], m.Settings(torch.device("cpu"), torch.float32, rounds=2))
    assert not {"graph", "eager_ms", "not_captured"} & rows["a 2"].keys()
    assert log == ["a 2 eager"] * 2
