"""What torch asks of the operators behind partial_conv2d_upcat: opcheck, fake tensors that agree in every stride."""

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
    differentiable,
    upcat_arguments,
    upcat_backward_arguments,
)
from ..support.upcat import FORMS


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("view", "mask"), INPUTS)
def test_opcheck(native, view, mask, form):
    low, skip = (VIEWS[view](torch.randn(2, c, s, s, device=native)) for c, s in ((3, 3), (2, 6)))
    forward = upcat_arguments(
        low, skip, MASKS[mask](2, 3, 3).to(native), MASKS[mask](2, 6, 6).to(native), phases=FORMS[form]
    )
    utils = OPCHECK if (view, mask, form) == (*INPUTS[0], "phases") else OPCHECK_STATIC
    torch.library.opcheck(OPS.partial_conv2d_upcat_forward.default, differentiable(forward), test_utils=utils)
    torch.library.opcheck(
        OPS.partial_conv2d_upcat_backward.default, upcat_backward_arguments(forward), test_utils=utils
    )


@pytest.mark.parametrize(
    ("shape", "c2"), [((2, 4, 3, 2), 3), ((2, 1, 3, 2), 1), ((2, 4, 1, 1), 3), ((1, 1, 1, 1), 1)], ids=str
)
@pytest.mark.parametrize("form", FORMS)
def test_fake_strides(native, shape, c2, form):
    n, _, h, w = shape
    mode = FakeTensorMode()
    cases = ("holes", torch.contiguous_format), ("all_valid", torch.channels_last)
    for view, (mask, layout) in itertools.product(VIEWS, cases):
        low, skip = (VIEWS[view](torch.randn(s, device=native)) for s in (shape, (n, c2, 2 * h, 2 * w)))
        planes = MASKS[mask](n, h, w).to(native), MASKS[mask](n, 2 * h, 2 * w).to(native)
        forward = upcat_arguments(low, skip, *planes, layout, FORMS[form])
        assert_fake_agrees(OPS.partial_conv2d_upcat_forward, forward, mode)
        assert_fake_agrees(OPS.partial_conv2d_upcat_backward, upcat_backward_arguments(forward), mode)
