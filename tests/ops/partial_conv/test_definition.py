"""partial_conv2d in float64 against the definition written out in loops: every mask, form of mask and geometry."""

import pytest
import torch
import torch.nn.functional as F

from msa_ops import partial_conv2d

from ..support import definition, masks
from ..support.tolerances import assert_exact
from .calls import make


def assert_is_the_definition(x, form, plane, weight, bias, geometry=(), *, backend, exact_geometry=None, **options):
    mask, full = masks.in_form(form, plane.to(x.device), x.shape[1])
    output, new_mask = partial_conv2d(x, mask, weight, bias, *geometry, backend=backend, **options)
    exact = definition.partial_conv2d(x, full, weight, bias, *(exact_geometry or geometry), **options)
    assert_exact(output, exact.output, exact.magnitude, what=f"output, mask as {form}, {options}")
    assert torch.equal(new_mask.cpu(), exact.new_mask)
    assert new_mask.dtype == torch.bool
    return output


@pytest.mark.parametrize("name", masks.NAMES)
def test_every_mask_in_every_form(backend, device, name):
    leaves = make(n=3, h=6, w=5, device=device)
    for form in masks.FORMS:
        for scale in ("window", "sum"):
            assert_is_the_definition(
                leaves[0], form, masks.plane(name, 3, 6, 5), *leaves[1:], (1, 1), backend=backend, scale=scale,
                exact_geometry=((1, 1), (1, 1)),
            )  # fmt: skip


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
def test_every_geometry(backend, device, kernel, stride, padding, dilation, groups):
    leaves = make(2, 4, 8, 9, 8, kernel, groups, device=device)
    geometry = stride, padding, dilation, groups
    pairs = [v if isinstance(v, tuple) else (v, v) for v in geometry[:3]]
    for form in ("plane", "channels", "grouped"):
        assert_is_the_definition(
            leaves[0], form, masks.random_plane(0.4, 2, 8, 9), *leaves[1:], geometry, backend=backend,
            exact_geometry=(*pairs, groups),
        )  # fmt: skip


@pytest.mark.parametrize(("kernel", "dilation"), [((3, 3), 1), ((2, 2), 1), ((4, 3), 1), ((3, 2), 3), ((1, 1), 1)])
def test_same_padding(backend, device, kernel, dilation):
    leaves = make(kernel=kernel, device=device)
    totals = [dilation * (k - 1) for k in kernel]
    padding = [(total // 2, total - total // 2) for total in totals]  # the odd one goes to the end, as in conv2d
    for form in ("plane", "channels", "grouped"):
        output = assert_is_the_definition(
            leaves[0], form, masks.random_plane(0.4, 2, 7, 6), *leaves[1:], (1, "same", dilation), backend=backend,
            exact_geometry=((1, 1), padding, (dilation,) * 2),
        )  # fmt: skip
        assert output.shape[2:] == leaves[0].shape[2:]


def test_valid_padding_is_none(backend, device):
    leaves = make(device=device)
    assert_is_the_definition(
        leaves[0], "plane", masks.random_plane(0.5, 2, 7, 6), *leaves[1:], (2, "valid"), backend=backend,
        exact_geometry=((2, 2),),
    )  # fmt: skip


@pytest.mark.parametrize("padding", [0, "same"])
def test_without_holes_it_is_a_convolution(backend, device, padding):
    x, weight, bias = make(kernel=(2, 3), device=device)
    ones = torch.ones(2, 1, 7, 6, device=device)
    output = partial_conv2d(x, ones, weight, bias, padding=padding, backend=backend)[0]
    plain, magnitude = (
        F.conv2d(*leaves, padding=padding) for leaves in ((x, weight, bias), (x.abs(), weight.abs(), bias.abs()))
    )
    inside = (..., slice(0, 6), slice(1, 5)) if padding == "same" else ...  # windows that reach over no border
    assert_exact(output[inside], plain[inside], magnitude[inside])
