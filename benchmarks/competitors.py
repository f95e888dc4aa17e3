"""What a user could run instead of our operators, built the way they would."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class ChannelMaskPartialConv:
    """Partial convolution with one mask channel per input channel and a convolution with a kernel of ones to count
    them, as NVIDIA's published layer does it in its multi-channel mode. Written from the description in Liu et al.
    2018; numbers equal ours for binary masks."""

    def __init__(self, weight: Tensor, bias: Tensor, stride: int, padding: int) -> None:
        self.weight, self.bias = weight, bias
        self.geometry = dict(stride=stride, padding=padding)
        self.ones = torch.ones_like(weight, requires_grad=False)
        self.entries = weight[0].numel()

    def __call__(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """x and mask (N, C, H, W), mask floating-point; returns output and mask (N, C_out, H', W')."""
        with torch.no_grad():
            counts = F.conv2d(mask, self.ones, **self.geometry)
            new_mask = counts.clamp(0, 1)
            ratio = self.entries / (counts + 1e-8) * new_mask
        raw = F.conv2d(x * mask, self.weight, self.bias, **self.geometry)
        bias = self.bias.view(1, -1, 1, 1)
        return ((raw - bias) * ratio + bias) * new_mask, new_mask


def dense_hole_attention(x: Tensor, mask: Tensor, scale: float = 10.0, radius: int = 1) -> Tensor:
    """Eqs. 6-8 with the N×N matrix, as one writes them down in PyTorch: x (N,C,H,W), mask (N,1,H,W) bool."""
    n, _, h, w = x.shape
    flat, valid = x.flatten(2), mask.flatten(2)
    unit = F.normalize(flat, dim=1, eps=1e-6)
    scores = scale * unit.transpose(1, 2) @ unit
    weights = scores.masked_fill(~valid, -torch.inf).softmax(2).nan_to_num() * ~valid.transpose(1, 2)
    # Shifting both pixels by (dy, dx): rows first, then columns, since the window is a square.
    weights = _shift_sum(weights.view(n, h, w, h, w), radius, (2, 4))
    weights = _shift_sum(weights, radius, (1, 3)).reshape(n, h * w, h * w) * valid
    attended = (weights @ flat.transpose(1, 2)).transpose(1, 2).view_as(x)
    return torch.where(mask | ~mask.flatten(1).any(1)[:, None, None, None], x, attended)


def _shift_sum(weights: Tensor, radius: int, dims: tuple[int, int]) -> Tensor:
    total = weights.clone()
    extent = weights.shape[dims[0]]
    for step in range(1, min(radius, extent - 1) + 1):
        for into, out_of in ((0, step), (step, 0)):
            target, source = total, weights
            for dim in dims:
                target = target.narrow(dim, into, extent - step)
                source = source.narrow(dim, out_of, extent - step)
            target += source
    return total
