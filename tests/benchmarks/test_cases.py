"""The cases: their alternatives compute the same, their work is what it says."""

import dataclasses
import functools

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import measure as m
from benchmarks.cases import attention, decoder_forms, layers, mask_ratios, networks
from benchmarks.cases import attention_alternatives as alternatives
from benchmarks.cases.generator_layers import Layer, brush_mask, generator_layers, layer_masks
from benchmarks.model import GeneratorConfig
from msa_model import Generator

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SETTINGS = m.Settings(CPU, torch.float32, {"tflops": 0.1, "gbytes_per_s": 10.0}, sizes=(32,), rounds=1)
PASSES = (m.FORWARD, m.BOTH)


def unavailable(prepared, passes=PASSES):
    """The reasons that the check gives, by alternative."""
    return {name: whys for name, whys in m.check(prepared, passes, SETTINGS).items() if whys}


def wrong(alternative, factor=1.001):
    return dataclasses.replace(alternative, function=lambda *inputs: factor * alternative.function(*inputs))


def flop(alternative, which, grad=None):
    with FlopCounterMode(display=False) as counter:
        alternative.step(which, grad)
    return counter.get_total_flops()


# ---- layers ----------------------------------------------------------------------------------------------------------

SMALL = [
    Layer("Encode_1", (3,), 32, 8, 7, 2, True),
    Layer("Encode_2", (6,), 16, 8, 5, 2, True),
    Layer("Encode_3", (6,), 16, 8, 5, 2, False),
    Layer("Decode_2", (8, 6), 16, 5, 3, 1, True),
    Layer("Decode_1", (8, 3), 32, 3, 3, 1, True),
]


def masks_of(layer):
    images = torch.stack([brush_mask(32, 32, 0.3, seed) for seed in (1, 2)])
    step = 32 // layer.side
    full = images[:, :, ::step, ::step]
    return [full[:, :, ::2, ::2], full] if layer.in_decoder else [full]


def test_layers_are_the_networks_and_their_masks_those_of_the_holes():
    found, numbers = generator_layers(256), range(1, 9)
    assert [layer.name for layer in found] == [f"Encode_{i}" for i in numbers] + [f"Decode_{9 - i}" for i in numbers]
    assert found[0] == Layer("Encode_1", (3,), 256, 64, 7, 2, True)
    assert found[2] == Layer("Encode_3", (128,), 64, 256, 5, 2, False)
    assert found[-1] == Layer("Decode_1", (64, 3), 256, 3, 3, 1, True)
    mask = brush_mask(256, 256, 0.25, 3)[None]
    masks = layer_masks(mask)
    assert torch.equal(masks["Encode_1"][0], mask)
    assert torch.equal(masks["Encode_2"][0], F.max_pool2d(mask.float(), 7, 2, 3) > 0)
    assert torch.equal(masks["Decode_1"][1], mask)
    for layer in found:
        shapes = [(1, 1, layer.side // 2, layer.side // 2), (1, 1, layer.side, layer.side)]
        assert [tuple(one.shape) for one in masks[layer.name]] == shapes[-len(layer.channels) :]
    with pytest.raises(ValueError, match="multiple of 256, got 300"):
        generator_layers(300)


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
        counted = flop(prepared.alternatives[layers.BARE], which, prepared.grad)
        if which == m.BOTH and layer.name == "Decode_1":
            # A convolution on a ready concatenation also gets the gradient of the image's channels.
            counted -= prepared.flop[m.FORWARD] * 3 // 11
        assert prepared.flop[which] == counted > 0, which
    ours = prepared.alternatives[m.OURS]
    out, masks = ours.run(), masks_of(layer)
    inputs = sum(4 * 2 * channels * mask[0].numel() for channels, mask in zip(layer.channels, masks, strict=True))
    weights = 4 * (layer.out_channels * layer.in_channels * layer.kernel**2 + layer.out_channels)
    gradients = sum(leaf.nbytes for leaf in ours.leaves.values())
    forward = inputs + weights + sum(mask.numel() for mask in masks) + out[:, 0].numel() + out.nbytes
    assert prepared.bytes(m.FORWARD) == forward
    assert prepared.bytes(m.BOTH) == forward + out.nbytes + inputs + weights + gradients


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
    assert found["Encode_1 + Decode_1 256", layers.BARE, m.BOTH]["ratio"] == 1.5
    for row in rows:
        if (row["size"], row["layer"], row["pass"]) == (256, "Encode_5", m.BOTH):
            del row["ms"]
    left = {(row["case"], row["pass"]) for row in layers.sums(rows)}
    assert left == {key[::2] for key in found} - {("16 layers 256", m.BOTH)}


def test_a_layer_with_and_without_holes():
    """Ours without a hole is another function than ours, and has a reference of its own."""
    layer = Layer("Encode_3", (4,), 64, 6, 5, 2, False)
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


def test_the_form_with_all_pairs_at_a_few_pixels():
    x, mask, _ = example()
    pixels = torch.tensor([0, 14, 15, 100, 209])
    wanted = alternatives.dense_hole_attention(x, mask).flatten(2)[:, :, pixels]
    torch.testing.assert_close(attention.hole_attention_at(pixels, x, mask), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5])
def test_sampled_pixels_are_of_hole_and_background(share):
    mask = torch.rand(1, 1, 40, 40) >= share
    pixels = attention.sample_pixels(mask, 100)
    assert len(pixels) == len(set(pixels.tolist())) <= 100
    holes = (~mask.flatten()[pixels]).sum()
    assert holes == 0 if share == 0 else holes >= min(25, (~mask).sum())
    assert len(pixels) - holes >= 25


@pytest.mark.slow
@pytest.mark.parametrize("name", [attention.COMPILED, attention.FLEX])
def test_compiled_alternative_is_the_definition(name):
    runs = {name: attention.implementations()[name]}
    prepared = attention.prepare(attention.Map((1, 16, 16, 16), (0.25,)).inputs(SETTINGS), runs)
    if why := m.check(prepared, (m.FORWARD,), SETTINGS)[name].get(m.FORWARD):
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
    inputs = attention.Map((2, 4, 12, 12), (0.2, 0.5)).inputs(SETTINGS)
    case = m.Case("", "", "", tuple(runs), lambda _: attention.prepare(inputs, runs))
    rows = m.measure_case(case, SETTINGS)
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
    inputs = attention.Map((2, 4, 12, 12), (0.2, 0.5)).inputs(SETTINGS)
    prepared = attention.prepare(inputs, {m.OURS: attention.hole_attention})
    for which in PASSES:
        assert prepared.flop[which] == flop(prepared.alternatives[m.OURS], which, prepared.grad) > 0
    features, mask = inputs.values()
    assert prepared.bytes(m.FORWARD) == 2 * features.nbytes + mask.nbytes
    assert prepared.bytes(m.BOTH) - prepared.bytes(m.FORWARD) == 3 * features.nbytes
    assert attention.flop_of(features, torch.ones_like(mask)) == {}


def test_maps_have_the_holes_they_name_and_the_large_one_four_times_the_small_ones():
    maps = {name: one for table in (attention.CASES, attention.SHIFTS) for name, (one, *_) in table.items()}
    for one in maps.values():
        mask = one.mask()
        assert mask.shape == (one.shape[0], 1, *one.shape[2:])
        shares = (~mask).flatten(1).double().mean(1)
        torch.testing.assert_close(shares, torch.tensor(one.holes, dtype=torch.float64), rtol=0, atol=0.005)
    small, large = (attention.CASES[name][0].mask() for name in ("64×64", "128×128"))
    assert (~large).sum() == 4 * (~small).sum()


def test_with_and_without_shift_propagation_are_two_functions_that_are_both_right():
    case = attention.Map((1, 4, 16, 16), (0.3,)).case("", (m.OURS, attention.WITHOUT))
    prepared = case.prepare(SETTINGS)
    assert unavailable(prepared) == {}
    assert not torch.allclose(*(one.run() for one in prepared.alternatives.values()))
    prepared.alternatives[attention.WITHOUT] = wrong(prepared.alternatives[attention.WITHOUT])
    assert unavailable(prepared).keys() == {attention.WITHOUT}


def test_the_smallest_growing_map_is_measured_by_all():
    case = attention.SCALING.cases(SETTINGS)[0]
    rows = m.measure_case(case, SETTINGS)
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


def test_compiled_generators_take_part_where_asked_for_and_graphs_of_their_own_on_cuda(small):
    cases = [networks.GENERATOR.cases(m.Settings(device, torch.float32, compiled=True))[0] for device in (CPU, CUDA)]
    assert cases[0].alternatives == (m.OURS, networks.REFERENCE, networks.COMPILED)
    assert cases[1].alternatives == (*cases[0].alternatives, networks.COMPILED_GRAPHS)
    found = cases[1].prepare(SETTINGS).alternatives
    assert [name for name, one in found.items() if not one.capture] == [networks.COMPILED_GRAPHS]


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
    case = m.Case("", "", "", (), functools.partial(decoder_forms.prepare, 4, 3), (m.FORWARD,))
    rows = m.measure_case(case, SETTINGS)
    assert [(row["alternative"], "ms" in row) for row in rows] == [
        (name, True) for name in ("phases", "concatenation", "auto")
    ]
    assert rows[0]["ratio"] == 1
