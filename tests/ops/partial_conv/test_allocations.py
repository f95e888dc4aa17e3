"""What partial_conv2d allocates on the CPU beside its output."""

import pytest
import torch
import torch.nn.functional as F

from ..support import masks
from ..support.layouts import LAYOUTS
from ..support.profiling import allocations, profiled
from .calls import make, runner


def make32(*sizes):
    return make(*sizes, dtype=torch.float32)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "every_second_channel", "cropped_channels_last"])
@pytest.mark.parametrize(
    ("form", "mask_dtype"), [("plane", torch.bool), ("plane", torch.float32), ("channels_expanded", torch.bool),
                             ("grouped", torch.float32)]
)  # fmt: skip
@pytest.mark.parametrize(
    ("name", "is_masked", "copies"), [("mixed", False, 1), ("mixed", True, 0), ("all_valid", False, 0)]
)
def test_forward_copies_the_input_once_or_not_at_all(layout, form, mask_dtype, name, is_masked, copies):
    x, weight, bias = make32(2, 64, 16, 16, 8)
    mask, _ = masks.in_form(form, masks.plane(name, 2, 16, 16).to(mask_dtype), 64)
    run, bytes_of_input = runner(mask, 1, 1, input_is_masked=is_masked)("cpu"), 4 * x.numel()
    view = LAYOUTS[layout](x)
    made = allocations(profiled(lambda: run(view, weight, bias)))
    if name == "all_valid" and layout not in ("contiguous", "channels_last"):
        copies = min(1, made.count(bytes_of_input))  # dense maps are taken as they are, others may be made dense
    assert made[:copies] == [bytes_of_input] * copies
    assert sum(made[copies:]) < bytes_of_input / 4  # planes of the mask and of the ratio


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("is_masked", [False, True])
def test_the_convolution_inside_allocates_what_a_bare_one_does(layout, is_masked):
    x, weight, bias = make32(2, 32, 16, 16, 8)
    x, weight = LAYOUTS[layout](x), LAYOUTS[layout](weight)
    run = runner(masks.plane("mixed", 2, 16, 16), 1, 1, input_is_masked=is_masked)("cpu")
    ours = allocations(profiled(lambda: run(x, weight, bias)), inside_convolutions=True)
    assert ours == allocations(profiled(lambda: F.conv2d(x, weight, padding=1)), inside_convolutions=True)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(("is_masked", "copies"), [(False, 1), (True, 0)])
def test_backward_copies_the_upstream_gradient_and_the_input_at_most_once(layout, is_masked, copies):
    x, weight, bias = make32(2, 64, 16, 16, 8)
    leaves = [LAYOUTS[layout](x).requires_grad_(), weight.requires_grad_(), bias.requires_grad_()]
    output = runner(masks.plane("mixed", 2, 16, 16), 1, 1, input_is_masked=is_masked)("cpu")(*leaves)
    upstream = torch.randn_like(output)
    made = allocations(profiled(lambda: torch.autograd.grad(output, leaves, upstream)))
    wanted = [4 * x.numel()] * copies + [4 * output.numel()]
    assert made[: len(wanted)] == wanted
    assert sum(made[len(wanted) :]) < output.numel()
