"""What partial_conv2d makes of masks: nothing leaks from under a hole, any dtype counts, empty batches pass."""

import itertools

import pytest
import torch

from msa_ops import partial_conv2d

from ..support import masks
from ..support.compare import everything
from ..support.layouts import LAYOUTS
from .calls import make, runner


@pytest.mark.parametrize("form", masks.FORMS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_what_lies_under_a_hole_does_not_leak(backend, device, layout, dtype, form):
    x, weight, bias = make(3, dtype=dtype, device=device)
    mask, full = masks.in_form(form, masks.plane("mixed", 3, 7, 6).to(device), 3)
    run, upstream = runner(mask, 1, 1)(backend), torch.randn(3, 4, 7, 6, dtype=dtype, device=device)
    clean = everything(run, upstream, LAYOUTS[layout](torch.where(full, x, 0.0)), weight, bias)
    assert not clean[1][~full.expand_as(x)].any(), "a hole has a gradient"
    for poison in (float("nan"), float("inf"), float("-inf")):
        poisoned = LAYOUTS[layout](torch.where(full, x, poison))
        assert not torch.isfinite(poisoned).all()
        for want, got in zip(clean, everything(run, upstream, poisoned, weight, bias), strict=True):
            assert torch.equal(want, got)


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
    run = runner(mask, 1, 1)(backend)
    clean = everything(run, upstream.nan_to_num(0.0), x, weight, bias)
    for want, got in zip(clean, everything(run, upstream, x, weight, bias), strict=True):
        assert torch.equal(want, got)


MASK_DTYPES = [torch.bool, torch.uint8, torch.float64, torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", MASK_DTYPES, ids=str)
def test_any_nonzero_is_valid_and_new_mask_keeps_the_dtype(backend, device, dtype):
    x, weight, bias = make(3, device=device)
    truth = masks.plane("mixed", 3, 7, 6).to(device)
    values = itertools.cycle(
        [1.0] if dtype == torch.bool else [3.0, 255.0] if dtype == torch.uint8 else [-1.0, 0.25, 7]
    )
    some = torch.tensor([next(values) for _ in range(truth.numel())], device=device).view_as(truth)
    for form in masks.FORMS:
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


@pytest.mark.parametrize("name", ["mixed", "all_hole", "all_valid"])
def test_an_input_said_to_be_masked_gives_the_same_numbers(backend, device, name):
    x, weight, bias = make(3, device=device)
    for form in masks.FORMS:
        mask, full = masks.in_form(form, masks.plane(name, 3, 7, 6).to(device), 3)
        clean = torch.where(full, x, 0.0)
        ours, new_mask = partial_conv2d(clean, mask, weight, bias, padding=1, input_is_masked=True, backend=backend)
        wanted, wanted_mask = partial_conv2d(clean, mask, weight, bias, padding=1, backend=backend)
        assert torch.equal(ours, wanted)
        assert torch.equal(new_mask, wanted_mask)
