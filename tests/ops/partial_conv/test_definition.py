"""partial_conv2d: its numbers against the definition in loops, and against plain PyTorch by the criterion."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from msa_ops import partial_conv2d

from . import definition, masks
from .helpers import LAYOUTS, gradients
from .tolerances import assert_accurate, assert_exact, assert_rounded_once

HALVES = [torch.float16, torch.bfloat16]
DTYPES = [torch.float32, *HALVES]


def make(n=2, c=3, h=7, w=6, c_out=4, kernel=(3, 3), groups=1, dtype=torch.float64, device="cpu"):
    """Input, weight and bias; sizes differ from one another so that a swapped axis shows."""
    x = torch.randn(n, c, h, w, dtype=dtype, device=device)
    weight = torch.randn(c_out, c // groups, *kernel, dtype=dtype, device=device)
    return x, weight, torch.randn(c_out, dtype=dtype, device=device)


# ---- the definition ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", ["window", "sum"])
@pytest.mark.parametrize("form", masks.FORMS)
@pytest.mark.parametrize("name", masks.NAMES)
def test_every_mask_equals_the_definition(backend, device, name, form, scale):
    x, weight, bias = make(n=3, h=6, w=5, device=device)
    mask, full = masks.in_form(form, masks.plane(name, 3, 6, 5).to(device), 3)
    output, new_mask = partial_conv2d(x, mask, weight, bias, 1, 1, scale=scale, backend=backend)
    exact, exact_mask = definition.partial_conv2d(x, full, weight, bias, padding=(1, 1), scale=scale)
    assert_exact(output, exact)
    assert torch.equal(new_mask.cpu(), exact_mask)
    assert new_mask.shape == (3, 1, 6, 5)
    assert new_mask.dtype == torch.bool


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation", "groups"),
    [
        ((1, 1), 1, 0, 1, 1),
        ((1, 1), 2, 1, 1, 2),  # windows wholly in the padding
        ((2, 2), 2, 0, 1, 1),
        ((3, 3), 2, 1, 1, 2),
        ((3, 3), 1, 2, 2, 4),  # depthwise
        ((5, 5), 2, 2, 1, 1),
        ((7, 7), 2, 3, 1, 1),
        ((3, 3), 3, 5, 1, 1),  # padding wider than the kernel
        ((1, 3), (2, 1), (0, 1), (1, 2), 2),
        ((4, 2), (1, 3), (3, 0), (2, 1), 1),
        ((8, 9), 1, 0, 1, 1),  # the kernel is the whole map
    ],
)
@pytest.mark.parametrize("form", ["plane", "channels", "grouped"])
def test_every_geometry_equals_the_definition(backend, device, form, kernel, stride, padding, dilation, groups):
    x, weight, bias = make(2, 4, 8, 9, 8, kernel, groups, device=device)
    mask, full = masks.in_form(form, masks.random_plane(0.4, 2, 8, 9).to(device), 4)
    output, new_mask = partial_conv2d(x, mask, weight, bias, stride, padding, dilation, groups, backend=backend)
    pairs = [v if isinstance(v, tuple) else (v, v) for v in (stride, padding, dilation)]
    exact, exact_mask = definition.partial_conv2d(x, full, weight, bias, *pairs, groups)
    assert_exact(output, exact)
    assert torch.equal(new_mask.cpu(), exact_mask)


@pytest.mark.parametrize("form", ["plane", "channels", "grouped"])
@pytest.mark.parametrize(("kernel", "dilation"), [((3, 3), 1), ((2, 2), 1), ((4, 3), 1), ((3, 2), 3), ((1, 1), 1)])
def test_same_padding_equals_the_definition(backend, device, kernel, dilation, form):
    x, weight, bias = make(kernel=kernel, device=device)
    mask, full = masks.in_form(form, masks.random_plane(0.4, 2, 7, 6).to(device), 3)
    output, new_mask = partial_conv2d(x, mask, weight, bias, 1, "same", dilation, backend=backend)
    totals = [dilation * (k - 1) for k in kernel]
    padding = [(total // 2, total - total // 2) for total in totals]  # the odd one goes to the end, as in conv2d
    exact, exact_mask = definition.partial_conv2d(x, full, weight, bias, padding=padding, dilation=(dilation,) * 2)
    assert output.shape[2:] == x.shape[2:]
    assert_exact(output, exact)
    assert torch.equal(new_mask.cpu(), exact_mask)


def test_valid_padding_is_none(backend, device):
    x, weight, bias = make(device=device)
    mask = masks.random_plane(0.5, 2, 7, 6).to(device)
    ours = partial_conv2d(x, mask, weight, bias, 2, "valid", backend=backend)
    exact, exact_mask = definition.partial_conv2d(x, mask, weight, bias, (2, 2))
    assert_exact(ours[0], exact)
    assert torch.equal(ours[1].cpu(), exact_mask)


@pytest.mark.parametrize("padding", [0, "same"])
def test_without_holes_it_is_a_convolution(backend, device, padding):
    x, weight, bias = make(kernel=(2, 3), device=device)
    ones = torch.ones(2, 1, 7, 6, device=device)
    output = partial_conv2d(x, ones, weight, bias, padding=padding, backend=backend)[0]
    plain = F.conv2d(x, weight, bias, padding=padding)
    inside = (..., slice(0, 6), slice(1, 5)) if padding == "same" else ...  # windows that reach over no border
    assert_exact(output[inside], plain[inside])


# ---- other dtypes, by the criterion --------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "every_second_channel_of_channels_last"])
@pytest.mark.parametrize("form", ["plane", "channels", "grouped"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("stride", "groups"), [(1, 1), (2, 2)])
def test_as_accurate_as_plain_pytorch(native, dtype, form, layout, stride, groups):
    x, weight, bias = make(2, 8, 13, 12, 6, groups=groups, dtype=dtype, device=native)
    x = LAYOUTS[layout](x)
    mask, _ = masks.in_form(form, masks.random_plane(0.3, 2, 13, 12).to(native), 8)

    def run(backend):
        return lambda *leaves: partial_conv2d(leaves[0], mask, *leaves[1:], stride, 1, 1, groups, backend=backend)[0]

    upstream = torch.randn_like(run("reference")(x, weight, bias))
    ours = gradients(run(native), upstream, x, weight, bias)
    plain = gradients(run("reference"), upstream, x, weight, bias)
    exact = gradients(run("reference"), upstream, x.double(), weight.double(), bias.double())
    assert_accurate(ours[0], plain[0], exact[0])
    for i, what in enumerate(("input", "weight", "bias")):
        assert_accurate(ours[1][i], plain[1][i], exact[1][i], backward=True, what=f"gradient of {what}")


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("form", masks.FORMS)
def test_half_types_are_rounded_once(backend, device, form, dtype):
    """Small integers convolve exactly, so what is left is the rounding of the result: the ratio must not be rounded."""
    x, weight, bias = (t.clamp(-2, 2).round().to(dtype) for t in make(device=device))
    mask, full = masks.in_form(form, masks.random_plane(0.6, 2, 7, 6).to(device), 3)
    output, _ = partial_conv2d(x, mask, weight, bias, padding=1, backend=backend)
    assert_rounded_once(output, definition.partial_conv2d(x, full, weight, bias, padding=(1, 1))[0])


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("form", ["plane", "channels_expanded", "grouped"])
@pytest.mark.parametrize("name", masks.NAMES)
def test_no_mask_makes_nan_or_inf_of_large_features(backend, device, name, form, dtype):
    """1000 everywhere under a 7×7 kernel of ones: whatever the mask, the renormalised sum is 49,000, of 65,504."""
    x = torch.full((3, 1, 8, 9), 1000.0, dtype=dtype, device=device).requires_grad_()
    weight = torch.ones(2, 1, 7, 7, dtype=dtype, device=device).requires_grad_()
    mask, _ = masks.in_form(form, masks.plane(name, 3, 8, 9).to(device), 1)
    output, new_mask = partial_conv2d(x, mask, weight, padding=3, backend=backend)
    output.backward(torch.ones_like(output))
    wanted = torch.where(new_mask, 49000.0, 0.0).double().expand_as(output)
    # convolution and result are rounded once each
    assert (output.double() - wanted).abs().max() <= 2 * torch.finfo(dtype).eps * 49000
    assert torch.isfinite(x.grad).all()
    assert torch.isfinite(weight.grad.float()).all() or dtype == torch.float16  # 1000 · 49 · pixels may exceed fp16


# ---- masks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", masks.FORMS)
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_what_lies_under_a_hole_does_not_leak(backend, device, layout, dtype, poison, form):
    x, weight, bias = make(3, dtype=dtype, device=device)
    mask, full = masks.in_form(form, masks.plane("mixed", 3, 7, 6).to(device), 3)
    poisoned = LAYOUTS[layout](torch.where(full, x, poison))
    assert not torch.isfinite(poisoned).all()

    def run(*leaves):
        return partial_conv2d(leaves[0], mask, *leaves[1:], padding=1, backend=backend)[0]

    upstream = torch.randn(3, 4, 7, 6, dtype=dtype, device=device)
    clean = gradients(run, upstream, LAYOUTS[layout](torch.where(full, x, 0.0)), weight, bias)
    dirty = gradients(run, upstream, poisoned, weight, bias)
    assert torch.equal(clean[0], dirty[0])
    for want, got in zip(clean[1], dirty[1], strict=True):
        assert torch.equal(want, got)
    assert not dirty[1][0][~full.expand_as(x)].any(), "a hole has a gradient"


def test_nan_under_a_valid_pixel_is_kept(backend, device):
    x, weight, bias = make(device=device)
    x[0, 0, 3, 3] = float("nan")
    output = partial_conv2d(x, torch.ones(2, 1, 7, 6, device=device), weight, bias, padding=1, backend=backend)[0]
    assert output[0, :, 2:5, 2:5].isnan().all()
    assert output.isnan().sum() == 4 * 9


def test_upstream_nan_where_no_window_was_valid_does_not_leak(backend, device):
    x, weight, bias = make(device=device)
    mask = masks.plane("one_valid_row", 2, 7, 6).to(device)
    new_mask = partial_conv2d(x, mask, weight, padding=1)[1]
    upstream = torch.where(new_mask, 1.0, float("nan")).double().expand(2, 4, 7, 6)

    def run(*leaves):
        return partial_conv2d(leaves[0], mask, *leaves[1:], padding=1, backend=backend)[0]

    want = gradients(run, upstream.nan_to_num(0.0), x, weight, bias)[1]
    for clean, dirty in zip(want, gradients(run, upstream, x, weight, bias)[1], strict=True):
        assert torch.equal(clean, dirty)


MASK_DTYPES = [torch.bool, torch.uint8, torch.float64, torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("form", masks.FORMS)
@pytest.mark.parametrize("dtype", MASK_DTYPES, ids=str)
def test_any_nonzero_is_valid_and_new_mask_keeps_the_dtype(backend, device, dtype, form):
    x, weight, bias = make(3, device=device)
    truth = masks.plane("mixed", 3, 7, 6).to(device)
    values = itertools.cycle(
        [1.0] if dtype == torch.bool else [3.0, 255.0] if dtype == torch.uint8 else [-1.0, 0.25, 7]
    )
    some = torch.tensor([next(values) for _ in range(truth.numel())], device=device).view_as(truth)
    mask, _ = masks.in_form(form, torch.where(truth, some, -0.0).to(dtype), 3)  # -0.0 is 0: a hole
    wanted = partial_conv2d(x, masks.in_form(form, truth, 3)[0], weight, bias, padding=1, backend=backend)
    output, new_mask = partial_conv2d(x, mask, weight, bias, padding=1, backend=backend)
    assert torch.equal(output, wanted[0])
    assert new_mask.dtype == dtype
    assert torch.equal(new_mask, wanted[1].to(dtype))  # 0 and 1, whatever the values were


@pytest.mark.parametrize("form", masks.FORMS)
def test_an_empty_batch_gives_an_empty_result_and_zero_gradients(backend, device, form):
    x, weight, bias = (t.requires_grad_() for t in make(0, device=device))
    mask, _ = masks.in_form(form, torch.zeros(0, 1, 7, 6, device=device), 3)
    output, new_mask = partial_conv2d(x, mask, weight, bias, 2, 1, backend=backend)
    assert output.shape == (0, 4, 4, 3)
    assert new_mask.shape == (0, 1, 4, 3)
    output.sum().backward()
    assert x.grad.shape == x.shape
    assert not weight.grad.any()
    assert not bias.grad.any()
