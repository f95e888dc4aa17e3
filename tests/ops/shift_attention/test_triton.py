"""The Triton kernels of attention against the reference: interpreted without a GPU, on it where there is one."""

import pytest
import torch

from msa_ops import hole_attention, hole_attention_map, not_supported_reasons, shift_attention

from ..support import attention
from ..support.internals import MISSING
from ..support.raw import OPCHECK_STATIC
from ..support.tolerances import assert_accurate

pytestmark = [
    pytest.mark.skipif(MISSING["triton"] is not None, reason=f"no Triton: {MISSING['triton']}"),
    pytest.mark.usefixtures("small_plans"),
]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def operands(h, w, dtype=torch.float32, n=2, c=5, cv=4):
    query, key = torch.randn(2, n, c, h, w).to(dtype)
    tensors = [
        query,
        key,
        torch.randn(n, cv, h, w).to(dtype),
        torch.rand(n, 1, h, w) > 0.4,
        torch.rand(n, 1, h, w) > 0.3,
    ]
    return [t.to(DEVICE) for t in tensors]


def upstream_of(output):
    return torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view(output.shape).to(output)


def run(backend, maps, masks, **options):
    """Output and the gradients of query, key and value."""
    leaves = [t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in maps]
    output = shift_attention(*leaves, *masks, backend=backend, **options)
    probe = upstream_of(output)
    return [output.detach(), *torch.autograd.grad(output, leaves, probe)]


def assert_like_the_reference(maps, masks, **options):
    exact = run("reference", [t.double() for t in maps], masks, **options)
    plain, ours = (run(backend, maps, masks, **options) for backend in ("reference", "triton"))
    magnitudes = attention.magnitudes(*maps, *masks, upstream_of(maps[2]).double(), **options)
    for i, name in enumerate(("output", "query", "key", "value")):
        assert_accurate(ours[i], plain[i], exact[i], magnitudes[i], backward=i > 0, what=name)
    return ours


@pytest.mark.parametrize(
    ("size", "radius", "renormalize"),
    [
        ((5, 7), 0, True),
        ((5, 7), 1, False),
        ((1, 6), 1, False),
        ((6, 1), 2, True),
        ((1, 1), 1, False),
        ((9, 10), 1, True),
    ],
)
def test_forward_and_gradients(size, radius, renormalize):
    """9 × 10 needs several tiles of queries and blocks of keys; a sample of 5 × 7 has no keys."""
    *maps, is_query, is_key = operands(*size)
    is_key[1] = is_key[1] & (size != (5, 7))  # a sample without keys
    assert_like_the_reference(maps, (is_query, is_key), scale=1.5, radius=radius, renormalize=renormalize)


def test_a_radius_larger_than_the_map():
    *maps, is_query, is_key = operands(3, 4, n=1)
    assert_like_the_reference(maps, (is_query, is_key), radius=9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_dtypes_and_layouts(dtype, memory_format):
    *maps, is_query, is_key = operands(4, 7, dtype, n=1, c=16, cv=8)
    maps = [t.to(memory_format=memory_format) for t in maps]
    ours = assert_like_the_reference(maps, (is_query, is_key), radius=1)
    assert all(t.is_contiguous(memory_format=memory_format) for t in ours)


@pytest.mark.parametrize("channels", [(1, 1), (70, 130)])
def test_channels_beyond_a_block(channels):
    *maps, is_query, is_key = operands(4, 5, n=1, c=channels[0], cv=channels[1])
    assert_like_the_reference(maps, (is_query, is_key), scale=0.3, radius=1)


def test_large_scores_need_the_running_maximum():
    *maps, is_query, is_key = operands(5, 9, n=1)
    assert_like_the_reference(maps, (is_query, is_key), scale=300.0)


def test_only_asked_for_gradients():
    *maps, is_query, is_key = operands(4, 5, n=1)
    everything = run("triton", maps, (is_query, is_key), radius=1)[1:]
    for i in range(3):
        leaves = [t.clone().requires_grad_(j == i) for j, t in enumerate(maps)]
        output = shift_attention(*leaves, is_query, is_key, radius=1, backend="triton")
        probe = upstream_of(output)
        (grad,) = torch.autograd.grad(output, leaves[i], probe)
        torch.testing.assert_close(grad, everything[i])


@pytest.mark.parametrize(("radius", "share"), [(0, 0.3), (1, 0.3), (2, 0.3), (1, 0.0), (1, 1.0)])
def test_map_is_the_references(radius, share):
    x, mask = torch.randn(2, 3, 6, 7, device=DEVICE), (torch.rand(2, 1, 6, 7) < share).to(DEVICE)
    maps = [hole_attention_map(x, mask, radius=radius, backend=backend) for backend in ("triton", "reference")]
    # Neighbours in rank may swap by a rounding, which happens once in thousands of pixels.
    assert (maps[0] != maps[1]).sum() <= 1
    assert torch.equal(maps[0] >= 0, maps[1] >= 0)


def test_hole_attention_in_both_variants_and_of_empty_batches():
    x, mask = torch.randn(2, 3, 6, 7, device=DEVICE), (torch.rand(2, 1, 6, 7) > 0.5).to(DEVICE)
    for variant in ("paper", "released"):
        outputs = [hole_attention(x, mask, variant=variant, backend=b) for b in ("triton", "reference")]
        torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-5)
    assert hole_attention(x[:0], mask[:0], backend="triton").shape == (0, 3, 6, 7)


def test_opcheck():
    *maps, is_query, is_key = operands(2, 3, n=1, c=2, cv=2)
    maps = [t.requires_grad_() for t in maps]
    forward = torch.ops.msa_ops.shift_attention_triton_forward
    torch.library.opcheck(
        forward, (*maps, is_query, is_key, 1.5, 0, True), rtol=1e-3, atol=1e-4, test_utils=OPCHECK_STATIC
    )
    arguments = (maps[0].detach(), maps[1].detach(), is_query, is_key, 1.5, 0)
    argmax = torch.ops.msa_ops.shift_attention_triton_argmax
    torch.library.opcheck(argmax, arguments, test_utils=("test_schema", "test_faketensor"))


def test_second_order_is_refused():
    *maps, is_query, is_key = operands(2, 3, n=1)
    maps = [t.requires_grad_() for t in maps]
    output = shift_attention(*maps, is_query, is_key, backend="triton")
    (grad,) = torch.autograd.grad(output.sum(), maps[0], create_graph=True)
    with pytest.raises(RuntimeError, match="shift_attention: second-order gradients are not supported"):
        grad.sum().backward()


def test_float64_is_refused_with_the_reason():
    x = torch.randn(1, 3, 4, 4, device=DEVICE)
    assert not_supported_reasons("shift_attention", "triton", x) == []
    assert not_supported_reasons("shift_attention", "triton", x.double()) == ["it has no kernel for torch.float64"]


def test_what_lies_outside_the_masks_reaches_no_result():
    maps, masks = (lambda t: (t[:3], t[3:]))(operands(4, 6))
    hidden = [torch.where(mask, t, torch.nan) for t, mask in zip(maps, (masks[0], masks[1], masks[1]), strict=True)]
    seen = [torch.where(mask, t, 0.0) for t, mask in zip(maps, (masks[0], masks[1], masks[1]), strict=True)]
    for ours, wanted in zip(*(run("triton", t, masks, radius=1) for t in (hidden, seen)), strict=True):
        assert torch.equal(ours, wanted)
