"""The layers suite: its cases are the network's own calls, its contestants agree, its work is what it says."""

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import contest as c
from benchmarks import layers, mask_ratios
from benchmarks.generator_layers import Layer, brush_mask, generator_layers, layer_masks
from msa_model import Generator, generator

CPU = torch.device("cpu")
SETTINGS = c.Settings(CPU, torch.float32, {"tflops": 0.1, "gbytes_per_s": 10.0}, batch=2, rounds=1)

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
    seen = []

    def record(name):
        operator = getattr(generator, name)

        def call(x, mask, *rest, **options):
            if name == "partial_conv2d":
                weight, masks, shapes, stride = rest[0], [mask], [x.shape], options["stride"]
            else:
                weight, masks, shapes, stride = rest[2], [mask, rest[1]], [x.shape, rest[0].shape], 1
            known = options["input_is_masked" if name == "partial_conv2d" else "skip_is_masked"]
            seen.append((shapes, masks, weight.shape, stride, known))
            return operator(x, mask, *rest, **options)

        monkeypatch.setattr(generator, name, call)

    record("partial_conv2d")
    record("partial_conv2d_upcat")
    mask = brush_mask(256, 256, 0.25, 3)[None]
    with torch.no_grad():
        Generator(attention_levels=()).eval()(torch.rand(1, 3, 256, 256), mask)
    cases, masks = generator_layers(256), layer_masks(mask)
    assert [case.name for case in cases] == [f"Encode_{i}" for i in range(1, 9)] + [
        f"Decode_{i}" for i in range(8, 0, -1)
    ]
    for layer, (shapes, own_masks, weight, stride, known) in zip(cases, seen, strict=True):
        side, low = layer.side, layer.side // 2
        wanted = [(1, channels, side, side) for channels in layer.channels]
        if layer.in_decoder:
            wanted[0] = (1, layer.channels[0], low, low)
        assert [tuple(shape) for shape in shapes] == wanted, layer.name
        assert tuple(weight) == (layer.out_channels, layer.in_channels, layer.kernel, layer.kernel)
        assert (stride, known) == (layer.stride, layer.is_masked)
        assert layer.reads_image == (shapes[-1][1] == 3)
        for own, ours in zip(own_masks, masks[layer.name], strict=True):
            assert torch.equal(own, ours), layer.name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layer", SMALL, ids=lambda layer: layer.name)
def test_contestants_compute_the_layer(layer, dtype):
    settings = c.Settings(CPU, dtype, SETTINGS.roofs)
    contest = layers.layer_contest(layer, masks_of(layer), settings)
    assert list(contest.contestants) == [layers.BARE, c.OURS, layers.CHANNEL_MASKS]
    assert not any(c.judged(contest, CPU).values())
    inputs = ["low", "skip"] if layer.in_decoder else ["input"]
    wanted = inputs[:-1] if layer.reads_image else inputs
    assert list(contest.contestants[c.OURS].call.leaves) == [*wanted, "weight", "bias"]


def test_a_wrong_contestant_is_barred():
    contest = layers.layer_contest(SMALL[2], masks_of(SMALL[2]), SETTINGS)
    for name in (c.OURS, layers.CHANNEL_MASKS):
        call, *rest = contest.contestants[name]
        wrong = c.Call(lambda run=call.run: 1.001 * run(), call.leaves)
        contest.contestants[name] = c.Contestant(wrong, *rest)
    barred = c.judged(contest, CPU)
    assert barred[c.OURS].keys() == barred[layers.CHANNEL_MASKS].keys() == {c.FORWARD, c.BOTH}


@pytest.mark.parametrize("layer", SMALL, ids=lambda layer: layer.name)
def test_counted_flop_are_those_of_the_bare_convolution_for_the_gradients_asked_for(layer):
    contest = layers.layer_contest(layer, masks_of(layer), SETTINGS)
    bare = contest.contestants[layers.BARE].call
    for way in (c.FORWARD, c.BOTH):
        with FlopCounterMode(display=False) as counter:
            bare.step(way, contest.grad)()
        counted = counter.get_total_flops()
        if way == c.BOTH and layer.name == "Decode_1":
            # A convolution on a ready concatenation also gets the gradient of the image's channels.
            product = contest.work[c.FORWARD].flop
            counted -= product * 3 // 11
        assert contest.work[way].flop == counted > 0, way


@pytest.mark.parametrize("layer", SMALL, ids=lambda layer: layer.name)
def test_counted_bytes_are_those_of_the_tensors(layer):
    contest = layers.layer_contest(layer, masks_of(layer), SETTINGS)
    ours = contest.contestants[c.OURS].call
    out = ours.run()
    maps = [(2, layer.channels[-1], layer.side, layer.side)]
    if layer.in_decoder:
        maps.insert(0, (2, layer.channels[0], layer.side // 2, layer.side // 2))
    inputs = sum(4 * torch.Size(shape).numel() for shape in maps)
    weights = 4 * (layer.out_channels * layer.in_channels * layer.kernel**2 + layer.out_channels)
    gradients = sum(leaf.nbytes for leaf in ours.leaves.values())
    masks = sum(mask.numel() for mask in masks_of(layer)) + out[:, 0].numel()
    forward = inputs + weights + masks + out.nbytes
    assert contest.work[c.FORWARD].bytes == forward
    assert contest.work[c.BOTH].bytes == forward + out.nbytes + inputs + weights + gradients


def test_sizes_that_the_network_would_pad_are_refused():
    with pytest.raises(ValueError, match="multiple of 256, got 300"):
        generator_layers(300)


def records(sizes=(256,), missing=()):
    """Of all layers: bare 2 ms and ours 1 ms forward, 6 and 4 with backward."""
    result = {}
    for size in sizes:
        for layer in generator_layers(size):
            ms = {layers.BARE: (2.0, 6.0), c.OURS: (1.0, 4.0)}
            contestants = {
                n: {w: {"ms": t} for w, t in zip((c.FORWARD, c.BOTH), two, strict=True)} for n, two in ms.items()
            }
            if layer.name in missing:
                contestants[layers.BARE][c.BOTH] = {"unavailable": "why"}
            result[f"{layer.name} {size}"] = {"layer": layer.name, "size": size, "contestants": contestants}
    return result


def test_sums_are_over_all_layers_of_a_size_and_over_both_ends():
    sums = layers.sums(records((256, 512)), "float32")["sums"]
    assert list(sums) == ["16 layers 256", "Encode_1 + Decode_1 256", "16 layers 512", "Encode_1 + Decode_1 512"]
    assert sums["16 layers 512"]["contestants"] == {
        layers.BARE: {c.FORWARD: {"ms": 32.0, "ratio": 2.0}, c.BOTH: {"ms": 96.0, "ratio": 1.5}},
        c.OURS: {c.FORWARD: {"ms": 16.0, "ratio": 1.0}, c.BOTH: {"ms": 64.0, "ratio": 1.0}},
    }
    assert sums["Encode_1 + Decode_1 256"]["contestants"][layers.BARE][c.BOTH] == {"ms": 12.0, "ratio": 1.5}


def test_there_is_no_sum_without_all_its_layers():
    incomplete = records()
    del incomplete["Encode_5 256"]
    assert list(layers.sums(incomplete, "float32")["sums"]) == ["Encode_1 + Decode_1 256"]
    sums = layers.sums(records(missing=("Encode_5", "Decode_2")), "float32")["sums"]
    bare = sums["16 layers 256"]["contestants"][layers.BARE]
    assert bare[c.BOTH] == {"unavailable": "not measured in Encode_5, Decode_2"}
    assert bare[c.FORWARD]["ratio"] == 2.0
    without_memory = records()
    for name in ("Encode_1", "Decode_7"):
        without_memory[f"{name} 256"] |= {"unavailable": "out of memory", "contestants": {}}
    for ways in layers.sums(without_memory, "float32")["sums"]["16 layers 256"]["contestants"].values():
        assert list(ways.values()) == [{"unavailable": "not measured in Encode_1, Decode_7"}] * 2


def test_mask_ratios_have_the_holes_they_name():
    for share in mask_ratios.RATIOS:
        mask = brush_mask(64, 64, share, 7)
        assert abs((~mask).double().mean().item() - share) <= 0.005


def test_a_layer_with_and_without_holes(monkeypatch):
    """Ours without hole is another function than ours, and judged by itself."""
    monkeypatch.setattr(mask_ratios, "size_of", lambda settings: 256)
    layer = Layer("Encode_3", (4,), 64, 6, 5, 2, False, False)
    contest = mask_ratios.prepare_layer(layer, 0.6, SETTINGS)
    outputs = {name: contestant.call.run() for name, contestant in contest.contestants.items()}
    assert not torch.allclose(outputs[c.OURS], outputs[mask_ratios.NO_HOLE])
    # The border's windows hold fewer pixels, for which a bare convolution does not make up.
    inside = (outputs[name][:, :, 2:-2, 2:-2] for name in (mask_ratios.NO_HOLE, layers.BARE))
    torch.testing.assert_close(*inside)
    assert not any(c.judged(contest, CPU).values())
    assert list(contest.work) == [c.FORWARD]


def test_results_are_plain_json():
    contest = layers.layer_contest(SMALL[2], masks_of(SMALL[2]), SETTINGS)
    record = c.measure(contest, SETTINGS)
    assert json.loads(json.dumps(record)) == record
    assert record["work"][c.FORWARD].keys() == {"flop", "bytes"}
    for name in (layers.BARE, c.OURS, layers.CHANNEL_MASKS):
        for way in (c.FORWARD, c.BOTH):
            entry = record["contestants"][name][way]
            assert entry.keys() == {"ms", "quartiles_ms", "ratio", "extra_mib", "tflops", "roof_share"}
