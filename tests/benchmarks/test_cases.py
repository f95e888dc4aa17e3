"""The cases: they are the network's own calls, their alternatives compute the same, their work is what it says."""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import measure as m
from benchmarks.cases import attention, decoder_forms, layers, mask_ratios, networks
from benchmarks.cases import attention_alternatives as alternatives
from benchmarks.cases.attention_definition import hole_attention_at, sample_pixels
from benchmarks.cases.generator_layers import Layer, brush_mask, generator_layers, layer_masks
from benchmarks.cases.suite import Suite
from benchmarks.model import GeneratorConfig
from msa_model import Generator
from msa_ops import hole_attention

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SETTINGS = m.Settings(CPU, torch.float32, {"tflops": 0.1, "gbytes_per_s": 10.0}, sizes=(32,), rounds=1)
PASSES = (m.FORWARD, m.BOTH)


def unavailable(prepared, passes=PASSES):
    """The reasons that the check gives, by alternative."""
    return {name: whys for name, whys in m.check(prepared, passes, CPU).items() if whys}


def wrong(alternative, factor=1.001):
    return m.Alternative(lambda: factor * alternative.run(), alternative.leaves, alternative.reference)


# ---- layers ----------------------------------------------------------------------------------------------------------

SMALL = [
    Layer("Encode_1", (3,), 32, 8, 7, 2, True, True),
    Layer("Encode_2", (6,), 16, 8, 5, 2, True, False),
    Layer("Encode_3", (6,), 16, 8, 5, 2, False, False),
    Layer("Decode_2", (8, 6), 16, 5, 3, 1, True, False),
    Layer("Decode_1", (8, 3), 32, 3, 3, 1, True, True),
]


def masks_of(layer):
    images = torch.stack([brush_mask(32, 32, 0.3, seed) for seed in (1, 2)])
    step = 32 // layer.side
    full = images[:, :, ::step, ::step]
    return [full[:, :, ::2, ::2], full] if layer.in_decoder else [full]


def test_cases_are_the_calls_that_the_network_makes(monkeypatch):
    import sys

    module, seen = sys.modules[Generator.__module__], []

    def record(name):
        operator = getattr(module, name)

        def call(x, mask, *rest, **options):
            if name == "partial_conv2d":
                weight, masks, shapes, stride = rest[0], [mask], [x.shape], options["stride"]
            else:
                weight, masks, shapes, stride = rest[2], [mask, rest[1]], [x.shape, rest[0].shape], 1
            known = options["input_is_masked" if name == "partial_conv2d" else "skip_is_masked"]
            seen.append((shapes, masks, weight.shape, stride, known))
            return operator(x, mask, *rest, **options)

        monkeypatch.setattr(module, name, call)

    record("partial_conv2d")
    record("partial_conv2d_upcat")
    mask = brush_mask(256, 256, 0.25, 3)[None]
    with torch.no_grad():
        Generator(attention_levels=()).eval()(torch.rand(1, 3, 256, 256), mask)
    found, masks = generator_layers(256), layer_masks(mask)
    numbers = range(1, 9)
    assert [layer.name for layer in found] == [f"Encode_{i}" for i in numbers] + [f"Decode_{9 - i}" for i in numbers]
    for layer, (shapes, own_masks, weight, stride, known) in zip(found, seen, strict=True):
        wanted = [(1, channels, layer.side, layer.side) for channels in layer.channels]
        if layer.in_decoder:
            wanted[0] = (1, layer.channels[0], layer.side // 2, layer.side // 2)
        assert [tuple(shape) for shape in shapes] == wanted, layer.name
        assert tuple(weight) == (layer.out_channels, layer.in_channels, layer.kernel, layer.kernel)
        assert (stride, known) == (layer.stride, layer.is_masked)
        assert layer.reads_image == (shapes[-1][1] == 3)
        assert all(map(torch.equal, own_masks, masks[layer.name])), layer.name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layer", SMALL, ids=lambda layer: layer.name)
def test_alternatives_compute_the_layer_and_a_wrong_one_is_not_reported(layer, dtype):
    prepared = layers.prepare(layer, masks_of(layer), m.Settings(CPU, dtype))
    assert list(prepared.alternatives) == [layers.BARE, m.OURS, layers.CHANNEL_MASKS]
    assert unavailable(prepared) == {}
    inputs = ["low", "skip"] if layer.in_decoder else ["input"]
    wanted = inputs[:-1] if layer.reads_image else inputs
    assert list(prepared.alternatives[m.OURS].leaves) == [*wanted, "weight", "bias"]
    for name in (m.OURS, layers.CHANNEL_MASKS):
        prepared.alternatives[name] = wrong(prepared.alternatives[name], 1.2)
    differs = dict.fromkeys(PASSES, m.DIFFERS)
    assert unavailable(prepared) == {m.OURS: differs, layers.CHANNEL_MASKS: differs}


@pytest.mark.parametrize("layer", SMALL, ids=lambda layer: layer.name)
def test_a_layers_work_is_the_bare_convolutions_flop_and_the_bytes_of_the_tensors(layer):
    prepared = layers.prepare(layer, masks_of(layer), SETTINGS)
    for which in PASSES:
        with FlopCounterMode(display=False) as counter:
            prepared.alternatives[layers.BARE].step(which, prepared.grad)()
        counted = counter.get_total_flops()
        if which == m.BOTH and layer.name == "Decode_1":
            # A convolution on a ready concatenation also gets the gradient of the image's channels.
            counted -= prepared.work[m.FORWARD].flop * 3 // 11
        assert prepared.work[which].flop == counted > 0, which
    ours = prepared.alternatives[m.OURS]
    out, masks = ours.run(), masks_of(layer)
    inputs = sum(4 * 2 * channels * mask[0].numel() for channels, mask in zip(layer.channels, masks, strict=True))
    weights = 4 * (layer.out_channels * layer.in_channels * layer.kernel**2 + layer.out_channels)
    gradients = sum(leaf.nbytes for leaf in ours.leaves.values())
    forward = inputs + weights + sum(mask.numel() for mask in masks) + out[:, 0].numel() + out.nbytes
    assert prepared.work[m.FORWARD].bytes == forward
    assert prepared.work[m.BOTH].bytes == forward + out.nbytes + inputs + weights + gradients


def test_sums_are_over_all_layers_of_a_size_and_over_both_ends_and_only_of_what_is_complete():
    times = {layers.BARE: (2.0, 6.0), m.OURS: (1.0, 4.0)}
    rows = [
        {
            "layer": layer.name,
            "size": size,
            "batch": 2,
            "alternative": name,
            "pass": which,
            "ms": ms,
            "eager_ms": 3 * ms,
        }
        for size in (256, 512)
        for layer in generator_layers(size)
        for name, both in times.items()
        for which, ms in zip(PASSES, both, strict=True)
    ]
    found = {(row["case"], row["alternative"], row["pass"]): row for row in layers.sums(rows)}
    assert len(found) == 2 * 2 * 2 * 2
    bare = found["16 layers 512", layers.BARE, m.FORWARD]
    assert (bare["ms"], bare["eager_ms"], bare["ratio"], bare["batch"]) == (32.0, 96.0, 2.0, 2)
    assert found["16 layers 512", m.OURS, m.BOTH]["ms"] == 64.0
    assert found["Encode_1 + Decode_1 256", layers.BARE, m.BOTH]["ratio"] == 1.5
    incomplete = [row for row in rows if (row["size"], row["layer"]) == (256, "Encode_5") and row["pass"] == m.BOTH]
    for row in incomplete:
        del row["ms"]
    left = {(row["case"], row["pass"]) for row in layers.sums(rows)}
    assert left == {key[::2] for key in found} - {("16 layers 256", m.BOTH)}


def test_sizes_that_the_network_would_pad_are_refused():
    with pytest.raises(ValueError, match="multiple of 256, got 300"):
        generator_layers(300)


def test_a_layer_with_and_without_holes():
    """Ours without a hole is another function than ours, and has a reference of its own."""
    for share in mask_ratios.RATIOS:
        assert abs((~brush_mask(64, 64, share, 7)).double().mean().item() - share) <= 0.005
    layer = Layer("Encode_3", (4,), 64, 6, 5, 2, False, False)
    prepared = mask_ratios.prepare(layer, 0.6, m.Settings(CPU, torch.float32, sizes=(256,)))
    outputs = {name: one.run() for name, one in prepared.alternatives.items()}
    assert not torch.allclose(outputs[m.OURS], outputs[mask_ratios.NO_HOLE])
    # The border's windows hold fewer pixels, for which a bare convolution does not make up.
    torch.testing.assert_close(*(outputs[n][:, :, 2:-2, 2:-2] for n in (mask_ratios.NO_HOLE, layers.BARE)))
    assert unavailable(prepared, (m.FORWARD,)) == {}


# ---- attention -------------------------------------------------------------------------------------------------------

REFERENCE = attention.gathered_hole_attention


def example(shape=(2, 5, 14, 15)):
    """More than one tile of pixels, with a small and a large hole."""
    mask = torch.rand(shape[0], 1, *shape[2:]) > torch.tensor([0.2, 0.7]).view(-1, 1, 1, 1)
    return torch.randn(shape).double(), mask, torch.randn(shape).double()


def attend_like_flex(query, key, value, *, scale, block_mask):
    """What FlexAttention computes, by F.scaled_dot_product_attention: it has no backward on the CPU."""
    pairs = torch.arange(query.shape[2])[:, None], torch.arange(query.shape[2])
    allowed = torch.stack([block_mask.mask_mod(torch.tensor(n), 0, *pairs) for n in range(len(query))])[:, None]
    return F.scaled_dot_product_attention(query, key, value, allowed, scale=scale)


FORMS = {
    "dense": alternatives.dense_hole_attention,
    "sdpa": alternatives.sdpa_hole_attention,
    "flex": functools.partial(alternatives.flex_hole_attention, attend=attend_like_flex),
}


@pytest.mark.parametrize("radius", [0, 1, 2])
@pytest.mark.parametrize("name", FORMS)
def test_alternatives_and_their_gradients_are_the_definition(name, radius):
    x, mask, grad = example()
    x.requires_grad_()
    result, wanted = FORMS[name](x, mask, radius=radius), REFERENCE(x, mask, radius=radius)
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
@pytest.mark.parametrize("name", [attention.COMPILED, attention.FLEX])
def test_compiled_alternative_is_the_definition(name):
    runs = {name: attention.implementations()[name]}
    prepared = attention.prepare(*attention.Map((1, 16, 16, 16), (0.25,)).tensors(SETTINGS), runs)
    if why := m.check(prepared, (m.FORWARD,), CPU)[name].get(m.FORWARD):
        assert why != m.DIFFERS
        pytest.skip(f"{name}: {why}")


@pytest.mark.parametrize("length", [100, 256, 300])
@pytest.mark.parametrize("holes", [0, 1, 128, 130, 256])
def test_tiles_of_flex_attention_cover_the_pairs_and_no_more(length, holes):
    holes, tile = min(holes, length), alternatives.TILE
    blocks = alternatives._hole_blocks(torch.tensor([holes]), length)
    pixels = torch.arange(length)
    pairs = (pixels[:, None] < holes) & (pixels >= holes)
    tiles = -(-length // tile)
    padding = tiles * tile - length
    split = F.pad(pairs.double(), (0, padding, 0, padding)).view(tiles, tile, tiles, tile)
    assert torch.equal(blocks.to_dense()[0, 0].bool(), split.sum((1, 3)) > 0)
    inside = F.pad(torch.ones(length, length), (0, padding, 0, padding)).view(split.shape).sum((1, 3))
    assert blocks.full_kv_num_blocks.sum() == (split.sum((1, 3)) == inside).sum()


def test_alternatives_that_fail_are_recorded_and_the_run_goes_on():
    def fails(x, mask):
        raise NotImplementedError("no backward here. Please use another device.")

    runs = {
        m.OURS: REFERENCE,
        "fails": fails,
        "wrong": lambda x, mask: REFERENCE(x, mask) * 1.001,
        "wrong gradient": lambda x, mask: REFERENCE(x, mask).detach() + 2 * (x - x.detach()),
        "no gradient": lambda x, mask: fails(x, mask) if torch.is_grad_enabled() else REFERENCE(x, mask),
        "dense": alternatives.dense_hole_attention,
    }
    tensors = attention.Map((2, 4, 12, 12), (0.2, 0.5)).tensors(SETTINGS)
    rows = m.measure_prepared(attention.prepare(*tensors, runs), PASSES, SETTINGS)
    found = {name: [row.get("unavailable") for row in rows if row["alternative"] == name] for name in runs}
    assert found == {
        m.OURS: [None, None],
        "fails": ["no backward here"] * 2,
        "wrong": [m.DIFFERS] * 2,
        "wrong gradient": [m.DIFFERS] * 2,
        "no gradient": [None, "no backward here"],
        "dense": [None, None],
    }
    assert all(row["ms"] > 0 and row["extra_mib"] > 0 for row in rows if "unavailable" not in row)


def test_attentions_work_is_the_operators_flop_and_the_bytes_of_the_tensors():
    features, mask = attention.Map((2, 4, 12, 12), (0.2, 0.5)).tensors(SETTINGS)
    work = attention.work_of(features, mask)
    for which in PASSES:
        with FlopCounterMode(display=False) as counter:
            attention.alternative(hole_attention, features, mask).step(which, torch.ones_like(features))()
        assert work[which].flop == counter.get_total_flops() > 0
    assert work[m.FORWARD].bytes == 2 * features.nbytes + mask.nbytes
    assert work[m.BOTH].bytes - work[m.FORWARD].bytes == 3 * features.nbytes
    assert attention.work_of(features, torch.ones_like(mask)) == {}


def test_maps_have_the_holes_they_name_and_the_large_one_four_times_the_small_ones():
    maps = {name: one for table in (attention.CASES, attention.SHIFTS) for name, (one, *_) in table.items()}
    for one in maps.values():
        mask = one.mask()
        assert mask.shape == (one.shape[0], 1, *one.shape[2:])
        shares = (~mask).flatten(1).double().mean(1)
        torch.testing.assert_close(shares, torch.tensor(one.holes, dtype=torch.float64), rtol=0, atol=0.005)
    small, large = (attention.CASES[name][0].mask() for name in ("64×64", "128×128"))
    assert (~large).sum() == 4 * (~small).sum()


def test_large_maps_and_all_alternatives_are_for_cuda():
    on_cuda = m.Settings(CUDA, torch.bfloat16)
    here, there = ({case.name: case for case in attention.SUITE.cases(s)} for s in (SETTINGS, on_cuda))
    assert there.keys() - here.keys() == {"256×256", "half holes", "64×64 30%, batch 6"}
    assert here["128×128"].alternatives == (m.OURS,)
    assert attention.DENSE not in there["256×256"].alternatives
    assert there["half holes"].alternatives == there["64×64 30%, batch 6"].alternatives == attention.ALL
    shifts = [{case.name for case in attention.SHIFT_PROPAGATION.cases(s)} for s in (SETTINGS, on_cuda)]
    assert shifts[1] - shifts[0] == {"64×64, batch 6"}


def test_with_and_without_shift_propagation_are_two_functions_that_are_both_right():
    case = attention.Map((1, 4, 16, 16), (0.3,)).case("", (m.OURS, attention.WITHOUT))
    prepared = case.prepare(SETTINGS)
    assert unavailable(prepared) == {}
    assert not torch.allclose(*(one.run() for one in prepared.alternatives.values()))
    prepared.alternatives[attention.WITHOUT] = wrong(prepared.alternatives[attention.WITHOUT])
    assert unavailable(prepared).keys() == {attention.WITHOUT}


# ---- growing maps ----------------------------------------------------------------------------------------------------


def test_what_ended_or_would_take_too_long_does_not_go_on():
    last = [
        {"alternative": "quick", "ms": 1000.0, "extra_mib": 10.0},
        {"alternative": "slow", "ms": 2000.0, "extra_mib": 10.0},
        {"alternative": "greedy", "ms": 2000.0, "extra_mib": 100.0},
        {"alternative": "gone", "unavailable": "out of memory"},
    ]
    found = attention.ended(last, growth=16, free=1600 * 2**20 - 1)
    # The greedy one is let run, as it is going to run out of memory.
    assert found == {"slow": "expected to take 32 s", "gone": "out of memory"}


def test_an_alternative_that_ended_does_not_begin_again():
    began = []

    def prepare(side, settings):
        def run(name):
            began.append((name, side))
            if name == "full" and side == 64:
                raise MemoryError
            return torch.ones(1)

        return m.Prepared({name: m.Alternative(functools.partial(run, name)) for name in (m.OURS, "full")})

    some = [
        m.Case(str(side), "", "", (), functools.partial(prepare, side), (m.FORWARD,), columns={"side": side})
        for side in (32, 64, 128)
    ]
    suite = Suite("", "", lambda settings: some, attention.absent, limits=attention.SCALING.limits)
    rows = suite.run("scaling", some, SETTINGS)
    assert ("full", 64) in began
    assert ("full", 128) not in began
    reasons = [row.get("unavailable") for row in rows if row["alternative"] == "full"]
    assert reasons == [None, "out of memory", "out of memory"]
    assert all("ms" in row for row in rows if row["alternative"] == m.OURS)


def test_the_smallest_growing_map_is_measured_by_all():
    case = attention.SCALING.cases(SETTINGS)[0]
    rows = attention.SCALING.run("scaling", [case], SETTINGS)
    assert tuple(row["alternative"] for row in rows) == case.alternatives
    assert all(row.keys() >= {"ms", "extra_mib", "tflops"} and row["side"] == 32 for row in rows)


# ---- whole networks, small -------------------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(networks, "Generator", functools.partial(Generator, base_width=4, depth=4))
    monkeypatch.setattr(networks, "GeneratorConfig", functools.partial(GeneratorConfig, base_width=4, depth=4))


def test_the_generators_alternatives_agree(small):
    for case in networks.GENERATOR.cases(SETTINGS):
        prepared = case.prepare(SETTINGS)
        assert list(prepared.alternatives) == list(case.alternatives)
        assert unavailable(prepared, case.passes) == {}
        prepared.alternatives[m.OURS] = wrong(prepared.alternatives[m.OURS], 1.1)
        assert unavailable(prepared, case.passes).keys() == {m.OURS}


def test_compiled_generators_take_part_where_asked_for_and_graphs_of_their_own_on_cuda():
    names = {
        device.type: networks.GENERATOR.cases(m.Settings(device, torch.float32, compiled=True))[0].alternatives
        for device in (CPU, CUDA)
    }
    assert names["cpu"] == (m.OURS, networks.REFERENCE, networks.COMPILED)
    assert names["cuda"] == (*names["cpu"], networks.COMPILED_GRAPHS)


def test_memory_is_of_one_image_whatever_the_batch(small, monkeypatch):
    monkeypatch.setattr(networks, "LARGE_SIZE", 64)
    (case,) = networks.MEMORY.cases(SETTINGS)
    (row,) = m.measure_case(case, SETTINGS)
    assert (row["shape"], row["batch"], row["alternative"]) == ("1×3×64×64", 1, m.OURS)
    assert row["extra_mib"] * 2**20 >= 2 * 4 * 64 * 64  # a layer's output alone


def test_a_training_step_on_both_operators_and_not_with_other_gradients(small, monkeypatch):
    (case,) = networks.TRAINING.cases(SETTINGS)
    rows = m.measure_case(case, SETTINGS)
    assert [row["alternative"] for row in rows] == [m.OURS, networks.REFERENCE]
    assert all(row["gradient_difference"] < 1e-2 and "ms" in row and row["pass"] == m.STEP for row in rows)
    monkeypatch.setattr(networks, "relative_difference", lambda a, b: float("nan"))
    rows = {row["alternative"]: row for row in m.measure_case(case, SETTINGS)}
    assert rows[m.OURS]["unavailable"] == "its gradients differ from the reference's"
    assert "ratio" not in rows[networks.REFERENCE]


def test_both_forms_of_the_decoder_run_and_agree():
    prepared = decoder_forms.prepare(4, 3, SETTINGS)
    assert unavailable(prepared, (m.FORWARD,)) == {}
    rows = m.measure_prepared(prepared, (m.FORWARD,), SETTINGS)
    assert [row["alternative"] for row in rows] == ["phases", "concatenation", "auto"]
    assert rows[0]["ratio"] == 1
