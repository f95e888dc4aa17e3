"""hypothesis draws shapes, masks and layouts; outputs equal the definition, gradients the reference's."""

import pytest
import torch

from ..support import definition, masks
from ..support.compare import assert_call_accurate
from ..support.tolerances import assert_exact
from ..support.upcat import FORMS
from .calls import NAMES, runner

pytest.importorskip("hypothesis")  # a bare GPU machine may lack it

from hypothesis import given, settings
from hypothesis import strategies as st


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=60)
@given(
    sizes=st.tuples(*[st.integers(1, 3)] * 3, *[st.integers(1, 4)] * 2, st.integers(1, 3)),
    share=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    scale=st.sampled_from(["window", "sum"]),
    last=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    has_bias=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_any_call(native, form, sizes, share, scale, last, has_bias, seed):
    torch.manual_seed(seed)
    n, c1, c2, h, w, c_out = sizes
    shapes = (n, c1, h, w), (n, c2, 2 * h, 2 * w), (c_out, c1 + c2, 3, 3), (c_out,)
    low, skip, weight, bias = (torch.randn(shape, dtype=torch.float64, device=native) for shape in shapes)
    low, skip, weight = (
        t.to(memory_format=torch.channels_last) if flag else t
        for t, flag in zip((low, skip, weight), last, strict=True)
    )
    planes = masks.random_plane(share, n, h, w).to(native), masks.random_plane(share, n, 2 * h, 2 * w).to(native)
    leaves = (low, skip, weight, bias)[: 4 if has_bias else 3]
    exact = definition.partial_conv2d_upcat(low, planes[0], skip, planes[1], weight, bias if has_bias else None, scale)
    upstream = torch.randn(exact.output.shape, dtype=torch.float64, device=native)
    run = runner(form, *planes, scale=scale)
    output, *_ = assert_call_accurate(run, upstream, leaves, NAMES[: len(leaves)], native)
    assert_exact(output, exact.output, exact.magnitude)
