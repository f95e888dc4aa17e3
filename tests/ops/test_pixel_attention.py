"""hole_attention against Eqs. 6-8 written out over all pairs of pixels, in float64."""

import pytest
import torch

from msa_ops import HoleAttention, hole_attention


def all_pairs(x, mask, scale, k, renormalize, eps=1e-6):
    """Eqs. 6-8 with Python loops over shifts and the full N×N matrix; x (C,H,W), mask (H,W) bool."""
    c, h, w = x.shape
    flat, valid = x.reshape(c, -1), mask.reshape(-1)
    if valid.all() or not valid.any():
        return x
    unit = flat / flat.norm(dim=0).clamp_min(eps)
    scores = (scale * unit.T @ unit).masked_fill(~valid[None, :], -torch.inf).softmax(1) * (~valid)[:, None]
    scores = scores.reshape(h, w, h, w)
    shifted = torch.zeros_like(scores)
    for dy in range(-k, k + 1):
        for dx in range(-k, k + 1):
            for y in range(max(0, -dy), min(h, h - dy)):
                for v in range(max(0, -dy), min(h, h - dy)):
                    left, right = max(0, -dx), min(w, w - dx)
                    if left < right:
                        part = scores[y + dy, left + dx : right + dx, v + dy, left + dx : right + dx]
                        shifted[y, left:right, v, left:right] += part
    weights = shifted.reshape(h * w, h * w) * valid[None, :] * (~valid)[:, None]
    total = weights.sum(1, keepdim=True)
    if renormalize:
        weights = weights / total.clamp_min(1e-300)
    attended = torch.where(total > 0, weights @ flat.T, flat.T)
    return torch.where(valid[:, None], flat.T, attended).T.reshape(c, h, w)


@pytest.mark.parametrize("radius", [0, 1, 2, 9])
@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("size", [(5, 7), (1, 6), (6, 1), (1, 1)])
def test_forward_and_gradient_follow_the_equations(radius, renormalize, size):
    torch.manual_seed(radius)
    for share in (0.0, 0.2, 0.6, 1.0):
        x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
        mask = torch.rand(2, 1, *size) < share
        output = hole_attention(x, mask, scale=7.0, radius=radius, renormalize=renormalize)
        wanted = torch.stack([all_pairs(x[i], mask[i, 0], 7.0, radius, renormalize) for i in range(2)])
        torch.testing.assert_close(output, wanted, rtol=1e-10, atol=1e-12)
        probe = torch.randn_like(output)
        ours, theirs = (torch.autograd.grad(y, x, probe, retain_graph=True)[0] for y in (output, wanted))
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


def test_gradcheck():
    torch.manual_seed(0)
    x = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(1, 1, 3, 4) > 0.5
    assert torch.autograd.gradcheck(lambda x: hole_attention(x, mask, scale=3.0), (x,))
    assert torch.autograd.gradcheck(lambda x: hole_attention(x, mask, variant="released"), (x,))


def test_released_variant_is_attention_with_box_filtered_queries():
    torch.manual_seed(0)
    x, mask = torch.randn(1, 4, 5, 6, dtype=torch.float64), torch.rand(1, 1, 5, 6) > 0.5
    keys = ((x * mask) + 1e-7)[0].reshape(4, -1).T
    keys = keys / keys.norm(dim=1, keepdim=True)
    padded = torch.nn.functional.pad(x[0], (1, 1, 1, 1))
    queries = sum(padded[:, dy : dy + 5, dx : dx + 6] for dy in range(3) for dx in range(3)).reshape(4, -1).T
    attended = ((queries @ keys.T).softmax(1) @ keys).T.reshape(1, 4, 5, 6)
    torch.testing.assert_close(hole_attention(x, mask, variant="released"), torch.where(mask, x, attended))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("amplitude", [0.0, 1e-8, 1.0, 1e4])
def test_extreme_features_stay_finite(dtype, amplitude):
    torch.manual_seed(0)
    x = (torch.randn(2, 16, 9, 7) * amplitude).to(dtype).requires_grad_()
    for share in (0.0, 0.01, 0.5, 0.99, 1.0):
        output = hole_attention(x, torch.rand(2, 1, 9, 7) < share)
        (gradient,) = torch.autograd.grad(output.float().sum(), x)
        assert output.dtype == dtype
        assert torch.isfinite(output).all()
        assert torch.isfinite(gradient).all()


def test_empty_batch_and_refusals():
    assert hole_attention(torch.empty(0, 3, 4, 4), torch.empty(0, 1, 4, 4)).shape == (0, 3, 4, 4)
    x, mask = torch.randn(1, 3, 4, 4), torch.ones(1, 1, 4, 4)
    for options, message in (
        ({"radius": -1}, "radius must be an integer of at least 0, got -1"),
        ({"scale": float("nan")}, "scale must be finite"),
        ({"variant": "other"}, "variant must be one of 'paper', 'released', got 'other'"),
        ({"eps": 0.0}, "eps must be positive"),
    ):
        with pytest.raises(ValueError, match=f"msa_ops::hole_attention: {message}"):
            hole_attention(x, mask, **options)
    with pytest.raises(ValueError, match=r"mask must have shape \(N, 1, H, W\) with N=1, H=4, W=4"):
        hole_attention(x, mask[..., :3])
    with pytest.raises(RuntimeError, match="hole_attention has no cuda kernels"):
        hole_attention(x, mask, backend="cuda")


def test_module_is_the_function():
    x, mask = torch.randn(1, 3, 6, 6), torch.rand(1, 1, 6, 6) > 0.5
    assert torch.equal(HoleAttention(scale=4.0, radius=2)(x, mask), hole_attention(x, mask, scale=4.0, radius=2))
