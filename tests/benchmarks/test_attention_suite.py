"""The attention suites: competitors against the definition, what is counted, growth and targets, growing maps."""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import attention, attention_cases, gate, scaling, shift_price, suites
from benchmarks import attention_competitors as competitors
from benchmarks import contest as c
from benchmarks.attention_definition import hole_attention_at, sample_pixels
from msa_ops import hole_attention

CPU = torch.device("cpu")
SETTINGS = c.Settings(CPU, torch.float32, {"tflops": 0.1, "gbytes_per_s": 10.0}, rounds=1)
REFERENCE = functools.partial(hole_attention, backend="reference")
WAYS = attention.DIRECTIONS


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


@pytest.mark.parametrize("radius", [0, 1, 2, 5])
def test_the_definition_at_a_few_pixels(radius):
    x, mask, _ = example()
    pixels = torch.tensor([0, 14, 15, 100, 209])
    wanted = REFERENCE(x, mask, radius=radius).flatten(2)[:, :, pixels]
    torch.testing.assert_close(hole_attention_at(pixels, x, mask, radius=radius), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5])
def test_sampled_pixels_are_of_hole_and_background(share):
    mask = torch.rand(1, 1, 40, 40) >= share
    pixels = sample_pixels(mask, 100)
    assert len(pixels) == len(set(pixels.tolist())) <= 100
    holes = (~mask.flatten()[pixels]).sum()
    assert holes == 0 if share == 0 else holes >= min(25, (~mask).sum())
    assert len(pixels) - holes >= 25


@pytest.mark.slow
@pytest.mark.parametrize("name", [attention_cases.COMPILED, attention_cases.FLEX])
def test_compiled_competitor_is_the_definition(name):
    runs = {name: attention_cases.implementations()[name]}
    tensors = attention_cases.Map((1, 16, 16, 16), (0.25,)).tensors(SETTINGS)
    contest = attention_cases.attention_contest(*tensors, runs, competitors.dense_hole_attention)
    for why in c.judged(contest, CPU)[name].values():
        assert why != gate.DIFFERS
        pytest.skip(f"{name}: {why}")


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
    runs = {
        c.OURS: REFERENCE,
        "fails": fails,
        "wrong": lambda x, mask: REFERENCE(x, mask) * 1.001,
        "wrong gradient": wrong_gradient,
        "no gradient": no_gradient,
        "dense": competitors.dense_hole_attention,
    }
    tensors = attention_cases.Map((2, 4, 12, 12), (0.2, 0.5)).tensors(SETTINGS)
    contest = attention_cases.attention_contest(*tensors, runs, competitors.dense_hole_attention)
    entries = c.measure(contest, SETTINGS)["contestants"]
    assert list(entries) == list(runs)
    unavailable = {name: [entry[way].get("unavailable") for way in WAYS] for name, entry in entries.items()}
    assert unavailable == {
        c.OURS: [None, None],
        "fails": ["no backward here"] * 2,
        "wrong": [gate.DIFFERS] * 2,
        "wrong gradient": [gate.DIFFERS] * 2,
        "no gradient": [None, "no backward here"],
        "dense": [None, None],
    }
    for entry in (entries["dense"][c.FORWARD], entries["dense"][c.BOTH], entries["no gradient"][c.FORWARD]):
        assert entry["ms"] > 0
        assert entry["extra_mib"] > 0


def test_counted_work_is_the_operators_and_its_bytes_those_of_the_tensors():
    features, mask = attention_cases.Map((2, 4, 12, 12), (0.2, 0.5)).tensors(SETTINGS)
    work = attention_cases.attention_work(features, mask)
    holes = (~mask).flatten(1).sum(1)
    assert work[c.FORWARD].flop == 4 * 4 * int((holes * (144 - holes)).sum())
    for way in WAYS:
        call = attention_cases.attention_call(hole_attention, features, mask)
        with FlopCounterMode(display=False) as counter:
            call.step(way, torch.ones_like(features))()
        assert work[way].flop == counter.get_total_flops()
    assert work[c.FORWARD].bytes == 2 * features.nbytes + mask.nbytes
    assert work[c.BOTH].bytes - work[c.FORWARD].bytes == 3 * features.nbytes


def test_cases_have_the_holes_they_name():
    maps = [case.map for case in attention.CASES.values() if case.map.shape[2] <= 128]
    for one in [*maps, *shift_price.MAPS.values()]:
        mask = one.mask()
        assert mask.shape == (one.shape[0], 1, *one.shape[2:])
        shares = (~mask).flatten(1).double().mean(1)
        torch.testing.assert_close(shares, torch.tensor(one.holes, dtype=torch.float64), rtol=0, atol=0.005)
    small, large = (attention.CASES[name].map.mask() for name in (attention.SMALL, attention.LARGE))
    assert (~large).sum() == 4 * (~small).sum()


def test_large_maps_and_all_contestants_are_for_cuda():
    on_cuda = c.Settings(torch.device("cuda"), torch.bfloat16, {})
    here, there = ({case.name: case for case in attention.cases(s)} for s in (SETTINGS, on_cuda))
    assert there.keys() - here.keys() == {"256×256", "half holes", attention.STAGE_BATCH}
    assert here["128×128"].contestants == (c.OURS,)
    assert attention_cases.DENSE not in there["256×256"].contestants
    assert there["half holes"].contestants == there[attention.STAGE_BATCH].contestants == attention_cases.CONTESTANTS
    prices = [{case.name for case in shift_price.cases(settings)} for settings in (SETTINGS, on_cuda)]
    assert prices[1] - prices[0] == {shift_price.STAGE_BATCH}


def test_the_stage_is_the_same_map_in_both_suites_and_the_papers_batch_six_of_it():
    for case, price in ((attention.STAGE, shift_price.STAGE), (attention.STAGE_BATCH, shift_price.STAGE_BATCH)):
        assert attention.CASES[case].map == shift_price.MAPS[price]
    one, six = (attention.CASES[name].map for name in (attention.STAGE, attention.STAGE_BATCH))
    assert (one.shape[0], six.shape[0], one.shape[1:]) == (1, 6, six.shape[1:])


# ---- what follows from the records -----------------------------------------------------------------------------------


def both(forward, forward_backward):
    return {c.FORWARD: forward, c.BOTH: forward_backward}


def entry(ms, ratio, mib):
    return {"ms": ms, "ratio": ratio, "extra_mib": mib}


def example_records():
    small = {
        c.OURS: both(entry(10.0, 1.0, 5.5), entry(30.0, 1.0, 7.5)),
        attention_cases.DENSE: both(entry(123.4, 12.34, 256.0), {"unavailable": "why"}),
        attention_cases.GATHERED: both(entry(15.0, 1.5, 71.25), entry(77.0, 2.567, 90.0)),
    }
    large = {c.OURS: both(entry(151.0, 1.0, 20.0), entry(600.0, 1.0, 130.0))}
    return {
        name: {"shape": name, "contestants": contestants}
        for name, contestants in ((attention.SMALL, small), (attention.LARGE, large))
    }


def test_growth_best_and_targets():
    records = example_records()
    suite = attention.conclude(records, "float32")
    assert suite["growth"]["time"] == both(
        {"growth": 15.1, "target": {"growth": 18}}, {"growth": 20.0, "target": {"growth": 18}}
    )
    assert suite["growth"]["extra memory"][c.BOTH]["growth"] == 17.33
    small, large = records.values()
    assert small["best"] == both({"of": "gathered", "ratio": 1.5}, {"of": "gathered", "ratio": 2.567})
    assert large["best"] == both(*[{"unavailable": "no other is"}] * 2)
    assert small["contestants"][attention_cases.DENSE][c.BOTH] == {"unavailable": "why", "target": {"ratio": 6}}
    assert large["contestants"][c.OURS][c.FORWARD]["target"] == {"extra_mib": 64}


def test_other_precisions_and_parts_of_the_suite_have_no_targets_and_no_growth():
    records = example_records()
    attention.conclude(records, "tf32")
    assert not any("target" in e for r in records.values() for ways in r["contestants"].values() for e in ways.values())
    del records[attention.LARGE]
    assert attention.conclude(records, "float32") == {}
    unavailable = {
        attention.SMALL: {"unavailable": "why", "contestants": {}},
        attention.LARGE: example_records()[attention.LARGE],
    }
    grown = attention.conclude(unavailable, "float32")["growth"]
    assert [grown[name][way].get("growth") for name in grown for way in WAYS] == [None] * 4


def test_a_target_for_the_best_of_the_others():
    contestants = {
        c.OURS: both(entry(1, 1.0, 1), entry(1, 1.0, 1)),
        attention_cases.GATHERED: both(entry(1, 4.0, 1), {"unavailable": "why"}),
        attention_cases.SDPA: both(entry(1, 3.0, 1), {"unavailable": "why"}),
    }
    records = {"half holes": {"contestants": contestants}}
    attention.conclude(records, "bfloat16")
    assert records["half holes"]["best"] == both(
        {"of": attention_cases.SDPA, "ratio": 3.0, "target": {"ratio": 3}},
        {"unavailable": "no other is", "target": {"ratio": 2}},
    )


def test_targets_are_of_cases_and_contestants_that_exist():
    for targets in attention.TARGETS.values():
        for place, row in targets:
            if place == "growth":
                assert row in ("time", "extra memory")
            else:
                assert row in (*attention.CASES[place].on_cpu, *attention.CASES[place].on_cuda, attention.BEST)


# ---- growing maps ----------------------------------------------------------------------------------------------------


def forward_only(**entries):
    return {name: {c.FORWARD: entry} for name, entry in entries.items()}


def test_who_ends_and_why():
    contestants = forward_only(
        quick={"ms": 1000.0, "extra_mib": 10.0},
        slow={"ms": 2000.0, "extra_mib": 10.0},
        greedy={"ms": 2000.0, "extra_mib": 100.0},
        gone={"unavailable": "out of memory"},
    )
    ends = scaling.ends(contestants, growth=16, free=1600 * 2**20 - 1)
    # The greedy one is let run, as it is going to run out of memory.
    assert ends == {"slow": "expected to take 32 s", "gone": "out of memory"}


def test_a_contestant_that_ended_does_not_begin_again(monkeypatch):
    monkeypatch.setattr(scaling, "PATIENCE", 1.0)
    began = []

    def prepare(side, settings):
        def run(name):
            began.append((name, side))
            if name == "full" and side == 64:
                raise MemoryError
            return torch.ones(1)

        contestants = {name: c.Contestant(c.Call(functools.partial(run, name))) for name in (c.OURS, "full")}
        return c.Contest(contestants, {c.FORWARD: None})

    cases = [
        suites.Case(str(side), "hole_attention", "", (), functools.partial(prepare, side), facts={"side": side})
        for side in (32, 64, 128)
    ]
    records = scaling.measure(cases, SETTINGS)
    assert ("full", 64) in began
    assert ("full", 128) not in began
    assert "ms" in records["32"]["contestants"]["full"][c.FORWARD]
    for name in ("64", "128"):
        assert records[name]["contestants"]["full"][c.FORWARD] == {"unavailable": "out of memory"}
        assert "ms" in records[name]["contestants"][c.OURS][c.FORWARD]


def test_the_smallest_growing_map_is_measured_by_all():
    case = scaling.cases(SETTINGS)[0]
    record = scaling.measure([case], SETTINGS)[case.name]
    assert record["side"] == 32
    assert tuple(record["contestants"]) == case.contestants
    for ways in record["contestants"].values():
        assert ways[c.FORWARD].keys() >= {"ms", "extra_mib", "tflops"}


def test_the_price_of_shifts_is_of_two_functions_that_are_both_right():
    contest = shift_price.prepare(attention_cases.Map((1, 4, 16, 16), (0.3,)), SETTINGS)
    assert not any(c.judged(contest, CPU).values())
    outputs = [contest.contestants[name].call.run() for name in (c.OURS, shift_price.WITHOUT)]
    assert not torch.allclose(*outputs)
