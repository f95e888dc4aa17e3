"""hypothesis draws shapes, geometry, masks and layouts; outputs equal the definition, gradients the reference's."""

import pytest
import torch

from msa_ops import partial_conv2d

from ..support import definition, masks
from ..support.compare import assert_call_accurate
from ..support.layouts import LAYOUTS
from ..support.tolerances import assert_exact
from .calls import NAMES, runner

pytest.importorskip("hypothesis")  # a bare GPU machine may lack it

from hypothesis import given, settings
from hypothesis import strategies as st


@st.composite
def calls(draw):
    """Geometry, mask and layout of a small call that is legal."""
    groups, per_group = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    axis = st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(0, 3), st.integers(1, 2), st.integers(0, 5))
    axes = draw(axis), draw(axis)
    kernel, stride, padding, dilation = (tuple(a[i] for a in axes) for i in range(4))
    sizes = tuple(max(1, d * (k - 1) + 1 - 2 * p) + more for k, _, p, d, more in axes)
    return {
        "x": (draw(st.integers(1, 2)), groups * per_group, *sizes),
        "weight": (groups * draw(st.integers(1, 2)), per_group, *kernel),
        "geometry": (stride, padding, dilation, groups),
        "form": draw(st.sampled_from(masks.FORMS)),
        "mask": draw(st.sampled_from([*masks.NAMES, 0.05, 0.5])),
        "layout": draw(st.sampled_from(sorted(LAYOUTS))),
        "scale": draw(st.sampled_from(["window", "sum"])),
        "has_bias": draw(st.booleans()),
        "seed": draw(st.integers(0, 2**16)),
    }


@settings(max_examples=100)
@given(call=calls())
def test_any_call(native, call):
    torch.manual_seed(call["seed"])
    x = LAYOUTS[call["layout"]](torch.randn(call["x"], dtype=torch.float64, device=native))
    weight = torch.randn(call["weight"], dtype=torch.float64, device=native)
    leaves = (x, weight, torch.randn(len(weight), dtype=torch.float64, device=native))[: 3 if call["has_bias"] else 2]
    n, channels, h, w = call["x"]
    name = call["mask"]
    plane = masks.plane(name, n, h, w) if isinstance(name, str) else masks.random_plane(name, n, h, w)
    mask, full = masks.in_form(call["form"], plane.to(native), channels)
    exact = definition.partial_conv2d(
        x, full, weight, leaves[2] if call["has_bias"] else None, *call["geometry"], scale=call["scale"]
    )
    assert torch.equal(partial_conv2d(x, mask, weight, None, *call["geometry"])[1].cpu(), exact.new_mask)
    upstream = torch.randn(exact.output.shape, dtype=torch.float64, device=native)
    run = runner(mask, *call["geometry"], scale=call["scale"])
    output, *_ = assert_call_accurate(run, upstream, leaves, NAMES[: len(leaves)], native)
    assert_exact(output, exact.output, exact.magnitude)
