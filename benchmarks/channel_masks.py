"""The published formulation of partial convolution, which PConv's network and the cases of single layers run."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class ChannelMaskPartialConv:
    """Partial convolution with one mask channel per input channel, counted by a convolution with a kernel of ones, as
    NVIDIA's published layer does it in its multi-channel mode. Written from the description in Liu et al. 2018;
    numbers equal ours for binary masks."""

    def __init__(self, weight: Tensor, bias: Tensor, stride: int, padding: int) -> None:
        self.weight, self.bias = weight, bias
        self.geometry = dict(stride=stride, padding=padding)
        self.ones = torch.ones_like(weight, requires_grad=False)
        self.entries = weight[0].numel()

    def __call__(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Takes x and mask (N, C, H, W), mask floating-point; returns output and mask (N, C_out, H', W')."""
        with torch.no_grad():
            counts = F.conv2d(mask, self.ones, **self.geometry)
            new_mask = counts.clamp(0, 1)
            ratio = self.entries / (counts + 1e-8) * new_mask
        raw = F.conv2d(x * mask, self.weight, self.bias, **self.geometry)
        bias = self.bias.view(1, -1, 1, 1)
        return ((raw - bias) * ratio + bias) * new_mask, new_mask
