"""partial_conv2d and _upcat: layouts, repeatability, unwritten memory, and what is allocated."""

import math

import pytest
import torch
import torch.nn.functional as F

from msa_ops import partial_conv2d, partial_conv2d_upcat

from . import masks
from .helpers import EXPANDED, LAYOUTS, allocations, ancestors, force_form, gradients, profiled
from .tolerances import absolute_term, assert_exact, max_error

FORMATS = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)


def make(n=2, c=3, h=7, w=6, c_out=4, dtype=torch.float64, device="cpu"):
    options = {"dtype": dtype, "device": device}
    return torch.randn(n, c, h, w, **options), torch.randn(c_out, c, 3, 3, **options), torch.randn(c_out, **options)


def runner(mask, **options):
    return lambda x, weight, bias: partial_conv2d(x, mask, weight, bias, padding=1, **options)[0]


# ---- layouts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["plane", "channels", "channels_expanded", "grouped"])
@pytest.mark.parametrize("name", ["mixed", "all_valid"])
@pytest.mark.parametrize("layout", [*LAYOUTS, *EXPANDED])
def test_every_layout_gives_the_numbers_of_a_contiguous_tensor(native, layout, name, form):
    x, weight, bias = make(3, device=native)
    x = (LAYOUTS | EXPANDED)[layout](x)
    run = runner(masks.in_form(form, masks.plane(name, 3, 7, 6).to(native), 3)[0], backend=native)
    upstream = LAYOUTS.get(layout, torch.Tensor.contiguous)(torch.randn(3, 4, 7, 6, dtype=x.dtype, device=native))
    leaf = x.detach().requires_grad_()  # not a clone, which would be dense
    output = run(leaf, weight, bias)
    output.backward(upstream)
    wanted, (wanted_grad, _, _) = gradients(run, upstream.contiguous(), x.contiguous(), weight, bias)
    assert_exact(output, wanted)
    assert_exact(leaf.grad, wanted_grad, what="gradient of input")


@pytest.mark.parametrize("form", ["plane", "channels"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_the_mask_gives_the_same_numbers(native, layout, form):
    x, weight, bias = make(3, device=native)
    plane = masks.in_form(form, masks.plane("mixed", 3, 7, 6).to(native), 3)[1]
    mask = LAYOUTS[layout](plane)
    assert torch.equal(mask, plane)
    assert torch.equal(runner(mask, backend=native)(x, weight, bias), runner(plane, backend=native)(x, weight, bias))


@FORMATS
@pytest.mark.parametrize("name", ["mixed", "all_valid", "all_hole"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_output_and_gradient_keep_the_memory_format(native, dtype, name, layout):
    x, weight, bias = (t.to(memory_format=layout) if t.dim() == 4 else t for t in make(dtype=dtype, device=native))
    run = runner(masks.plane(name, 2, 7, 6).to(native), backend=native)
    output, (grad, _, _) = gradients(run, torch.randn(2, 4, 7, 6, device=native), x, weight, bias)
    assert output.is_contiguous(memory_format=layout)
    assert grad.is_contiguous(memory_format=layout)


@FORMATS
def test_upcat_output_and_gradients_keep_the_memory_format(native, layout):
    low, skip, weight = torch.randn(2, 3, 8, 8), torch.randn(2, 2, 16, 16), torch.randn(4, 5, 3, 3)
    leaves = [t.to(native, memory_format=layout).requires_grad_() for t in (low, skip, weight)]
    low_mask, skip_mask = masks.plane("mixed", 2, 8, 8).to(native), masks.plane("checkerboard", 2, 16, 16).to(native)
    output, _ = partial_conv2d_upcat(leaves[0], low_mask, leaves[1], skip_mask, leaves[2], backend=native)
    output.sum().backward()
    assert output.is_contiguous(memory_format=layout)
    assert leaves[0].grad.is_contiguous(memory_format=layout)
    assert leaves[1].grad.is_contiguous(memory_format=layout)


def test_arguments_are_not_written_to(native):
    arguments = *make(device=native), masks.plane("mixed", 2, 7, 6).to(native)
    before = [t.clone() for t in arguments]
    x, weight, bias, mask = arguments
    for flag in (False, True):
        run = runner(mask, backend=native, input_is_masked=flag)
        gradients(run, torch.randn(2, 4, 7, 6, device=native), x, weight, bias)
    for old, new in zip(before, arguments, strict=True):
        assert torch.equal(old, new)


# ---- the same again ------------------------------------------------------------------------------------------------


def everything(device, dtype, layout):
    """Outputs and gradients of both operators, at sizes that are worth two threads."""
    torch.manual_seed(1)
    x, weight, bias = make(2, 16, 48, 40, 24, dtype, device)
    x = x.to(memory_format=layout)
    mask = masks.random_plane(0.5, 2, 48, 40).to(device)
    output, grads = gradients(runner(mask), torch.randn(2, 24, 48, 40, device=device), x, weight, bias)
    low, low_mask = torch.randn(2, 8, 24, 20, dtype=dtype, device=device), masks.random_plane(0.5, 2, 24, 20).to(device)

    def upcat(low, skip, weight, bias):
        return partial_conv2d_upcat(low, low_mask, skip, mask, weight, bias)[0]

    upstream = torch.randn(2, 24, 48, 40, device=device)
    wide = torch.cat([weight, weight[:, :8]], dim=1)
    decoded, decoded_grads = gradients(upcat, upstream, low.to(memory_format=layout), x, wide, bias)
    return [output, *grads, decoded, *decoded_grads]


#: Their places among the above.
WEIGHT_GRADIENTS = 2, 7


@FORMATS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_repeated_call_is_bitwise_equal(native, dtype, layout):
    for first, second in zip(everything(native, dtype, layout), everything(native, dtype, layout), strict=True):
        assert torch.equal(first, second)


@FORMATS
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_one_thread_and_two_are_bitwise_equal(dtype, layout):
    """But for the gradients of weights, which torch's convolution sums as its threads share the pixels on some
    processors."""
    before, results = torch.get_num_threads(), {}
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results[threads] = everything("cpu", dtype, layout)
    finally:
        torch.set_num_threads(before)
    for i, (one, two) in enumerate(zip(results[1], results[2], strict=True)):
        if i in WEIGHT_GRADIENTS:
            assert max_error(one, two) <= 16 * absolute_term(dtype, two)
        else:
            assert torch.equal(one, two)


# ---- unwritten memory ----------------------------------------------------------------------------------------------


def test_uninitialised_memory_is_nan():
    assert torch.empty(8).isnan().all()
    assert torch.empty(8, dtype=torch.float16).isnan().all()
    assert torch.empty(2, 3, 4, 5).to(memory_format=torch.channels_last).isnan().all()
    assert (torch.empty(8, dtype=torch.int32) == 2**31 - 1).all()


def test_uninitialised_memory_of_the_kernels_is_nan():
    """Every allocation that the C++ side makes is filled as well, so that no test passes on leftovers."""
    x, weight, bias = make()
    events = profiled(lambda: runner(masks.plane("mixed", 2, 7, 6), backend="cpu")(x, weight, bias))
    made = [e for e in events if e.name == "aten::empty" and "msa_ops::partial_conv2d_forward" in ancestors(e)]
    fills = [child.concrete_inputs[1] for e in made for child in e.cpu_children if child.name == "aten::fill_"]
    assert len(fills) == len(made) >= 4  # ratio, mask', counts, x ⊙ m
    assert sum(math.isnan(value) for value in fills) >= 2  # ratio, x ⊙ m


# ---- what is allocated (CPU) ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "every_second_channel", "cropped_channels_last"])
@pytest.mark.parametrize("form", ["plane", "channels_expanded", "grouped"])
@pytest.mark.parametrize("mask_dtype", [torch.bool, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("name", "is_masked", "copies"), [("mixed", False, 1), ("mixed", True, 0), ("all_valid", False, 0)]
)
def test_forward_copies_the_input_once_or_not_at_all(layout, form, mask_dtype, name, is_masked, copies):
    x, weight, bias = make(2, 64, 16, 16, 8, torch.float32)
    mask, _ = masks.in_form(form, masks.plane(name, 2, 16, 16).to(mask_dtype), 64)
    run, bytes_of_input = runner(mask, backend="cpu", input_is_masked=is_masked), 4 * x.numel()
    view = LAYOUTS[layout](x)
    made = allocations(profiled(lambda: run(view, weight, bias)))
    if name == "all_valid" and layout not in ("contiguous", "channels_last"):
        copies = min(1, made.count(bytes_of_input))  # dense maps are taken as they are, others may be made dense
    assert made[:copies] == [bytes_of_input] * copies
    assert sum(made[copies:]) < bytes_of_input / 4  # planes of the mask and of the ratio


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("is_masked", [False, True])
def test_the_convolution_inside_allocates_what_a_bare_one_does(layout, is_masked):
    x, weight, bias = make(2, 32, 16, 16, 8, torch.float32)
    x, weight = LAYOUTS[layout](x), LAYOUTS[layout](weight)
    run = runner(masks.plane("mixed", 2, 16, 16), backend="cpu", input_is_masked=is_masked)
    ours = allocations(profiled(lambda: run(x, weight, bias)), inside_convolutions=True)
    assert ours == allocations(profiled(lambda: F.conv2d(x, weight, padding=1)), inside_convolutions=True)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(("is_masked", "copies"), [(False, 1), (True, 0)])
def test_backward_copies_the_upstream_gradient_and_the_input_at_most_once(layout, is_masked, copies):
    x, weight, bias = make(2, 64, 16, 16, 8, torch.float32)
    leaves = [LAYOUTS[layout](x).requires_grad_(), weight.requires_grad_(), bias.requires_grad_()]
    output = runner(masks.plane("mixed", 2, 16, 16), backend="cpu", input_is_masked=is_masked)(*leaves)
    upstream = torch.randn_like(output)
    made = allocations(profiled(lambda: torch.autograd.grad(output, leaves, upstream)))
    wanted = [4 * x.numel()] * copies + [4 * output.numel()]
    assert made[: len(wanted)] == wanted
    assert sum(made[len(wanted) :]) < output.numel()


@pytest.mark.parametrize("is_masked", [False, True])
def test_upcat_builds_neither_the_upsampled_map_nor_the_concatenation(is_masked, monkeypatch):
    force_form(monkeypatch)
    low, skip, weight = torch.randn(2, 64, 16, 16), torch.randn(2, 8, 32, 32), torch.randn(4, 72, 3, 3)
    low_mask, skip_mask = masks.plane("mixed", 2, 16, 16), masks.plane("mixed", 2, 32, 32)
    options = {"low_is_masked": is_masked, "skip_is_masked": is_masked, "backend": "cpu"}
    made = allocations(profiled(lambda: partial_conv2d_upcat(low, low_mask, skip, skip_mask, weight, **options)))
    copies = [] if is_masked else [4 * low.numel(), 4 * skip.numel()]
    assert made[: len(copies)] == copies
    phase_weight, planes = 4 * 4 * 64 * 4 * 4, (4 + 4 + 1) * skip_mask.numel()
    assert sum(made[len(copies) :]) <= 1.1 * (phase_weight + planes)


# ---- input_is_masked -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mixed", "all_hole", "all_valid"])
@pytest.mark.parametrize("form", masks.FORMS)
def test_an_input_said_to_be_masked_gives_the_same_numbers(backend, device, form, name):
    x, weight, bias = make(3, device=device)
    mask, full = masks.in_form(form, masks.plane(name, 3, 7, 6).to(device), 3)
    x = torch.where(full, x, 0.0)
    ours, new_mask = partial_conv2d(x, mask, weight, bias, padding=1, input_is_masked=True, backend=backend)
    wanted, wanted_mask = partial_conv2d(x, mask, weight, bias, padding=1, backend=backend)
    assert torch.equal(ours, wanted)
    assert torch.equal(new_mask, wanted_mask)
