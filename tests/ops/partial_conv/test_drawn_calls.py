"""hypothesis draws shapes, geometry, masks and layouts; outputs equal the definition, gradients the reference's."""

import pytest
import torch

from msa_ops import partial_conv2d, partial_conv2d_upcat

from . import definition, masks
from .helpers import FORMS, LAYOUTS, force_form, gradients
from .tolerances import assert_exact

pytest.importorskip("hypothesis")  # a bare GPU machine may lack it

from hypothesis import given, settings
from hypothesis import strategies as st


@st.composite
def cases(draw):
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


@settings(deadline=None, derandomize=True, max_examples=100)
@given(case=cases())
def test_partial_conv2d(native, case):
    torch.manual_seed(case["seed"])
    x = LAYOUTS[case["layout"]](torch.randn(case["x"], dtype=torch.float64, device=native))
    weight = torch.randn(case["weight"], dtype=torch.float64, device=native)
    leaves = (x, weight, torch.randn(len(weight), dtype=torch.float64, device=native))[: 3 if case["has_bias"] else 2]
    n, channels, h, w = case["x"]
    name = case["mask"]
    plane = masks.plane(name, n, h, w) if isinstance(name, str) else masks.random_plane(name, n, h, w)
    mask, full = masks.in_form(case["form"], plane.to(native), channels)

    def run(backend):
        def output(x, weight, bias=None):
            return partial_conv2d(x, mask, weight, bias, *case["geometry"], scale=case["scale"], backend=backend)[0]

        return output

    bias = leaves[2] if case["has_bias"] else None
    exact, exact_mask = definition.partial_conv2d(x, full, weight, bias, *case["geometry"], scale=case["scale"])
    assert torch.equal(partial_conv2d(x, mask, weight, bias, *case["geometry"])[1].cpu(), exact_mask)
    upstream = torch.randn(exact.shape, dtype=torch.float64, device=native)
    output, ours = gradients(run(native), upstream, *leaves)
    assert_exact(output, exact)
    wanted = gradients(run("reference"), upstream, *leaves)[1]
    for what, got, want in zip(("input", "weight", "bias")[: len(leaves)], ours, wanted, strict=True):
        assert_exact(got, want, what=f"gradient of {what}")


@pytest.mark.parametrize("form", FORMS)
@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    sizes=st.tuples(*[st.integers(1, 3)] * 3, *[st.integers(1, 4)] * 2, st.integers(1, 3)),
    share=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    scale=st.sampled_from(["window", "sum"]),
    last=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    has_bias=st.booleans(),
)
def test_partial_conv2d_upcat(native, form, sizes, share, scale, last, has_bias):
    torch.manual_seed(sum(sizes))
    n, c1, c2, h, w, c_out = sizes
    shapes = (n, c1, h, w), (n, c2, 2 * h, 2 * w), (c_out, c1 + c2, 3, 3), (c_out,)
    low, skip, weight, bias = (torch.randn(shape, dtype=torch.float64, device=native) for shape in shapes)
    low, skip, weight = (
        t.to(memory_format=torch.channels_last) if flag else t
        for t, flag in zip((low, skip, weight), last, strict=True)
    )
    low_mask, skip_mask = masks.random_plane(share, n, h, w), masks.random_plane(share, n, 2 * h, 2 * w)
    maps, leaves = (low_mask.to(native), skip_mask.to(native)), (low, skip, weight, bias)[: 4 if has_bias else 3]

    def run(backend):
        def output(low, skip, weight, bias=None):
            return partial_conv2d_upcat(low, maps[0], skip, maps[1], weight, bias, scale=scale, backend=backend)[0]

        return output

    exact, _ = definition.partial_conv2d_upcat(low, maps[0], skip, maps[1], weight, bias if has_bias else None, scale)
    upstream = torch.randn(exact.shape, dtype=torch.float64, device=native)
    wanted = gradients(run("reference"), upstream, *leaves)[1]
    with pytest.MonkeyPatch.context() as patch:
        force_form(patch, form)
        output, ours = gradients(run(native), upstream, *leaves)
    assert_exact(output, exact)
    for what, got, want in zip(("low", "skip", "weight", "bias")[: len(leaves)], ours, wanted, strict=True):
        assert_exact(got, want, what=f"gradient of {what}")
