"""The passes around the convolution (x ⊙ m, Eq. 2, its gradient) at the sizes and layouts where kernels change their
way: whole packs and tails, several blocks and one, tiles that do not fit."""

import pytest
import torch

from msa_ops import partial_conv2d

from ..support import masks
from ..support.compare import assert_call_accurate
from ..support.layouts import LAYOUTS
from ..support.tolerances import assert_exact
from .calls import NAMES, runner

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


@DTYPES
@pytest.mark.parametrize(("shape", "c_out"), SIZES, ids=str)
def test_every_size_and_layout(native, shape, c_out, dtype):
    for layout in ("contiguous", "channels_last", "cropped_channels_last", "every_second_pixel"):
        leaves, mask = make(shape, c_out, dtype, native, layout)
        upstream = LAYOUTS[layout](torch.randn(shape[0], c_out, *shape[2:], device=native).to(dtype))
        assert_call_accurate(runner(mask), upstream, leaves, NAMES, native)


@DTYPES
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_an_upstream_gradient_of_any_layout(native, layout, dtype):
    leaves, mask = make((2, 3, 9, 8), 16, dtype, native, layout)
    upstream = torch.randn(2, 16, 9, 8, device=native).to(dtype)
    for change in (*LAYOUTS.values(), lambda t: t[:1, :1, :1, :1].expand(2, 16, 9, 8)):
        assert_call_accurate(runner(mask), change(upstream), leaves, NAMES, native)


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
def test_window_sums_of_every_tile(native, size, kernel, stride, padding, dilation):
    x = torch.randn(2, 3, *size, dtype=torch.float64, device=native)
    kernels = (kernel, kernel) if isinstance(kernel, int) else kernel
    weight = torch.randn(2, 3, *kernels, dtype=torch.float64, device=native)
    geometry = stride, padding, dilation
    for form in ("plane", "channels", "grouped", "batch_expanded"):
        mask, full = masks.in_form(form, masks.random_plane(0.1, 2, *size).to(native), 3)
        ours, new_mask = partial_conv2d(x, mask, weight, None, *geometry, backend=native)
        wanted, wanted_mask = partial_conv2d(x, full, weight, None, *geometry, backend="reference")
        magnitude, _ = partial_conv2d(x.abs(), full, weight.abs(), None, *geometry, backend="reference")
        assert_exact(ours, wanted, magnitude)
        assert torch.equal(new_mask, wanted_mask)
