"""The CPU's own kernels of the decoder form (minimal filtering, the image layer) at the sizes where each is used."""

import math

import pytest
import torch

from ..support import definition, masks
from ..support.compare import assert_call_accurate
from ..support.layouts import LAYOUTS
from ..support.profiling import library_ran
from ..support.raw import OPCHECK_STATIC, OPS, differentiable, upcat_backward_arguments
from ..support.tolerances import assert_exact
from ..support.upcat import upcat
from .calls import NAMES, make, runner

#: name -> N, C1, channels of skip, h, w, C_out.
DECODERS = {
    "tiles": (2, 17, 18, 5, 4, 19),
    "image": (2, 17, 3, 5, 4, 3),
    "image of one long row": (1, 16, 2, 1, 530, 1),
    "image of many rows": (2, 16, 3, 19, 37, 3),
}
each_decoder = pytest.mark.parametrize("name", DECODERS)


def make_decoder(name, dtype=torch.float64, layout=torch.contiguous_format):
    low, skip, weight, bias = make(*DECODERS[name], dtype)
    low, skip = (t.contiguous(memory_format=torch.channels_last) for t in (low, skip))
    return low, skip, weight.to(memory_format=layout), bias


def planes_of(low, skip, low_name, skip_name):
    return masks.plane(low_name, low.shape[0], *low.shape[2:]), masks.plane(skip_name, skip.shape[0], *skip.shape[2:])


def assert_like_the_reference(leaves, planes):
    run = runner("auto", *planes)
    upstream = torch.randn_like(run("cpu")(*leaves))
    assert_call_accurate(run, upstream, leaves, NAMES, "cpu", across_pixels=True)


@each_decoder
def test_these_decoders_take_our_own(name):
    leaves = make_decoder(name, torch.float32)
    run = runner("auto", *planes_of(*leaves[:2], "all_valid", "all_valid"))("cpu")
    assert not library_ran(lambda: run(*leaves))


@each_decoder
@pytest.mark.parametrize(
    ("low_name", "skip_name"),
    [(name, name) for name in masks.NAMES]
    + [("all_valid", "all_hole"), ("all_hole", "all_valid"), ("mixed", "checkerboard"), ("right_half", "one_hole_row")],
)
def test_every_mask(name, low_name, skip_name):
    """Against the reference, which test_definition holds to the definition for every mask."""
    for layout in (torch.contiguous_format, torch.channels_last):
        leaves = low, skip, *rest = make_decoder(name, layout=layout)
        planes = planes_of(low, skip, low_name, skip_name)
        assert_like_the_reference(leaves, planes)
    ours, wanted = (upcat("auto", low, planes[0], skip, planes[1], *rest, backend=b)[1] for b in ("cpu", "reference"))
    assert torch.equal(ours, wanted)


@pytest.mark.parametrize("name", ["tiles", "image", "image of one long row"])
def test_the_definition(name):
    low, skip, weight, bias = make_decoder(name)
    planes = planes_of(low, skip, "mixed", "checkerboard")
    output, new_mask = upcat("auto", low, planes[0], skip, planes[1], weight, bias, backend="cpu")
    exact = definition.partial_conv2d_upcat(low, planes[0], skip, planes[1], weight, bias)
    assert_exact(output, exact.output, exact.magnitude, across_pixels=True)
    assert torch.equal(new_mask, exact.new_mask)


def test_gradcheck():
    leaves = make_decoder("tiles")
    run = runner("auto", *planes_of(*leaves[:2], "mixed", "checkerboard"))("cpu")
    assert torch.autograd.gradcheck(run, [t.requires_grad_() for t in leaves], fast_mode=True)


def test_several_blocks():
    low, skip, weight, bias = make(2, 64, 48, 33, 31, 40)
    leaves = *(t.contiguous(memory_format=torch.channels_last) for t in (low, skip)), weight, bias
    assert_like_the_reference(leaves, planes_of(low, skip, "mixed", "right_half"))


@each_decoder
def test_float32(name):
    leaves = make_decoder(name, torch.float32)
    assert_like_the_reference(leaves, planes_of(*leaves[:2], "mixed", "checkerboard"))


@each_decoder
def test_what_lies_under_a_hole_does_not_leak(name):
    low, skip, weight, bias = make_decoder(name)
    low_mask, skip_mask = planes_of(low, skip, "mixed", "checkerboard")
    run = runner("auto", low_mask, skip_mask)("cpu")
    clean = run(torch.where(low_mask, low, 0.0), torch.where(skip_mask, skip, 0.0), weight, bias)
    dirty = run(torch.where(low_mask, low, math.nan), torch.where(skip_mask, skip, math.nan), weight, bias)
    assert torch.equal(clean, dirty)


@pytest.mark.parametrize("view", ["channels_last", "cropped_channels_last"])
@each_decoder
def test_any_layout(name, view):
    low, skip, weight, bias = make_decoder(name)
    leaves = LAYOUTS[view](low), LAYOUTS[view](skip), weight, bias
    assert_like_the_reference(leaves, planes_of(low, skip, "mixed", "checkerboard"))


@each_decoder
def test_opcheck(name):
    low, skip, weight, bias = make_decoder(name, torch.float32)
    low_mask, skip_mask = planes_of(low, skip, "mixed", "mixed")
    forward = low, low_mask, skip, skip_mask, weight, bias, 9 * weight.shape[1], False, False, True
    forward_operator, backward_operator = OPS.partial_conv2d_upcat_forward, OPS.partial_conv2d_upcat_backward
    torch.library.opcheck(forward_operator.default, differentiable(forward), test_utils=OPCHECK_STATIC)
    backward = upcat_backward_arguments(forward)
    torch.library.opcheck(backward_operator.default, backward, test_utils=OPCHECK_STATIC)
