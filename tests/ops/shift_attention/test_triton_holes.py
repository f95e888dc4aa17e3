"""hole_attention as one Triton operator each way: what it adds to the general attention."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from msa_ops import hole_attention

from ..support import attention
from ..support.internals import MISSING
from ..support.raw import OPCHECK_STATIC
from ..support.tolerances import assert_accurate
from .test_triton import DEVICE, upstream_of

pytestmark = [
    pytest.mark.skipif(MISSING["triton"] is not None, reason=f"no Triton: {MISSING['triton']}"),
    pytest.mark.usefixtures("small_plans"),
]


def run(backend, x, mask, **options):
    leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    output = hole_attention(leaf, mask, backend=backend, **options)
    probe = upstream_of(output)
    return [output.detach(), *torch.autograd.grad(output, leaf, probe)]


def assert_like_the_reference(x, mask, **options):
    exact = run("reference", x.double(), mask, **options)
    plain, ours = (run(backend, x, mask, **options) for backend in ("reference", "triton"))
    magnitudes = attention.hole_magnitudes(x, mask, upstream_of(x), **options)
    for i, name in enumerate(("output", "gradient")):
        assert_accurate(ours[i], plain[i], exact[i], magnitudes[i], backward=i > 0, what=name)
    return ours


def features(*shape, dtype=torch.float32):
    return torch.randn(shape).to(DEVICE, dtype)


def holes(n, h, w, share=0.6):
    return (torch.rand(n, 1, h, w) < share).to(DEVICE)


@pytest.mark.parametrize(
    ("radius", "dtype", "renormalize"),
    [
        (0, torch.float32, True),
        (1, torch.float32, False),
        (1, torch.float32, True),
        (1, torch.float16, False),
        (1, torch.float16, True),
        (5, torch.float32, True),
    ],
)
def test_output_and_gradient(radius, dtype, renormalize):
    x, mask = features(3, 5, 3, 4, dtype=dtype), holes(3, 3, 4)
    mask[1], mask[2] = False, True  # without background; without holes
    output, gradient = assert_like_the_reference(x, mask, radius=radius, renormalize=renormalize, scale=4.0)
    assert torch.equal(output[1:], x[1:])
    probe = upstream_of(x)
    assert torch.equal(gradient[1], probe[1])


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_layouts_and_strides(memory_format):
    x, mask = features(2, 70, 5, 8).to(memory_format=memory_format), holes(2, 5, 8)
    output, gradient = assert_like_the_reference(x, mask)
    assert output.is_contiguous(memory_format=memory_format)
    assert gradient.is_contiguous(memory_format=memory_format)
    sliced, sliced_mask = x[:, 3:20, 1:5, ::2], mask[:1, :, 1:5, ::2].expand(2, -1, -1, -1)
    wanted = hole_attention(sliced.contiguous(), sliced_mask.contiguous(), backend="reference")
    torch.testing.assert_close(hole_attention(sliced, sliced_mask, backend="triton"), wanted, rtol=1e-5, atol=1e-5)


def test_norms_below_eps_count_as_eps():
    x, mask = features(1, 4, 3, 6), holes(1, 3, 6)
    x[..., :2] = 0.0
    x[..., 2:4] *= 1e-3
    for eps in (0.01, 1.5):
        assert_like_the_reference(x, mask, eps=eps)


@pytest.mark.parametrize(
    ("dtype", "amplitude"),
    [(torch.float32, 0.0), (torch.float32, 1e-8), (torch.float32, 1e4), (torch.float16, 1e4)],
)
def test_extreme_features_stay_finite(dtype, amplitude):
    x = (torch.randn(3, 16, 5, 4) * amplitude).to(DEVICE, dtype)
    mask = torch.cat([holes(1, 5, 4, share) for share in (0.05, 0.5, 0.95)])
    for result in run("triton", x, mask):
        assert torch.isfinite(result).all()


def test_opcheck_in_both_layouts():
    x, mask = features(1, 3, 3, 4), holes(1, 3, 4)
    options = (10.0, 0, True, 1e-6, torch.float32)
    operator = torch.ops.msa_ops.hole_attention_triton_forward
    torch.library.opcheck(
        operator, (x.clone().requires_grad_(), mask, *options), rtol=1e-3, atol=1e-4, test_utils=OPCHECK_STATIC
    )
    channels_last = x.to(memory_format=torch.channels_last).requires_grad_()
    torch.library.opcheck(operator, (channels_last, mask, *options), test_utils="test_faketensor")


def test_second_order_is_refused():
    x, mask = features(1, 3, 3, 4).requires_grad_(), holes(1, 3, 4)
    (grad,) = torch.autograd.grad(hole_attention(x, mask, backend="triton").sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="hole_attention: second-order gradients are not supported"):
        grad.sum().backward()


def test_flops_are_those_of_the_products_in_the_formulas():
    x, mask = features(2, 3, 3, 4).requires_grad_(), holes(2, 3, 4)
    pairs = sum(int((~m).sum() * m.sum()) for m in mask)
    with FlopCounterMode(display=False) as counter:
        hole_attention(x, mask, backend="triton").sum().backward()
    assert counter.get_total_flops() == 2 * pairs * 3 * (2 + 5)


def test_compiles_without_a_graph_break():
    x, mask = features(2, 4, 3, 4), holes(2, 3, 4)
    compiled = torch.compile(hole_attention, fullgraph=True, dynamic=True, backend="aot_eager")
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [f(leaf, mask, backend="triton") for f, leaf in zip((hole_attention, compiled), leaves, strict=True)]
    torch.testing.assert_close(*outputs)
    for output in outputs:
        output.square().sum().backward()
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad)


def test_large_float16_operands_do_not_overflow_on_the_way():
    """On a GPU float16 features are multiplied as such; the gradient of a unit vector is then of the size of φ²."""
    x, mask = (torch.randn(2, 16, 5, 4) * 1e4).to(DEVICE, torch.float16).requires_grad_(), holes(2, 5, 4)
    output, _ = torch.ops.msa_ops.hole_attention_triton_forward(x, mask, 10.0, 1, False, 1e-6, torch.float16)
    (gradient,) = torch.autograd.grad(output.float().sum(), x)
    wide = x.detach().double().requires_grad_()
    wanted = hole_attention(wide, mask, backend="reference")
    (wanted_gradient,) = torch.autograd.grad(wanted.sum(), wide)
    torch.testing.assert_close(output.double(), wanted, rtol=1e-2, atol=1e2)
    torch.testing.assert_close(gradient.double(), wanted_gradient, rtol=2e-2, atol=2e-2)
