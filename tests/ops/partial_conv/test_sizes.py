"""The passes around the convolution (x ⊙ m, Eq. 2, its gradient, the decoder's maps and weights) at the sizes and
layouts where kernels change their way: whole packs and tails, several blocks and one, tiles that do not fit."""

import pytest
import torch

from msa_ops import partial_conv2d, partial_conv2d_upcat

from . import definition, masks
from .helpers import FORMS, LAYOUTS, force_form, gradients
from .tolerances import assert_accurate, assert_exact

DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
#: (N, C, H, W), C_out: whole packs and tails of channels and columns; one pixel; more channels than a block takes at
#: once, in groups that divide them evenly and not; more pixels than one block takes.
SIZES = [
    ((2, 8, 5, 16), 16),
    ((2, 3, 33, 9), 3),
    ((3, 24, 1, 1), 40),
    ((1, 8, 3, 3), 264),
    ((1, 3, 8, 8), 520),
    ((2, 5, 70, 67), 8),
    ((1, 1, 130, 96), 24),
]


def make(shape, c_out, dtype, device, layout="channels_last", kernel=1):
    x, weight = torch.randn(shape, device=device), torch.randn(c_out, shape[1], kernel, kernel, device=device)
    leaves = LAYOUTS[layout](x.to(dtype)), weight.to(dtype), torch.randn(c_out, device=device).to(dtype)
    return leaves, masks.random_plane(0.7, shape[0], *shape[2:]).to(device)


def compare(run, upstream, leaves, what):
    """Output and gradients by the one criterion; float64 against the reference alone."""
    ours, plain = (gradients(run(backend), upstream, *leaves) for backend in (leaves[0].device.type, "reference"))
    exact = gradients(run("reference"), upstream, *(t.double() for t in leaves))
    assert_accurate(ours[0], plain[0], exact[0])
    for name, *values in zip(what, ours[1], plain[1], exact[1], strict=True):
        assert_accurate(*values, backward=True, what=f"gradient of {name}")


@DTYPES
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "cropped_channels_last", "every_second_pixel"])
@pytest.mark.parametrize(("shape", "c_out"), SIZES, ids=str)
def test_every_size_and_layout(native, shape, c_out, layout, dtype):
    leaves, mask = make(shape, c_out, dtype, native, layout)
    upstream = LAYOUTS[layout](torch.randn(shape[0], c_out, *shape[2:], device=native).to(dtype))
    compare(
        lambda backend: lambda *leaves: partial_conv2d(leaves[0], mask, *leaves[1:], backend=backend)[0],
        upstream,
        leaves,
        ("input", "weight", "bias"),
    )


@DTYPES
@pytest.mark.parametrize("upstream_layout", [*LAYOUTS, "expanded"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_an_upstream_gradient_of_any_layout(native, layout, upstream_layout, dtype):
    leaves, mask = make((2, 3, 9, 8), 16, dtype, native, layout)
    upstream = torch.randn(2, 16, 9, 8, device=native).to(dtype)
    if upstream_layout == "expanded":
        upstream = upstream[:1, :1, :1, :1].expand(2, 16, 9, 8)
    else:
        upstream = LAYOUTS[upstream_layout](upstream)
    compare(
        lambda backend: lambda *leaves: partial_conv2d(leaves[0], mask, *leaves[1:], backend=backend)[0],
        upstream,
        leaves,
        ("input", "weight", "bias"),
    )


@pytest.mark.parametrize("first", [0, 1, 8])
def test_channels_and_a_bias_that_start_anywhere(native, first):
    """Packs of 16 bytes need aligned maps; slices of a wider map are not always."""
    wide = torch.randn(2, 17, 6, 5, device=native).to(torch.bfloat16, memory_format=torch.channels_last)
    x, bias = wide[:, first : first + 8], torch.randn(25, device=native).bfloat16()[first : first + 16]
    weight, mask = torch.randn(16, 8, 3, 3, device=native).bfloat16(), masks.random_plane(0.5, 2, 6, 5).to(native)
    output, _ = partial_conv2d(x, mask, weight, bias, padding=1, backend=native)
    wanted, _ = partial_conv2d(x.clone(), mask, weight, bias.clone(), padding=1, backend=native)
    assert torch.equal(output, wanted)


@DTYPES
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    ("channels", "side", "images"), [(64, 96, 2), (3, 200, 1), (512, 4, 3), (512, 1, 2), (8, 37, 1), (1, 300, 1)]
)
def test_bias_gradients_of_large_and_tiny_maps(native, channels, side, images, layout, dtype):
    """Each is the exact sum over the valid positions to the last digits of the type, whatever the order of addition;
    what an upstream gradient holds elsewhere does not count."""
    x = LAYOUTS[layout](torch.zeros(images, 1, side, side, dtype=dtype, device=native))
    mask = masks.random_plane(0.6, images, side, side).to(native)
    weight = torch.zeros(channels, 1, 1, 1, dtype=dtype, device=native)
    bias = torch.zeros(channels, dtype=dtype, device=native, requires_grad=True)
    upstream = (torch.rand(images, channels, side, side, device=native) + 0.5).to(dtype)
    upstream = LAYOUTS[layout](torch.where(mask, upstream, torch.nan))
    partial_conv2d(x, mask, weight, bias, backend=native)[0].backward(upstream)
    exact = torch.where(mask, upstream, 0).double().sum((0, 2, 3))
    error = (bias.grad.double() - exact).abs().max()
    assert error <= max(0.51 * torch.finfo(dtype).eps, 1e-13 if dtype == torch.float64 else 1e-6) * exact.max()


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding", "dilation"),
    [
        ((75, 70), 7, 2, 3, 1),
        ((75, 70), 5, 2, 2, 1),
        ((75, 70), 3, 1, 1, 1),
        ((40, 37), (3, 5), (2, 1), (1, 2), (1, 3)),
        ((9, 200), (1, 7), 1, (0, 3), 1),
        ((64, 64), 2, 40, 30, 7),  # strides beyond the window
        ((150, 160), 3, 1, 50, 64),  # tiles of one output
        ((230, 230), 2, 5, 0, 200),  # no tile at all
    ],
    ids=str,
)
@pytest.mark.parametrize("form", ["plane", "channels", "grouped", "batch_expanded"])
def test_window_sums_of_every_tile(native, form, size, kernel, stride, padding, dilation):
    x = torch.randn(2, 3, *size, dtype=torch.float64, device=native)
    kernels = (kernel, kernel) if isinstance(kernel, int) else kernel
    weight = torch.randn(2, 3, *kernels, dtype=torch.float64, device=native)
    mask, full = masks.in_form(form, masks.random_plane(0.1, 2, *size).to(native), 3)
    geometry = stride, padding, dilation
    ours, new_mask = partial_conv2d(x, mask, weight, None, *geometry, backend=native)
    wanted, wanted_mask = partial_conv2d(x, full, weight, None, *geometry, backend="reference")
    assert_exact(ours, wanted)
    assert torch.equal(new_mask, wanted_mask)


#: low (N, C1, h, w), channels of skip, C_out: whole packs, tails in either map, one pixel, a map of several blocks.
DECODERS = [
    ((2, 16, 3, 5), 8, 16),
    ((2, 3, 4, 3), 8, 8),
    ((2, 8, 5, 4), 3, 3),
    ((3, 24, 1, 1), 40, 8),
    ((1, 8, 40, 33), 8, 8),
]


@DTYPES
@pytest.mark.parametrize("low_layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "cropped_channels_last"])
@pytest.mark.parametrize("weight_layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("shape", "c2", "c_out"), DECODERS, ids=str)
def test_every_decoder(native, shape, c2, c_out, form, weight_layout, layout, low_layout, dtype, monkeypatch):
    force_form(monkeypatch, form)
    n, c1, h, w = shape
    low, skip = torch.randn(shape, device=native), torch.randn(n, c2, 2 * h, 2 * w, device=native)
    weight = torch.randn(c_out, c1 + c2, 3, 3, device=native)
    leaves = (
        LAYOUTS[low_layout](low.to(dtype)),
        LAYOUTS[layout](skip.to(dtype)),
        LAYOUTS[weight_layout](weight.to(dtype)),
        torch.randn(c_out, device=native).to(dtype),
    )
    low_mask, skip_mask = masks.random_plane(0.7, n, h, w).to(native), masks.random_plane(0.6, *skip[:, 0].shape)
    upstream = torch.randn(n, c_out, 2 * h, 2 * w, device=native)

    def run(backend):
        def call(low, skip, weight, bias):
            return partial_conv2d_upcat(low, low_mask, skip, skip_mask.to(native), weight, bias, backend=backend)[0]

        return call

    compare(run, upstream, leaves, ("low", "skip", "weight", "bias"))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("wanted", [(True, False), (False, True)], ids=["low", "skip"])
@pytest.mark.parametrize("channels", [(3, 2), (8, 8)], ids=str)
def test_one_map_of_a_decoder_alone(native, channels, wanted, form, monkeypatch):
    force_form(monkeypatch, form)
    low, skip = (
        torch.randn(2, c, s, s, dtype=torch.float64, device=native).to(memory_format=torch.channels_last)
        for c, s in zip(channels, (3, 6), strict=True)
    )
    weight = torch.randn(8, sum(channels), 3, 3, dtype=torch.float64, device=native)
    low_mask, skip_mask = masks.plane("checkerboard", 2, 3, 3).to(native), masks.plane("mixed", 2, 6, 6).to(native)

    def run(low, skip):
        return partial_conv2d_upcat(low, low_mask, skip, skip_mask, weight, backend=native)[0]

    upstream = torch.randn_like(run(low, skip))
    both = gradients(run, upstream, low, skip)[1]
    leaves = [t.detach().requires_grad_(flag) for t, flag in zip((low, skip), wanted, strict=True)]
    run(*leaves).backward(upstream)
    for leaf, flag, want in zip(leaves, wanted, both, strict=True):
        assert (leaf.grad is not None) == flag
        if flag:
            assert_exact(leaf.grad, want)


def test_the_forms_agree_with_the_definition_where_masks_differ(native, monkeypatch):
    low, skip = (torch.randn(2, 8, s, s, dtype=torch.float64, device=native) for s in (9, 18))
    weight = torch.randn(8, 16, 3, 3, dtype=torch.float64, device=native)
    low_mask, skip_mask = masks.random_plane(0.3, 2, 9, 9).to(native), masks.random_plane(0.2, 2, 18, 18).to(native)
    exact, exact_mask = definition.partial_conv2d_upcat(low, low_mask, skip, skip_mask, weight)
    for form in FORMS:
        force_form(monkeypatch, form)
        output, new_mask = partial_conv2d_upcat(low, low_mask, skip, skip_mask, weight, backend=native)
        assert_exact(output, exact)
        assert torch.equal(new_mask.cpu(), exact_mask)
