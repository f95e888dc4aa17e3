"""What torch asks of the operators behind partial_conv2d: opcheck, and fake tensors that agree in every stride."""

import itertools

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ..support.layouts import VIEWS
from ..support.raw import (
    INPUTS,
    MASKS,
    OPCHECK,
    OPCHECK_STATIC,
    OPS,
    assert_fake_agrees,
    backward_arguments,
    differentiable,
    forward_arguments,
)


@pytest.mark.parametrize(("view", "mask"), INPUTS)
def test_opcheck(native, view, mask):
    x, plane = VIEWS[view](torch.randn(2, 3, 5, 4, device=native)), MASKS[mask](2, 5, 4).to(native)
    forward = forward_arguments(x, plane)
    # The dynamic test compiles; once is enough.
    utils = OPCHECK if (view, mask) == INPUTS[0] else OPCHECK_STATIC
    torch.library.opcheck(OPS.partial_conv2d_forward.default, differentiable(forward), test_utils=utils)
    torch.library.opcheck(OPS.partial_conv2d_backward.default, backward_arguments(forward), test_utils=utils)


@pytest.mark.parametrize(
    ("shape", "kernel"), [((2, 4, 1, 1), 1), ((2, 1, 5, 4), 3), ((1, 1, 1, 1), 1), ((0, 3, 5, 4), 3)], ids=str
)
def test_opcheck_of_sizes_whose_strides_are_ambiguous(native, shape, kernel):
    x = torch.randn(shape, device=native).to(memory_format=torch.channels_last)
    for mask in ("holes", "all_valid"):
        plane = MASKS[mask](shape[0], *shape[2:]).to(native)
        forward = forward_arguments(x, plane, kernel=kernel, padding=kernel // 2)
        torch.library.opcheck(OPS.partial_conv2d_forward.default, differentiable(forward), test_utils=OPCHECK_STATIC)
        torch.library.opcheck(
            OPS.partial_conv2d_backward.default, backward_arguments(forward), test_utils=OPCHECK_STATIC
        )


def test_opcheck_of_a_choice_of_gradients(native):
    forward = forward_arguments(torch.randn(2, 3, 5, 4, device=native), MASKS["holes"](2, 5, 4).to(native))
    for needed in ((True, False, False), (False, True, False), (False, False, True)):
        arguments = backward_arguments(forward, needed)
        torch.library.opcheck(OPS.partial_conv2d_backward.default, arguments, test_utils=OPCHECK_STATIC)


@pytest.mark.parametrize("mask", ["holes", "all_valid", "per_channel"])
@pytest.mark.parametrize(
    "shape", [(2, 4, 6, 5), (2, 1, 6, 5), (1, 4, 6, 5), (2, 4, 1, 1), (2, 4, 6, 1), (1, 1, 1, 1)], ids=str
)
def test_fake_strides(native, shape, mask):
    plane = MASKS["holes" if mask == "per_channel" else mask](shape[0], *shape[2:]).to(native)
    if mask == "per_channel":
        plane = plane.repeat(1, shape[1], 1, 1)
    with_one_mode = FakeTensorMode()
    for view in VIEWS:
        x = VIEWS[view](torch.randn(shape, device=native))
        layouts = torch.contiguous_format, torch.channels_last
        # A 1×1 weight is both; beside dense maps every combination, beside views one of each.
        both = (
            [*itertools.product(layouts, (3, 1))]
            if view in ("contiguous", "channels_last")
            else zip(layouts, (3, 1), strict=True)
        )
        for layout, kernel in both:
            forward = forward_arguments(x, plane, kernel=kernel, padding=kernel // 2, layout=layout)
            assert_fake_agrees(OPS.partial_conv2d_forward, forward, with_one_mode)
            assert_fake_agrees(OPS.partial_conv2d_backward, backward_arguments(forward), with_one_mode)
