"""A small set for compute-sanitizer: every kernel for CUDA once per layout, with sizes that leave tails."""

import pytest
import torch

import msa_ops

from .support.upcat import FORMS, upcat

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="compute-sanitizer's set needs a CUDA device"),
]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("channels", [3, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", ["cuda", "auto"])  # auto: Triton's where they take the maps
def test_kernels_stay_in_bounds(memory_format, channels, dtype, backend):
    torch.manual_seed(0)

    def leaf(*shape):
        return torch.randn(shape, device="cuda").to(dtype=dtype, memory_format=memory_format).requires_grad_()

    x, weight = leaf(2, channels, 9, 7), leaf(8, channels, 3, 3)
    bias = torch.randn(8, device="cuda").to(dtype).requires_grad_()
    for mask_channels in (1, channels):
        mask = torch.rand(2, mask_channels, 9, 7, device="cuda") > 0.5
        output, _ = msa_ops.partial_conv2d(x, mask, weight, bias, 2, 1, backend=backend)
        output.sum().backward()
    low, skip, wide = leaf(2, channels, 5, 3), leaf(2, 8, 10, 6), leaf(8, channels + 8, 3, 3)
    low_mask, skip_mask = torch.rand(2, 1, 5, 3, device="cuda") > 0.5, torch.rand(2, 1, 10, 6, device="cuda") > 0.5
    for form in FORMS:
        output, _ = upcat(form, low, low_mask, skip, skip_mask, wide, bias, backend=backend)
        output.sum().backward()
    torch.cuda.synchronize()
    for tensor in (x, weight, bias, low, skip, wide):
        assert torch.isfinite(tensor.grad).all()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("renormalize", [False, True])
def test_attention_stays_in_bounds(memory_format, dtype, renormalize):
    x = torch.randn(2, 5, 13, 12, device="cuda").to(dtype=dtype, memory_format=memory_format).requires_grad_()
    mask = torch.rand(2, 1, 13, 12, device="cuda") > 0.5
    for backend in ("cuda", "auto"):
        msa_ops.hole_attention(x, mask, renormalize=renormalize, backend=backend).sum().backward()
        msa_ops.hole_attention_map(x, mask, backend=backend)
    torch.cuda.synchronize()
    assert torch.isfinite(x.grad).all()
