"""One case measured: times and rates of contestants of known cost, the gate, memory that runs out."""

import dataclasses
import time

import pytest
import torch

from benchmarks import contest as c
from benchmarks import gate, suites

CPU = torch.device("cpu")
SETTINGS = c.Settings(CPU, torch.float32, {"tflops": 2.0, "gbytes_per_s": 100.0}, rounds=5)
EXACT = torch.linspace(-1, 1, 50, dtype=torch.float64)


def sleeper(seconds):
    def run():
        time.sleep(seconds)
        return EXACT

    return c.Contestant(c.Call(run))


def forward(contest, settings=SETTINGS, **limits):
    record = c.measure(contest, settings, **limits)
    return {name: ways[c.FORWARD] for name, ways in record["contestants"].items()}


def test_sleeps_of_known_length_and_their_ratio():
    entries = forward(c.Contest({c.OURS: sleeper(0.05), "other": sleeper(0.1)}, {c.FORWARD: None}))
    assert 50 <= entries[c.OURS]["ms"] < 75
    assert 100 <= entries["other"]["ms"] < 150
    assert entries[c.OURS]["ratio"] == 1
    assert 1.7 < entries["other"]["ratio"] < 2.3
    for entry in entries.values():
        lower, upper = entry["quartiles_ms"]
        assert lower <= entry["ms"] <= upper
        assert not {"tflops", "roof_share"} & entry.keys()


def test_rate_of_a_product_of_known_work():
    a, b = torch.randn(2, 64, 64)
    flop, moved = 2 * 64**3, 3 * 64 * 64 * 4
    contest = c.Contest({c.OURS: c.Contestant(c.Call(lambda: a @ b))}, {c.FORWARD: c.Work(flop, moved)})
    entry = forward(contest)[c.OURS]
    assert entry["tflops"] == pytest.approx(flop / (entry["ms"] * 1e-3) / 1e12, rel=1e-3)
    assert entry["roof_share"] == pytest.approx(entry["tflops"] / min(2.0, 100e9 * flop / moved / 1e12), rel=1e-3)


@pytest.mark.parametrize(("flop", "moved", "roof"), [(10**9, 10**6, 2.0), (10**9, 10**9, 0.1)])
def test_the_roof_is_that_of_products_or_of_bandwidth(flop, moved, roof):
    entry = forward(c.Contest({c.OURS: sleeper(0.01)}, {c.FORWARD: c.Work(flop, moved)}))[c.OURS]
    assert entry["roof_share"] == pytest.approx(entry["tflops"] / roof, rel=1e-3)


def test_memory_is_what_a_call_holds_at_once():
    def run():
        x = torch.ones(2**18)  # 1 MiB
        for _ in range(3):
            x = x + 1
        return x

    assert 2 <= forward(c.Contest({c.OURS: c.Contestant(c.Call(run))}, {c.FORWARD: None}))[c.OURS]["extra_mib"] < 3


def plain():
    """Rounded to float32, it errs as plain PyTorch does."""
    return EXACT.float()


def off_by(error):
    return lambda: EXACT.float() + error


TRUTH = c.Truth(c.Call(plain), c.Call(lambda: EXACT))


@pytest.mark.parametrize(
    ("error", "strict", "reported"),
    [(1e-7, True, True), (1e-5, True, False), (1e-5, False, True), (1e-2, False, False), (torch.nan, False, False)],
)
def test_only_what_agrees_is_reported(error, strict, reported):
    contest = c.Contest({c.OURS: c.Contestant(c.Call(off_by(error)), TRUTH, strict)}, {c.FORWARD: None})
    entry = forward(contest)[c.OURS]
    assert ("ms" in entry) == reported
    assert reported or entry == {"unavailable": gate.DIFFERS}


def test_of_an_output_only_the_part_is_compared_that_the_truth_has():
    def wrong_in_the_end():
        return torch.cat([EXACT.float(), torch.full((3,), 9.0)])

    first = dataclasses.replace(TRUTH, part=lambda output: output[:50])
    for truth, reported in ((first, True), (dataclasses.replace(TRUTH, part=lambda output: output[3:]), False)):
        contest = c.Contest({c.OURS: c.Contestant(c.Call(wrong_in_the_end), truth)}, {c.FORWARD: None})
        assert ("ms" in forward(contest)[c.OURS]) == reported


def differentiable(scale=1.0, gradient_scale=1.0):
    """Twice its leaf, in float32 and as a judge in float64; with a wrong result or a wrong gradient on request."""
    leaf = torch.ones(4, requires_grad=True)

    def run(x=leaf):
        return scale * (2 * gradient_scale * x + (2 - 2 * gradient_scale) * x.detach())

    double = leaf.detach().double().requires_grad_()
    truth = c.Truth(c.Call(lambda: 2 * leaf, {"x": leaf}), c.Call(lambda: 2 * double, {"x": double}))
    return c.Contestant(c.Call(run, {"x": leaf}), truth)


def test_a_difference_in_one_direction_bars_both():
    contestants = {
        c.OURS: differentiable(),
        "wrong": differentiable(scale=1.001),
        "wrong gradient": differentiable(gradient_scale=1.001),
    }
    contest = c.Contest(contestants, {c.FORWARD: None, c.BOTH: None}, grad=torch.ones(4))
    record = c.measure(contest, SETTINGS)
    for name, ways in record["contestants"].items():
        assert list(ways) == [c.FORWARD, c.BOTH]
        assert [("ms" in entry) for entry in ways.values()] == [name == c.OURS] * 2


def too_much():
    return torch.empty(2**50, dtype=torch.uint8)


def device_is_full():
    raise torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 64.00 GiB. GPU 0 has a total capacity of 79.10 GiB of which 3 are free."
    )


def kernel_is_out_of_memory():
    raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has 1 GiB")


@pytest.mark.parametrize(
    ("run", "wanted"),
    [(too_much, "1048576.0 GiB"), (device_is_full, "64.0 GiB"), (kernel_is_out_of_memory, "20.0 MiB")],
)
def test_a_contestant_without_memory_is_recorded_and_the_others_run(run, wanted):
    contestants = {"first": c.Contestant(c.Call(run)), c.OURS: sleeper(0)}
    entries = forward(c.Contest(contestants, {c.FORWARD: None}))
    assert entries["first"] == {"unavailable": f"out of memory: {wanted} wanted"}
    assert entries[c.OURS]["ratio"] == 1


def test_without_the_unit_there_are_times_but_no_ratios():
    entries = forward(c.Contest({c.OURS: c.Contestant(c.Call(too_much)), "other": sleeper(0)}, {c.FORWARD: None}))
    assert "ms" in entries["other"]
    assert "ratio" not in entries["other"]


@pytest.mark.parametrize(("limit", "ready"), [(0.01, False), (30.0, True), (None, True)])
def test_a_contest_can_have_a_patience_of_its_own(limit, ready):
    contest = c.Contest({c.OURS: sleeper(0.05)}, {c.FORWARD: None}, first_call_limit=limit)
    assert ("ms" in forward(contest)[c.OURS]) == ready


def test_those_left_out_are_named_with_the_reason():
    contest = c.Contest({c.OURS: sleeper(0), "other": sleeper(0)}, {c.FORWARD: None})
    contest.leave_out({"other": "this torch lacks it"})
    assert forward(contest)["other"] == {"unavailable": "this torch lacks it"}


def case(name, prepare):
    return suites.Case(name, "operator", "shape", (c.OURS,), prepare, facts={"side": 1})


def test_a_case_without_memory_is_recorded_and_the_suite_goes_on():
    def prepare(settings):
        return c.Contest({c.OURS: sleeper(0)}, {c.FORWARD: None})

    suite = suites.Suite("", lambda settings: [], conclude=lambda records, dtype: {"seen": [*records, dtype]})
    cases = [case("full", lambda settings: too_much()), case("small", prepare)]
    result = suite.run("suite", cases, SETTINGS, "float32")
    assert result["cases"]["full"] == {
        "operator": "operator",
        "shape": "shape",
        "side": 1,
        "unavailable": "out of memory: 1048576.0 GiB wanted",
        "contestants": {},
    }
    assert "ms" in result["cases"]["small"]["contestants"][c.OURS][c.FORWARD]
    assert result["seen"] == ["full", "small", "float32"]


def test_a_bug_in_a_case_is_not_taken_for_a_want_of_memory():
    def prepare(settings):
        raise KeyError("out of luck")

    with pytest.raises(KeyError):
        suites.measure_case(case("broken", prepare), SETTINGS)


def test_rounds_end_early_when_time_is_over():
    calls = []

    def run():
        calls.append(1)
        return EXACT

    contest = c.Contest({c.OURS: c.Contestant(c.Call(run))}, {c.FORWARD: None})
    c.measure(contest, dataclasses.replace(SETTINGS, rounds=50), limit=0.0, at_least=2)
    assert len(calls) == 1 + 2 + 1  # judged, timed, watched
