"""The decoder form at the sizes and layouts where kernels change their way."""

import pytest
import torch

from ..support import definition, masks
from ..support.compare import assert_call_accurate, gradients
from ..support.layouts import LAYOUTS
from ..support.tolerances import assert_exact
from ..support.upcat import FORMS, upcat
from .calls import NAMES, make, runner

#: low (N, C1, h, w), channels of skip, C_out: whole packs, tails in either map, one pixel, a map of several blocks.
DECODERS = [
    ((2, 16, 3, 5), 8, 16),
    ((2, 3, 4, 3), 8, 8),
    ((2, 8, 5, 4), 3, 3),
    ((3, 24, 1, 1), 40, 8),
    ((1, 8, 40, 33), 8, 8),
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("shape", "c2", "c_out"), DECODERS, ids=str)
def test_every_size_and_layout(native, shape, c2, c_out, form, dtype):
    """Each layout of a map beside each of another's: what reads a map does not depend on two others at a time."""
    (n, c1, h, w), plain, last = shape, "contiguous", "channels_last"
    for low_layout, layout, weight_layout in (
        (plain, plain, plain), (plain, last, last), (plain, "cropped_channels_last", plain),
        (last, plain, last), (last, last, plain), (last, last, last), (last, "cropped_channels_last", last),
    ):  # fmt: skip
        leaves = make(n, c1, c2, h, w, c_out, torch.float32, native)
        layouts = LAYOUTS[low_layout], LAYOUTS[layout], LAYOUTS[weight_layout], lambda t: t
        leaves = [change(t.to(dtype)) for change, t in zip(layouts, leaves, strict=True)]
        planes = masks.random_plane(0.7, n, h, w).to(native), masks.random_plane(0.6, n, 2 * h, 2 * w).to(native)
        upstream = torch.randn(n, c_out, 2 * h, 2 * w, device=native)
        assert_call_accurate(runner(form, *planes), upstream, leaves, NAMES, native)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("wanted", [(True, False), (False, True)], ids=["low", "skip"])
@pytest.mark.parametrize("channels", [(3, 2), (8, 8)], ids=str)
def test_one_map_of_a_decoder_alone(native, channels, wanted, form):
    low, skip = (
        torch.randn(2, c, s, s, dtype=torch.float64, device=native).to(memory_format=torch.channels_last)
        for c, s in zip(channels, (3, 6), strict=True)
    )
    weight = torch.randn(8, sum(channels), 3, 3, dtype=torch.float64, device=native)
    low_mask, skip_mask = masks.plane("checkerboard", 2, 3, 3).to(native), masks.plane("mixed", 2, 6, 6).to(native)

    def run(low, skip):
        return upcat(form, low, low_mask, skip, skip_mask, weight, backend=native)[0]

    upstream = torch.randn_like(run(low, skip))
    both = gradients(run, upstream, low, skip)[1]
    leaves = [t.detach().requires_grad_(flag) for t, flag in zip((low, skip), wanted, strict=True)]
    run(*leaves).backward(upstream)
    for leaf, flag, want in zip(leaves, wanted, both, strict=True):
        assert (leaf.grad is not None) == flag
        if flag:
            assert_exact(leaf.grad, want)


def test_the_forms_agree_with_the_definition_where_masks_differ(native):
    low, skip, weight, _ = make(2, 8, 8, 9, 9, 8, device=native)
    low_mask, skip_mask = masks.random_plane(0.3, 2, 9, 9).to(native), masks.random_plane(0.2, 2, 18, 18).to(native)
    exact = definition.partial_conv2d_upcat(low, low_mask, skip, skip_mask, weight)
    for form in FORMS:
        output, new_mask = upcat(form, low, low_mask, skip, skip_mask, weight, backend=native)
        assert_exact(output, exact.output, exact.magnitude)
        assert torch.equal(new_mask.cpu(), exact.new_mask)
