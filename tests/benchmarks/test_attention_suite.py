"""The attention suite: its competitors against the definition, what happens to one that fails, its table."""

import functools
import json
import time

import pytest
import torch
import torch.nn.functional as F

from benchmarks import attention, harness, report
from benchmarks import attention_competitors as competitors
from msa_ops import hole_attention

CPU = torch.device("cpu")
REFERENCE = functools.partial(hole_attention, backend="reference")


def example(dtype=torch.float64, shape=(2, 5, 14, 15)):
    """More than one tile of pixels, with a small and a large hole."""
    mask = torch.rand(shape[0], 1, *shape[2:]) > torch.tensor([0.2, 0.7]).view(-1, 1, 1, 1)
    return torch.randn(shape, dtype=dtype), mask, torch.randn(shape, dtype=dtype)


def attend_like_flex(query, key, value, *, scale, block_mask):
    """What FlexAttention computes, by F.scaled_dot_product_attention: it has no backward on the CPU."""
    length = query.shape[2]
    pairs = torch.arange(length)[:, None], torch.arange(length)
    allowed = torch.stack([block_mask.mask_mod(torch.tensor(n), 0, *pairs) for n in range(len(query))])[:, None]
    return F.scaled_dot_product_attention(query, key, value, allowed, scale=scale)


COMPETITORS = {
    "dense": competitors.dense_hole_attention,
    "sdpa": competitors.sdpa_hole_attention,
    "flex": functools.partial(competitors.flex_hole_attention, attend=attend_like_flex),
}


@pytest.mark.parametrize("radius", [0, 1, 2])
@pytest.mark.parametrize("name", COMPETITORS)
def test_competitor_and_its_gradient_are_the_definition(name, radius):
    x, mask, grad = example()
    x.requires_grad_()
    result, wanted = COMPETITORS[name](x, mask, radius=radius), REFERENCE(x, mask, radius=radius)
    torch.testing.assert_close(result, wanted, rtol=1e-12, atol=1e-12)
    gradients = (torch.autograd.grad(y, x, grad)[0] for y in (result, wanted))
    torch.testing.assert_close(*gradients, rtol=1e-11, atol=1e-11)


@pytest.mark.slow
@pytest.mark.parametrize("name", [attention.COMPILED, attention.FLEX])
def test_compiled_competitor_is_the_definition(name):
    case = attention.Case((1, 16, 16, 16), (0.25,))
    row = attention.measure(case, {name: attention.contestants()[name]}, CPU, torch.float32, rounds=1)
    for way in attention.DIRECTIONS:
        reason = row["contestants"][name][way].get("unavailable")
        assert reason != harness.DIFFERS
        if reason:
            pytest.skip(f"{name}, {way}: {reason}")


@pytest.mark.parametrize("length", [100, 256, 300])
@pytest.mark.parametrize("holes", [0, 1, 128, 130, 256])
def test_tiles_of_flex_attention_cover_the_pairs_and_no_more(length, holes):
    holes = min(holes, length)
    blocks = competitors._hole_blocks(torch.tensor([holes]), length)
    pixels = torch.arange(length)
    pairs = (pixels[:, None] < holes) & (pixels >= holes)
    tiles = -(-length // competitors.TILE)
    padding = tiles * competitors.TILE - length
    split = F.pad(pairs.double(), (0, padding, 0, padding)).view(tiles, competitors.TILE, tiles, competitors.TILE)
    assert torch.equal(blocks.to_dense()[0, 0].bool(), split.sum((1, 3)) > 0)
    inside = F.pad(torch.ones(length, length), (0, padding, 0, padding)).view(split.shape).sum((1, 3))
    assert blocks.full_kv_num_blocks.sum() == (split.sum((1, 3)) == inside).sum()


def fails(x, mask):
    raise NotImplementedError("no backward here. Please use another device.")


def wrong_gradient(x, mask):
    result = REFERENCE(x, mask)
    return result.detach() + 2 * (x - x.detach())


def no_gradient(x, mask):
    return fails(x, mask) if torch.is_grad_enabled() else REFERENCE(x, mask)


def test_competitors_that_fail_are_recorded_and_the_run_goes_on():
    case = attention.Case((2, 4, 12, 12), (0.2, 0.5))
    runs = {
        attention.OURS: REFERENCE,
        "fails": fails,
        "wrong": lambda x, mask: REFERENCE(x, mask) * 1.001,
        "wrong gradient": wrong_gradient,
        "no gradient": no_gradient,
        "dense": competitors.dense_hole_attention,
    }
    entries = attention.measure(case, runs, CPU, torch.float32, rounds=1)["contestants"]
    assert list(entries) == list(runs)
    unavailable = {
        name: [entry[way].get("unavailable") for way in attention.DIRECTIONS] for name, entry in entries.items()
    }
    assert unavailable == {
        attention.OURS: [None, None],
        "fails": ["no backward here"] * 2,
        "wrong": [harness.DIFFERS] * 2,
        "wrong gradient": [harness.DIFFERS] * 2,
        "no gradient": [None, "no backward here"],
        "dense": [None, None],
    }
    for entry in (entries["dense"]["forward"], entries["dense"]["forward_backward"], entries["no gradient"]["forward"]):
        assert set(entry) == {"ms", "ratio", "extra_mib"}
        assert min(entry.values()) > 0


def test_without_ours_there_are_no_ratios():
    case = attention.Case((1, 4, 12, 12), (0.3,))
    runs = {attention.OURS: fails, attention.GATHERED: REFERENCE}
    row = attention.measure(case, runs, CPU, torch.float32, rounds=1)
    assert "ratio" not in row["contestants"][attention.GATHERED]["forward"]
    assert attention.growth(row, row) == {
        quantity: {"forward": {}, "forward_backward": {}} for quantity in ("time", "extra memory")
    }
    suite = {"cases": {"small": row}, "growth": attention.growth(row, row)}
    assert "not available: no backward here" in report.attention_table(suite)


def test_a_first_call_that_takes_too_long_is_refused():
    exact = torch.zeros(1)
    begin = time.monotonic()
    assert harness.refusal(lambda: time.sleep(5), exact, exact, 2.0, limit=0.1) == "not ready after 0 s"
    assert time.monotonic() - begin < 2
    assert harness.refusal(lambda: exact, exact, exact, 2.0, limit=1.0) is None


def test_the_reason_is_the_root_of_what_the_compiler_wraps():
    def run():
        try:
            raise RuntimeError("raised exception NotImplementedError('No backward on CPU. Please …')")
        except RuntimeError as error:
            raise ValueError("Observed exception\n  Explanation: …") from error

    assert harness.refusal(run, None, None, 2.0, limit=10) == "No backward on CPU"
    assert harness._reason(MemoryError()) == "MemoryError"
    assert len(harness._reason(RuntimeError("word " * 100))) <= 100


def test_rounds_end_early_when_time_is_over():
    calls = []
    harness.interleave({"a": lambda: calls.append(1)}, CPU, rounds=50, warmup=1, limit=0.0)
    assert len(calls) == 4


def test_peak_counts_the_scratch_of_compiled_kernels():
    x = torch.randn(1, 1, 32, 32)
    mask = torch.rand(x.shape) > 0.25
    forward = torch.ops.msa_ops.shift_attention_forward
    peak = harness.peak_extra_bytes(lambda: forward(x, x, x, ~mask, mask, 1.0, 1, False), CPU)
    assert peak > 10 * (3 * x.numel() * 4)  # its three results


def test_cases_have_the_holes_they_name():
    for case in attention.CASES.values():
        mask = case.mask()
        assert mask.shape == (case.shape[0], 1, *case.shape[2:])
        shares = (~mask).flatten(1).double().mean(1)
        torch.testing.assert_close(shares, torch.tensor(case.holes, dtype=torch.float64), rtol=0, atol=0.0061)
    small, large = (attention.CASES[name].mask() for name in (attention.SMALL, attention.LARGE))
    assert (~large).sum() == 4 * (~small).sum()


def entry(ms, ratio, mib):
    return {"ms": ms, "ratio": ratio, "extra_mib": mib}


def both(forward, forward_backward):
    return {"forward": forward, "forward_backward": forward_backward}


def example_suite():
    """As the suite records it, for a CPU in float32."""
    small = {
        attention.OURS: both(entry(10.0, 1.0, 5.5), entry(30.0, 1.0, 7.5)),
        attention.DENSE: both(entry(123.4, 12.34, 256.0), {"unavailable": "why"}),
        attention.GATHERED: both(entry(15.0, 1.5, 71.25), entry(77.0, 2.567, 90.0)),
    }
    mixed = {
        attention.OURS: both(entry(10.0, 1.0, 5.5), entry(30.0, 1.0, 7.5)),
        attention.DENSE: both(entry(11.0, 1.1, 6.0), entry(66.0, 2.2, 8.0)),
    }
    large = {attention.OURS: both(entry(151.0, 1.0, 20.0), entry(600.0, 1.0, 130.0))}
    cases = {
        "64×64": {"shape": [1, 128, 64, 64], "holes": [0.251], "contestants": small},
        "mixed holes": {"shape": [2, 256, 32, 32], "holes": [0.049, 0.6], "contestants": mixed},
        "128×128": {"shape": [1, 128, 128, 128], "holes": [0.251], "contestants": large},
    }
    return {"cases": cases, "growth": attention.growth(cases["64×64"], cases["128×128"])}


def test_table_shows_what_the_json_holds_with_the_targets():
    suite = json.loads(json.dumps(attention.with_targets(example_suite(), "float32")))
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in report.attention_table(suite).splitlines()]
    assert cells[2:8] == [
        ["1×128×64×64, 25 %", "ours", "1.00", "1.00", "5.5", "7.5"],
        ["", "N×N matrix", "12.34 (≥ 10)", "not available: why (≥ 6)", "256.0", ""],
        ["", "gathered", "1.50 (≥ 2)", "2.57 (≥ 1.5)", "71.2", "90.0"],
        ["2×256×32×32, 5, 60 %", "ours", "1.00", "1.00", "5.5", "7.5"],
        ["", "N×N matrix", "1.10", "2.20 (≥ 4)", "6.0", "8.0"],
        ["1×128×128×128, 25 %", "ours", "1.00", "1.00", "20.0 (≤ 64)", "130.0 (≤ 128)"],
    ]
    assert cells[-2:] == [
        ["time", "15.10 (≤ 18)", "20.00 (≤ 18)"],
        ["extra memory", "3.64 (≤ 4.5)", "17.33 (≤ 4.5)"],
    ]


def test_best_of_the_rest_leaves_out_the_eager_matrix_and_what_is_not_available():
    contestants = {
        attention.OURS: both(entry(1, 1.0, 1), entry(1, 1.0, 1)),
        attention.DENSE: both(entry(1, 0.5, 1), entry(1, 2.0, 1)),
        attention.GATHERED: both(entry(1, 4.0, 1), {"unavailable": "why"}),
        attention.SDPA: both(entry(1, 3.0, 1), {"unavailable": "why"}),
    }
    suite = {"cases": {"half holes": {"shape": [6], "holes": [0.5] * 6, "contestants": contestants}}, "growth": {}}
    best = attention.with_targets(suite, "bfloat16")["cases"]["half holes"]["contestants"][attention.BEST]
    assert best["forward"] == {"of": attention.SDPA, "ratio": 3.0, "target": {"ratio": 3}}
    assert best["forward_backward"] == {"unavailable": "no other is", "target": {"ratio": 2}}
    assert "| 3.00 (≥ 3), SDPA + fold | not available: no other is (≥ 2) |" in report.attention_table(suite)


def test_targets_are_of_cases_and_contestants_that_exist():
    known = {*attention.contestants(), attention.BEST}
    for targets in attention.TARGETS.values():
        for place, row in targets:
            assert (place in attention.CASES and row in known) or (
                place == "growth" and row in ("time", "extra memory")
            )
