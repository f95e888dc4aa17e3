"""The measuring: alternatives of known cost take turns, wrong results are not reported, memory that runs out is."""

import json
import resource
import subprocess
import time

import pytest
import torch

from benchmarks import measure as m
from benchmarks.measure import environment, memory
from msa_ops import shift_attention

CPU = torch.device("cpu")
SETTINGS = m.Settings(CPU, torch.float32, {"tflops": 2.0, "gbytes_per_s": 100.0}, rounds=5)
EXACT = torch.linspace(-1, 1, 50, dtype=torch.float64)


def sleeper(seconds, log=None):
    def run():
        time.sleep(seconds)
        if log is not None:
            log.append(seconds)
        return EXACT

    return m.Alternative(run)


def case(prepare, passes=(m.FORWARD,), **options):
    return m.Case("name", "operator", "1×1", (m.OURS,), prepare, passes, **options)


def measured(alternatives, **options):
    """The rows of the forward, by alternative."""
    rows = m.measure_case(case(lambda _: m.Prepared(alternatives, **options)), SETTINGS)
    return {row["alternative"]: row for row in rows}


# ---- time ------------------------------------------------------------------------------------------------------------


def test_alternatives_take_turns_and_their_times_are_the_medians_of_what_they_took():
    log = []
    rows = measured({m.OURS: sleeper(0.02, log), "other": sleeper(0.08, log)})
    assert log[2:12] == [0.02, 0.08] * 5  # after a first call each, which checks
    assert rows[m.OURS]["ms"] >= 20
    assert rows["other"]["ms"] >= 80
    assert rows[m.OURS]["ratio"] == 1
    assert rows["other"]["ratio"] == pytest.approx(rows["other"]["ms"] / rows[m.OURS]["ms"], rel=1e-3)
    for row in rows.values():
        assert row["lower_ms"] <= row["ms"] <= row["upper_ms"]
        assert not {"tflops", "roof_share", "flop"} & row.keys()


def test_quartiles_and_rounds_that_end_early_when_time_is_over():
    assert m.timing_of([5.0, 1.0, 2.0, 4.0, 3.0]) == (3.0, 2.0, 4.0)
    assert m.timing_of([7.0]) == (7.0, 7.0, 7.0)
    times = iter(range(100))
    assert m.take_turns({"a": lambda: next(times)}, rounds=50, limit=0.0)["a"].median == 1  # of 0, 1, 2
    assert next(times) == 3


@pytest.mark.parametrize(("flop", "numbers", "roof"), [(10**9, 10, 2.0), (10**6, 10**6, 100 * 10**6 / 8e6 / 1e3)])
def test_rates_are_of_counted_work_and_the_roof_is_that_of_products_or_of_bandwidth(flop, numbers, roof):
    ours = m.Alternative(lambda x: time.sleep(0.01) or x, {"x": torch.ones(numbers)})
    row = measured({m.OURS: ours}, flop={m.FORWARD: flop}, grad=torch.ones(numbers))[m.OURS]
    assert (row["flop"], row["bytes"]) == (flop, 2 * 4 * numbers)
    assert row["tflops"] == pytest.approx(flop / (row["ms"] * 1e-3) / 1e12, rel=1e-3)
    assert row["roof_share"] == pytest.approx(row["tflops"] / roof, rel=2e-3)


def test_roofs_are_those_of_the_faster_quarter_of_the_runs(monkeypatch):
    timing = {"product": m.Timing(2.0, 1.0, 3.0), "copy": m.Timing(4.0, 2.0, 5.0)}
    monkeypatch.setattr(environment, "take_turns", lambda clocks, rounds: timing)
    found = m.roofs(CPU, torch.float32)
    assert found["tflops"] == pytest.approx(2 * 1536**3 / 1e-3 / 1e12, rel=1e-3)
    assert found["gbytes_per_s"] == pytest.approx(2 * 4 * 2**24 / 2e-3 / 1e9, rel=1e-3)


# ---- memory ----------------------------------------------------------------------------------------------------------


def test_extra_memory_is_what_a_call_holds_at_once():
    def run():
        x = torch.ones(2**18)  # 1 MiB
        for _ in range(5):
            x = x + 1
        return x

    assert 2 <= measured({m.OURS: m.Alternative(run)})[m.OURS]["extra_mib"] < 3


def test_extra_memory_has_the_scratch_of_compiled_kernels():
    x = torch.randn(1, 1, 32, 32)
    mask = torch.rand(x.shape) > 0.25
    peak = m.peak_extra_bytes(lambda: shift_attention(x, x, x, ~mask, mask, radius=1), CPU)
    assert peak > 10 * (4 * x.numel() * 4)  # its results: the output and three statistics


def test_memory_that_is_not_there_is_refused_instead_of_promised():
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with m.memory_limit(CPU, share=0.05), pytest.raises(RuntimeError) as raised:
        torch.empty(int(0.5 * memory.free_memory()), dtype=torch.uint8)
    assert m.is_out_of_memory(raised.value)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


def too_much(*_):
    return torch.empty(2**50, dtype=torch.uint8)


def device_is_full():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 64.00 GiB. GPU 0 has 79 GiB")


def kernel_is_out_of_memory():
    raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has 1 GiB")


@pytest.mark.parametrize(
    ("run", "wanted"),
    [(too_much, "1048576.0 GiB"), (device_is_full, "64.0 GiB"), (kernel_is_out_of_memory, "20.0 MiB")],
)
def test_an_alternative_without_memory_is_recorded_and_the_others_run(run, wanted):
    rows = measured({"first": m.Alternative(run), m.OURS: sleeper(0)})
    assert rows["first"]["unavailable"] == f"out of memory: {wanted} wanted"
    assert "ms" not in rows["first"]
    assert rows[m.OURS]["ratio"] == 1


def test_a_case_without_memory_for_its_own_tensors_is_recorded_and_a_bug_is_not_taken_for_that():
    (row,) = m.measure_case(case(too_much, columns={"side": 1}), SETTINGS)
    names = {"case": "name", "operator": "operator", "shape": "1×1", "side": 1, "alternative": m.OURS}
    assert row == names | {"pass": m.FORWARD, "unavailable": "out of memory: 1048576.0 GiB wanted"}
    with pytest.raises(KeyError):
        m.measure_case(case(lambda settings: {}["out of luck"]), SETTINGS)


# ---- the check -------------------------------------------------------------------------------------------------------


def identity(x):
    return x.clone()


@pytest.mark.parametrize(
    ("error", "is_strict", "is_reported"),
    [(1e-7, True, True), (1e-5, True, False), (1e-5, False, True), (1e-2, False, False), (torch.nan, False, False)],
)
def test_only_what_agrees_is_reported(error, is_strict, is_reported):
    inputs = {"x": EXACT.float()}
    ours = m.Alternative(lambda x: x + error, inputs, m.Alternative(identity, inputs), is_strict=is_strict)
    row = measured({m.OURS: ours})[m.OURS]
    assert ("ms" in row) == is_reported
    assert row.get("unavailable") == (None if is_reported else m.DIFFERS)


@pytest.mark.parametrize(("part", "is_reported"), [(slice(0, 40), True), (slice(10, 50), False)])
def test_only_the_part_of_an_output_is_compared_that_the_reference_has(part, is_reported):
    inputs = {"x": EXACT.float()}
    reference = m.Alternative(lambda x: x[part].clone(), inputs, part=lambda output: output[part])
    wrong_at_the_end = m.Alternative(lambda x: torch.cat([x[:45], torch.full((5,), 9.0)]), inputs, reference)
    assert ("ms" in measured({m.OURS: wrong_at_the_end})[m.OURS]) == is_reported


def test_a_difference_in_one_pass_leaves_no_figure_in_any():
    inputs = {"x": torch.ones(4, requires_grad=True)}
    reference = m.Alternative(lambda x: 2 * x, inputs)
    functions = {
        m.OURS: lambda x: x + x,
        "wrong": lambda x: 2.002 * x,
        "wrong gradient": lambda x: 2.002 * x - 0.002 * x.detach(),
    }
    alternatives = {name: m.Alternative(function, inputs, reference) for name, function in functions.items()}
    prepared = m.Prepared(alternatives, grad=torch.ones(4))
    rows = m.measure_case(case(lambda _: prepared, (m.FORWARD, m.BOTH)), SETTINGS)
    names = [(row["alternative"], row["pass"]) for row in rows]
    assert names == [(name, which) for name in alternatives for which in (m.FORWARD, m.BOTH)]
    assert [row["alternative"] for row in rows if "ms" in row] == [m.OURS] * 2


def test_a_first_call_that_takes_too_long_is_refused(monkeypatch):
    monkeypatch.setattr(m.Settings, "first_call_limit", 0.1)
    begin = time.monotonic()
    assert measured({m.OURS: sleeper(60)})[m.OURS]["unavailable"] == "not ready after 0 s"
    assert time.monotonic() - begin < 30


def test_the_reason_is_the_root_of_what_the_compiler_wraps():
    def run():
        try:
            raise RuntimeError("raised exception NotImplementedError('No backward on CPU. Please …')")
        except RuntimeError as error:
            raise ValueError("Observed exception\n  Explanation: …") from error

    assert m.first_call(run, lambda _: True, 10, CPU) == "No backward on CPU"
    assert m.reason(KeyError()) == "KeyError"
    assert m.reason(MemoryError()) == m.OUT_OF_MEMORY
    assert len(m.reason(RuntimeError("word " * 100))) <= 100


def test_an_alternative_left_out_is_named_with_the_reason_and_without_the_baseline_there_are_no_ratios():
    rows = measured({m.OURS: sleeper(0), "other": sleeper(0)}, unavailable={m.OURS: "why"}, columns={"size": 3})
    assert rows[m.OURS]["unavailable"] == "why"
    assert "ms" in rows["other"]
    assert "ratio" not in rows["other"]
    assert rows["other"]["size"] == 3
    assert json.loads(json.dumps(rows)) == rows


# ---- facts -----------------------------------------------------------------------------------------------------------


def test_a_commit_is_dirty_by_its_code_and_not_by_what_benchmarks_write(tmp_path, monkeypatch):
    monkeypatch.delenv("MSA_COMMIT", raising=False)

    def git(*words):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True, capture_output=True)

    names = "code.py", "README.md", "docs/measurements/plot.png", "benchmarks/results/a.json"
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("before")
    git("init")
    git("add", ".")
    git("-c", "user.name=a", "-c", "user.email=b", "commit", "-m", "c")
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    clean = m.facts(CPU)["commit"]
    for name in names[1:]:
        (tmp_path / name).write_text("after")
    assert m.facts(CPU)["commit"] == clean
    assert len(clean) == 12
    (tmp_path / names[0]).write_text("after")
    assert m.facts(CPU)["commit"] == f"{clean}-dirty"
    monkeypatch.setenv("MSA_COMMIT", "abc123")
    assert m.facts(CPU)["commit"] == "abc123"


def test_tf32_is_on_in_its_precision_alone():
    switches = torch.backends.cuda.matmul, torch.backends.cudnn
    for name, precision in m.PRECISIONS.items():
        before = [switch.allow_tf32 for switch in switches]
        with precision.active():
            assert [switch.allow_tf32 for switch in switches] == [name == "tf32"] * 2
        assert [switch.allow_tf32 for switch in switches] == before
