"""The convolution operators under autocast."""

import pytest
import torch

from msa_ops import partial_conv2d

from ..support.upcat import upcat
from .networks import sample


@pytest.mark.parametrize("form", ["phases", "concatenation", "partial_conv2d"])
def test_autocast_computes_in_bfloat16_and_returns_float32_gradients(backend, device, form):
    x, mask, weight, bias = sample(2, 8, 8, device)
    low, low_mask = torch.randn(2, 2, 4, 4, device=device), mask[:, :, ::2, ::2]
    inputs = (x, weight, bias) if form == "partial_conv2d" else (low, x[:, :1], weight, bias)

    def run(*leaves):
        if form == "partial_conv2d":
            return partial_conv2d(leaves[0], mask, *leaves[1:], padding=1, backend=backend)
        return upcat(form, leaves[0], low_mask, leaves[1], mask, *leaves[2:], backend=backend)

    leaves = [t.clone().requires_grad_() for t in inputs]
    with torch.autocast(device, dtype=torch.bfloat16):
        output, new_mask = run(*leaves)
    assert output.dtype == torch.bfloat16
    assert new_mask.dtype == mask.dtype
    got = torch.autograd.grad(output.float().square().sum(), leaves)
    by_hand = [t.clone().requires_grad_() for t in inputs]
    cast, _ = run(*(t.bfloat16() for t in by_hand))
    assert torch.equal(output, cast)
    for gradient, wanted in zip(got, torch.autograd.grad(cast.float().square().sum(), by_hand), strict=True):
        assert gradient.dtype == torch.float32
        assert torch.equal(gradient, wanted)


def test_autocast_accepts_mixed_dtypes_but_leaves_float64_alone(native):
    x, mask, weight, bias = sample(2, 8, 8, native)
    with torch.autocast(native, dtype=torch.bfloat16):
        assert partial_conv2d(x.half(), mask, weight, bias)[0].dtype == torch.bfloat16
        assert partial_conv2d(x.double(), mask, weight.double(), bias.double())[0].dtype == torch.float64
        with torch.autocast(native, enabled=False):
            assert partial_conv2d(x, mask, weight, bias)[0].dtype == torch.float32
