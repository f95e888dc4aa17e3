"""partial_conv2d in every dtype, by the criterion of the table of tolerances."""

import pytest
import torch

from msa_ops import partial_conv2d

from ..support import definition, masks
from ..support.compare import assert_call_accurate
from ..support.layouts import LAYOUTS
from ..support.tolerances import assert_rounded_once
from .calls import NAMES, make, runner

HALVES = [torch.float16, torch.bfloat16]
DTYPES = [torch.float32, *HALVES]


@pytest.mark.parametrize("form", ["plane", "channels", "grouped"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("stride", "groups"), [(1, 1), (2, 2)])
def test_output_and_gradients(native, dtype, form, stride, groups):
    for layout in ("contiguous", "channels_last", "every_second_channel_of_channels_last"):
        x, weight, bias = make(2, 8, 13, 12, 6, groups=groups, dtype=dtype, device=native)
        x = LAYOUTS[layout](x)
        mask, _ = masks.in_form(form, masks.random_plane(0.3, 2, 13, 12).to(native), 8)
        run = runner(mask, stride, 1, 1, groups)
        upstream = torch.randn_like(run("reference")(x, weight, bias))
        assert_call_accurate(run, upstream, (x, weight, bias), NAMES, native)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("form", masks.FORMS)
def test_half_types_are_rounded_once(backend, device, form, dtype):
    """Small integers convolve exactly, so what is left is the rounding of the result: the ratio must not be rounded."""
    x, weight, bias = (t.clamp(-2, 2).round().to(dtype) for t in make(device=device))
    mask, full = masks.in_form(form, masks.random_plane(0.6, 2, 7, 6).to(device), 3)
    output, _ = partial_conv2d(x, mask, weight, bias, padding=1, backend=backend)
    assert_rounded_once(output, definition.partial_conv2d(x, full, weight, bias, padding=(1, 1)).output)


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("form", ["plane", "channels_expanded", "grouped"])
def test_no_mask_makes_nan_or_inf_of_large_features(backend, device, form, dtype):
    """1000 everywhere under a 7×7 kernel of ones: whatever the mask, the renormalised sum is 49,000, of 65,504."""
    for name in masks.NAMES:
        x = torch.full((3, 1, 8, 9), 1000.0, dtype=dtype, device=device).requires_grad_()
        weight = torch.ones(2, 1, 7, 7, dtype=dtype, device=device).requires_grad_()
        mask, _ = masks.in_form(form, masks.plane(name, 3, 8, 9).to(device), 1)
        output, new_mask = partial_conv2d(x, mask, weight, padding=3, backend=backend)
        output.backward(torch.ones_like(output))
        wanted = torch.where(new_mask, 49000.0, 0.0).double().expand_as(output)
        # convolution and result are rounded once each
        assert (output.double() - wanted).abs().max() <= 2 * torch.finfo(dtype).eps * 49000, name
        assert torch.isfinite(x.grad).all(), name
        # 1000 · 49 · pixels may exceed float16
        assert torch.isfinite(weight.grad.float()).all() or dtype == torch.float16, name
