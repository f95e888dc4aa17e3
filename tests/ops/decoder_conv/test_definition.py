"""partial_conv2d_upcat: the decoder form, both through the four phases and through the concatenation of small maps."""

import pytest
import torch

from msa_ops import partial_conv2d, partial_conv2d_upcat

from ..support import definition, masks
from ..support.compare import assert_call_accurate, gradients
from ..support.tolerances import assert_exact, assert_rounded_once
from ..support.upcat import FORMS, upcat
from .calls import NAMES, make, make_masks, runner


@pytest.fixture(params=FORMS)
def form(request):
    """Both forms at sizes where the rule would pick one of them."""
    return request.param


def operator(low_mask, skip_mask, backend, form, **options):
    return runner(form, low_mask, skip_mask, **options)(backend)


# ---- the definition ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low_name", "skip_name"),
    [(name, name) for name in masks.NAMES]
    + [("all_valid", "all_hole"), ("all_hole", "all_valid"), ("mixed", "one_hole_row")],
)
def test_every_mask(backend, device, low_name, skip_name):
    leaves = low, skip, weight, bias = make(3, device=device)
    low_mask, skip_mask = make_masks(low_name, skip_name, 3, device=device)
    for scale in ("window", "sum"):
        exact = definition.partial_conv2d_upcat(low, low_mask, skip, skip_mask, weight, bias, scale)
        for form in FORMS:
            output, new_mask = upcat(form, low, low_mask, skip, skip_mask, *leaves[2:], scale=scale, backend=backend)
            assert_exact(output, exact.output, exact.magnitude, what=f"output, {scale}, {form}")
            assert torch.equal(new_mask.cpu(), exact.new_mask)


def test_is_the_partial_convolution_of_the_concatenation(backend, device, form):
    low, skip, weight, bias = make(device=device)
    low_mask, skip_mask = make_masks("one_hole_pixel", "checkerboard", device=device)
    output, new_mask = upcat(form, low, low_mask, skip, skip_mask, weight, bias, backend=backend)
    image, full = definition.concatenated(low, low_mask, skip, skip_mask)
    grouped = [(3, full[:, :1]), (2, skip_mask)]
    wanted, wanted_mask = partial_conv2d(image, grouped, weight, bias, padding=1, backend=backend)
    assert_exact(output, wanted)
    assert torch.equal(new_mask, wanted_mask)


# ---- gradients and other dtypes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("low_name", "skip_name"), [("one_hole_pixel", "checkerboard"), ("mixed", "one_valid_row")])
def test_gradcheck(backend, device, form, low_name, skip_name):
    leaves = [t.requires_grad_() for t in make(2, 2, 2, 2, 2, 2, device=device)]
    low_mask, skip_mask = make_masks(low_name, skip_name, 2, 2, 2, device=device)
    assert torch.autograd.gradcheck(operator(low_mask, skip_mask, backend, form), leaves, fast_mode=low_name == "mixed")


@pytest.mark.parametrize(
    "wanted", range(1, 16), ids=lambda bits: "+".join(w for i, w in enumerate(NAMES) if bits >> i & 1)
)
def test_any_choice_of_wanted_gradients(native, form, wanted):
    leaves = make(device=native)
    run = operator(*make_masks("one_hole_pixel", "checkerboard", device=native), native, form)
    upstream = torch.randn_like(run(*leaves))
    all_of_them = gradients(run, upstream, *leaves)[1]
    chosen = [t.requires_grad_(bool(wanted >> i & 1)) for i, t in enumerate(leaves)]
    run(*chosen).backward(upstream)
    for i, (leaf, gradient) in enumerate(zip(chosen, all_of_them, strict=True)):
        if wanted >> i & 1:
            assert_exact(leaf.grad, gradient, what=f"gradient of {NAMES[i]}")
        else:
            assert leaf.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_output_and_gradients(native, form, dtype, layout):
    low, skip, weight, bias = make(2, 8, 5, 5, 6, 7, dtype, native)
    leaves = low.to(memory_format=layout), skip.to(memory_format=layout), weight, bias
    planes = masks.random_plane(0.4, 2, 5, 6).to(native), masks.random_plane(0.4, 2, 10, 12).to(native)
    assert_call_accurate(runner(form, *planes), torch.randn(2, 7, 10, 12, device=native), leaves, NAMES, native)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_types_are_rounded_once(backend, device, form, dtype):
    """Small integers convolve exactly, summed taps included; what is left is the rounding of the result."""
    low, skip, weight, bias = (t.clamp(-2, 2).round().to(dtype) for t in make(device=device))
    low_mask, skip_mask = make_masks("one_hole_pixel", "checkerboard", device=device)
    output, _ = upcat(form, low, low_mask, skip, skip_mask, weight, bias, backend=backend)
    assert_rounded_once(output, definition.partial_conv2d_upcat(low, low_mask, skip, skip_mask, weight, bias).output)


# ---- masks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", masks.NAMES)
def test_no_mask_makes_nan_or_inf_of_large_features(backend, device, form, name):
    """Whatever the mask, the renormalised sum of 1000s under a kernel of ones is 9 · 5 · 1000, of 65,504."""
    low, skip, weight, _ = make(3, dtype=torch.float16, device=device)
    low, skip, weight = (torch.full_like(t, v) for t, v in ((low, 1000), (skip, 1000), (weight, 1)))
    low_mask, skip_mask = make_masks(name, name, 3, device=device)
    output, new_mask = upcat(form, low, low_mask, skip, skip_mask, weight, backend=backend)
    wanted = torch.where(new_mask, 45000.0, 0.0).double().expand_as(output)
    # phases, skip part and result are rounded once each
    assert (output.double() - wanted).abs().max() <= 3 * torch.finfo(torch.float16).eps * 45000


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_what_lies_under_a_hole_does_not_leak(backend, device, form, poison):
    low, skip, weight, bias = make(device=device)
    low_mask, skip_mask = make_masks("mixed", "checkerboard", device=device)
    run = operator(low_mask, skip_mask, backend, form)
    upstream = torch.randn(2, 4, 6, 8, dtype=torch.float64, device=device)
    clean = gradients(run, upstream, torch.where(low_mask, low, 0.0), torch.where(skip_mask, skip, 0.0), weight, bias)
    dirty = gradients(
        run, upstream, torch.where(low_mask, low, poison), torch.where(skip_mask, skip, poison), weight, bias
    )
    assert torch.equal(clean[0], dirty[0])
    for want, got in zip(clean[1], dirty[1], strict=True):
        assert torch.equal(want, got)
    assert not dirty[1][0][~low_mask.expand_as(low)].any()
    assert not dirty[1][1][~skip_mask.expand_as(skip)].any()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16], ids=str)
def test_any_nonzero_is_valid_and_new_mask_has_the_dtype_of_skip_mask(backend, device, form, dtype):
    low, skip, weight, bias = make(device=device)
    low_mask, skip_mask = make_masks("one_hole_pixel", "checkerboard", device=device)
    wanted = upcat(form, low, low_mask, skip, skip_mask, weight, bias, backend=backend)
    numbers = torch.where(low_mask, 7.0, -0.0).half(), torch.where(skip_mask, 3.0, -0.0).to(dtype)
    output, new_mask = upcat(form, low, numbers[0], skip, numbers[1], weight, bias, backend=backend)
    assert torch.equal(output, wanted[0])
    assert new_mask.dtype == dtype
    assert torch.equal(new_mask, wanted[1].to(dtype))


def test_masks_expanded_over_the_batch(backend, device, form):
    low, skip, weight, bias = make(3, device=device)
    low_mask, skip_mask = (
        m[:1].expand(3, -1, -1, -1) for m in make_masks("one_hole_pixel", "right_half", 3, device=device)
    )
    output, _ = upcat(form, low, low_mask, skip, skip_mask, weight, bias, backend=backend)
    exact = definition.partial_conv2d_upcat(low, low_mask, skip, skip_mask, weight, bias)
    assert_exact(output, exact.output, exact.magnitude)


def test_an_empty_batch_gives_an_empty_result_and_zero_gradients(backend, device, form):
    leaves = [t.requires_grad_() for t in make(0, device=device)]
    low_mask, skip_mask = make_masks("all_valid", "all_valid", 0, device=device)
    output, new_mask = upcat(form, leaves[0], low_mask, leaves[1], skip_mask, *leaves[2:], backend=backend)
    assert output.shape == (0, 4, 6, 8)
    assert new_mask.shape == (0, 1, 6, 8)
    output.sum().backward()
    assert not any(t.grad.any() for t in leaves)


@pytest.mark.parametrize("flags", [(True, False), (False, True), (True, True)], ids=["low", "skip", "both"])
def test_maps_said_to_be_masked_give_the_same_numbers(backend, device, form, flags):
    low, skip, weight, bias = make(device=device)
    low_mask, skip_mask = make_masks("one_hole_pixel", "checkerboard", device=device)
    low, skip = torch.where(low_mask, low, 0.0), torch.where(skip_mask, skip, 0.0)
    told = operator(low_mask, skip_mask, backend, form, low_is_masked=flags[0], skip_is_masked=flags[1])
    assert torch.equal(
        told(low, skip, weight, bias), operator(low_mask, skip_mask, backend, form)(low, skip, weight, bias)
    )


@pytest.mark.parametrize("flags", [(True, False), (False, True), (True, True)], ids=["low", "skip", "both"])
def test_maps_said_to_be_masked_have_one_gradient(backend, device, form, flags):
    """The rule of partial_conv2d's input_is_masked: a map said to be masked has the gradient of conv(map) · E/s, the
    other one that of conv(map ⊙ mask) · E/s; whichever backend and form runs."""
    low, skip, weight, bias = make(device=device)
    low_mask, skip_mask = make_masks("one_hole_pixel", "checkerboard", device=device)
    low, skip = torch.where(low_mask, low, 0.0), torch.where(skip_mask, skip, 0.0)
    run = operator(low_mask, skip_mask, backend, form, low_is_masked=flags[0], skip_is_masked=flags[1])
    upstream = torch.randn(2, 4, 6, 8, dtype=torch.float64, device=device)

    def stated(low, skip, weight, bias):
        low, skip = low if flags[0] else low * low_mask, skip if flags[1] else skip * skip_mask
        image, full = definition.concatenated(low, low_mask, skip, skip_mask)
        options = {"padding": 1, "input_is_masked": True, "backend": "reference"}
        return partial_conv2d(image, full, weight, bias, **options)[0]

    leaves = low, skip, weight, bias
    ours, wanted = gradients(run, upstream, *leaves)[1], gradients(stated, upstream, *leaves)[1]
    for what, got, want in zip(NAMES, ours, wanted, strict=True):
        assert_exact(got, want, what=f"gradient of {what}")


@pytest.mark.parametrize("stride", [0, 2])
def test_a_bias_with_gaps(stride, backend, device):
    low, skip, weight, bias = make(device=device)
    planes = make_masks("mixed", "mixed", device=device)
    wide = torch.randn(2 * len(bias), dtype=bias.dtype, device=device)
    bias = wide.as_strided(bias.shape, (stride,))
    ours, dense = (
        partial_conv2d_upcat(low, planes[0], skip, planes[1], weight, b, backend=backend) for b in (bias, bias.clone())
    )
    assert torch.equal(ours[0], dense[0])
