"""Checks the scripts of docs/examples: contextual attention against its equations in loops, the U-Net of another
project against its forward pass in loops, and what both scripts print."""

import itertools
import re
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from ops.support import definition, masks
from ops.support.compare import gradients
from ops.support.profiling import allocations, profiled
from ops.support.tolerances import assert_accurate, assert_exact

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


def load(name):
    return SimpleNamespace(**runpy.run_path(str(EXAMPLES / f"{name}.py")))


# ---- contextual attention ------------------------------------------------------------------------------------------

FORMS = [("scores", 0), ("scores", 1), ("scores", 2), ("weights", 1), ("weights", 2)]
SIZE = (12, 16)
MASKS = ["all_valid", "all_hole", "one_valid_pixel", "one_hole_pixel", "right_half", "one_hole_row", "hole_border"]


@pytest.fixture(scope="module")
def contextual():
    return load("contextual_attention")


def propagated(scores, radius):
    """Sums (h, w, h, w) scores along common shifts of p and q that stay in the map: along rows, then along columns."""
    for axis in (1, 0):
        size, total = scores.shape[axis], torch.zeros_like(scores)
        for shift in range(-min(radius, size - 1), min(radius, size - 1) + 1):
            first, count = max(0, shift), size - abs(shift)
            part = scores.narrow(axis, first, count).narrow(axis + 2, first, count)
            total.narrow(axis, first - shift, count).narrow(axis + 2, first - shift, count).add_(part)
        scores = total
    return scores


def written_out(foreground, background, mask, propagate, radius, scale):
    """Computes the example's equations for one sample with the full matrix: (C, H, W) twice, mask (H, W) bool."""
    height, width = foreground.shape[1:]
    h, w = height // 2, width // 2
    pixels = list(itertools.product(range(h), range(w)))

    def unit_patches(x):
        x = F.pad(x[:, ::2, ::2], (1, 1, 1, 1))
        patches = torch.stack([x[:, y : y + 3, z : z + 3].flatten() for y, z in pixels])
        return patches / patches.norm(dim=1, keepdim=True).clamp_min(1e-4)

    def softmax(scores):
        return (scale * scores).flatten(2).masked_fill(~keys, -torch.inf).softmax(2).reshape(scores.shape)

    around = [mask[max(0, 2 * y - 2) : 2 * y + 4, max(0, 2 * z - 2) : 2 * z + 4] for y, z in pixels]
    keys = torch.stack([square.all() for square in around])
    if not keys.any():
        return 0 * (foreground + background)
    scores = (unit_patches(foreground) @ unit_patches(background).T).reshape(h, w, h, w)
    if propagate == "scores":
        weights = softmax(propagated(scores, radius)).reshape(h * w, h * w)
    else:
        weights = propagated(softmax(scores), radius).reshape(h * w, h * w) * keys
        weights = weights / weights.sum(1, keepdim=True)

    raw = F.pad(background, (1, 1, 1, 1))
    patches = torch.stack([raw[:, 2 * y : 2 * y + 4, 2 * z : 2 * z + 4] for y, z in pixels])
    total, covers = torch.zeros_like(raw), torch.zeros_like(raw)
    for (y, z), row in zip(pixels, weights, strict=True):
        total[:, 2 * y : 2 * y + 4, 2 * z : 2 * z + 4] += (row[:, None, None, None] * patches).sum(0)
        covers[:, 2 * y : 2 * y + 4, 2 * z : 2 * z + 4] += 1
    return (total / covers.clamp_min(1))[:, 1:-1, 1:-1]


@pytest.mark.parametrize(("propagate", "radius"), FORMS)
def test_contextual_attention_equals_its_definition(contextual, backend, device, propagate, radius):
    foreground, background, grad = torch.randn(3, len(MASKS), 2, *SIZE, dtype=torch.float64)
    mask = torch.stack([masks.PATTERNS[name](*SIZE) for name in MASKS])
    options = dict(propagate=propagate, radius=radius, scale=4.0)

    def exact(f, b):
        return torch.stack([written_out(*sample, **options) for sample in zip(f, b, mask, strict=True)])

    def ours(f, b):
        return contextual.contextual_attention(f, b, mask[:, None].to(device), backend=backend, **options)

    wanted, wanted_grads = gradients(exact, grad, foreground, background)
    output, grads = gradients(ours, grad.to(device), foreground.to(device), background.to(device))
    assert_exact(output, wanted)
    for name, got, gradient in zip(("foreground", "background"), grads, wanted_grads, strict=True):
        assert_exact(got, gradient, what=f"the gradient of {name}")
    # These two leave no patch clear of the hole.
    assert [not sample.any() for sample in wanted] == [name in ("all_hole", "one_valid_pixel") for name in MASKS]


def test_the_identity_kernel_of_the_original_differs_by_what_wraps_around():
    h, w = 4, 5
    scores = torch.randn(h, w, h, w, dtype=torch.float64)
    diagonal = torch.eye(3, dtype=torch.float64)[None, None]
    rows_first = F.conv2d(scores.reshape(1, 1, h * w, h * w), diagonal, padding=1).reshape(h, w, h, w)
    columns_first = rows_first.permute(1, 0, 3, 2).reshape(1, 1, h * w, h * w)
    original = F.conv2d(columns_first, diagonal, padding=1).reshape(w, h, w, h).permute(1, 0, 3, 2)
    wanted = propagated(scores, 1)
    inside = (slice(1, -1),) * 4
    assert_exact(original[inside], wanted[inside])
    # The last pixel of a row and the first of the next are neighbours to the original.
    assert (original[1:-1, -1, 1:-1, 1:-1] - wanted[1:-1, -1, 1:-1, 1:-1]).abs().max() > 0.1


def test_contextual_attention_holds_no_score_matrix(contextual):
    x = torch.randn(1, 2, 128, 128, requires_grad=True)
    mask = masks.PATTERNS["right_half"](128, 128)[None, None]
    sizes = allocations(profiled(lambda: contextual.contextual_attention(x, x, mask).sum().backward()))
    assert sizes[0] < (64 * 64) ** 2 * x.element_size() / 2


def test_contextual_attention_of_empty_features_has_finite_gradients(contextual):
    x = torch.zeros(1, 2, *SIZE, requires_grad=True)
    contextual.contextual_attention(x, x, torch.ones(1, 1, *SIZE)).sum().backward()
    assert torch.isfinite(x.grad).all()


def test_contextual_attention_says_what_it_cannot_take(contextual):
    x, mask = torch.randn(1, 2, 7, 8), torch.ones(1, 1, 7, 8)
    with pytest.raises(ValueError, match="height and width must be even, got 7x8"):
        contextual.contextual_attention(x, x, mask)
    x, mask = torch.randn(1, 2, 8, 8), torch.ones(1, 1, 8, 8)
    with pytest.raises(ValueError, match="must be 'scores' or 'weights', got 'score'"):
        contextual.contextual_attention(x, x, mask, propagate="score")


def test_contextual_attention_script_removes_noise(contextual, capsys):
    contextual.main()
    guess, alone, _, propagated_scores = map(float, re.findall(r"\d\.\d+", capsys.readouterr().out))
    assert propagated_scores < alone / 2 < guess / 4


# ---- a network of another project ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def foreign():
    pytest.importorskip("unet", reason="the U-Net of docs/examples/foreign_network.py: pip install unet")
    return load("foreign_network")


def small_unet(blocks=2, **options):
    from unet import UNet2D

    return UNet2D(3, 3, num_encoding_blocks=blocks, out_channels_first_layer=4, **options)


def unet_written_out(network, image, mask):
    """Computes the forward pass of a padded U-Net of two blocks with loops over windows, in float64, and with masks of
    one plane per channel."""

    def convolutions(block, x, m):
        for layer in (block.conv1.conv_layer, block.conv2.conv_layer):
            x, m = definition.partial_conv2d(x, m, layer.weight, layer.bias, padding=layer.padding)[:2]
            x, m = x.relu(), m.expand_as(x)
        return x, m

    skip, skip_mask = convolutions(network.encoder.encoding_blocks[0], image, mask.expand_as(image))
    low = F.max_pool2d(torch.where(skip_mask, skip, -torch.inf), 2)
    low_mask = F.max_pool2d(skip_mask.double(), 2) != 0
    low, low_mask = convolutions(network.bottom_block, torch.where(low_mask, low, 0.0), low_mask)
    block = network.decoder.decoding_blocks[0]
    up_mask = low_mask.repeat_interleave(2, 2).repeat_interleave(2, 3)
    up = F.conv_transpose2d(low, block.upsample.weight.double(), block.upsample.bias.double(), stride=2)
    x, m = torch.cat([skip, up], 1), torch.cat([skip_mask, up_mask], 1)
    x, m = convolutions(block, x, m)
    layer = network.classifier.conv_layer
    return definition.partial_conv2d(x, m, layer.weight, layer.bias)[0]


@torch.no_grad()
def test_masks_travel_through_the_network(foreign):
    network, image = small_unet(padding=1), torch.rand(2, 3, 24, 24)
    mask = torch.ones(2, 1, 24, 24)
    mask[0, :, 2:22, 2:22] = 0  # so large that holes remain at every depth and in the output
    mask[1] = masks.PATTERNS["checkerboard"](24, 24)
    exact = unet_written_out(network, image, mask != 0)
    assert (exact[0] == 0).all(0).any()
    assert_exact(foreign.run(network.double(), image.double(), mask.double()), exact)


@torch.no_grad()
def test_all_valid_and_unpadded_is_the_network_itself(foreign):
    network, image = small_unet(blocks=3), torch.rand(2, 3, 64, 64)
    partial, plain = foreign.run(network, image, torch.ones(2, 1, 64, 64)), network(image)
    assert_accurate(partial, plain, network.double()(image.double()))


@torch.no_grad()
def test_zero_padding_changes_the_border_only(foreign):
    network, image = small_unet(blocks=2, padding=1).double(), torch.rand(1, 3, 32, 32, dtype=torch.float64)
    partial, plain = foreign.run(network, image, torch.ones(1, 1, 32, 32)), network(image)
    # Two convolutions: 2 pixels. Half the size: 1, and two more: 3. Twice the size: 6, and two more: 8.
    inside = (..., slice(8, -8), slice(8, -8))
    assert_exact(partial[inside], plain[inside])
    assert (partial - plain)[..., 0, :].abs().max() > 1e-3


def test_holes_reach_neither_output_nor_gradients(foreign):
    network, image = small_unet(padding=1), torch.rand(1, 3, 16, 16)
    mask = masks.PATTERNS["right_half"](16, 16)[None, None].float()
    results = []
    for value in (0.0, float("nan")):
        network.zero_grad()
        output = foreign.run(network, image.masked_fill(mask == 0, value), mask)
        output.square().sum().backward()
        results.append([output.detach(), *(p.grad.clone() for p in network.parameters())])
    assert all(torch.equal(zeros, nans) for zeros, nans in zip(*results, strict=True))
    assert all(torch.isfinite(t).all() and t.any() for t in results[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(pooling_type="avg"), "no rule for masks in avg_pool2d; only in .*'conv2d'"),
        (dict(upsampling_type="linear"), "no rule for masks in interpolate"),
    ],
    ids=["average pooling", "bilinear upsampling"],
)
def test_functions_without_a_rule_are_refused(foreign, options, message):
    with pytest.raises(TypeError, match=message):
        foreign.run(small_unet(padding=1, **options), torch.rand(1, 3, 16, 16), torch.ones(1, 1, 16, 16))


def test_upsampling_leaves_holes_zero(foreign):
    mask = masks.PATTERNS["checkerboard"](4, 4)[None, None].float()
    output = foreign.run(torch.nn.ConvTranspose2d(3, 2, 2, stride=2), torch.rand(1, 3, 4, 4), mask)
    assert torch.equal(output != 0, (mask != 0).repeat_interleave(2, 2).repeat_interleave(2, 3).expand(-1, 2, -1, -1))


def test_overlapping_upsampling_is_refused(foreign):
    layer = torch.nn.ConvTranspose2d(3, 3, 4, stride=2, padding=1)
    with pytest.raises(TypeError, match="only where kernel = stride"):
        foreign.run(layer, torch.rand(1, 3, 8, 8), torch.ones(1, 1, 8, 8))


def test_foreign_network_script_learns(foreign, capsys):
    foreign.main()
    printed = capsys.readouterr().out
    assert "the output is the same" in printed
    first, last = map(float, re.search(r"loss (\S+) in the first step, (\S+) in", printed).groups())
    assert last < first / 2
