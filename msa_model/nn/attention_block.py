"""The attention stage of the decoder: pixelwise attention, then the fusion of Eqs. 9-12."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from msa_ops import HoleAttention


class SqueezeExcitation(nn.Module):
    """Weighs channels by their global averages (Eqs. 9-11): u ⊙ σ(W₂ ReLU(W₁ mean(u)))."""

    def __init__(self, channels: int, expansion: float = 1.0) -> None:
        super().__init__()
        hidden = max(1, round(channels * expansion))
        self.blocks = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels), nn.Sigmoid())

    def forward(self, u: Tensor) -> Tensor:
        """Weighs the channels of u, (N,C,H,W) -> (N,C,H,W)."""
        return u * self.blocks(u.mean(dim=(2, 3)))[:, :, None, None]


class AttentionBlock(nn.Module):
    """Attends to the background (Eqs. 6-8), then fuses the result with the features φ (Eqs. 9-12).

    φ and its attended version are concatenated, weighed per channel, and merged to C channels by a 1×1 convolution.

    Args:
        channels: C of the features.
        se_ratio: hidden width of the squeeze-and-excitation, divided by 2C; 1 in the released code.
        attention: options of `msa_ops.HoleAttention` (scale, radius, renormalize, variant, eps, backend).
    """

    def __init__(self, channels: int, se_ratio: float = 1.0, **attention: Any) -> None:
        super().__init__()
        self.attention = HoleAttention(**attention)
        self.squeeze_excitation = SqueezeExcitation(2 * channels, se_ratio)
        self.combiner = nn.Conv2d(2 * channels, channels, kernel_size=1)

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """Runs the stage.

        Args:
            features: (N,C,H,W).
            mask: (N,1,H,W) of this stage, 1 = background.

        Returns:
            (N,C,H,W).
        """
        attended = self.attention(features, mask)
        return self.combiner(self.squeeze_excitation(torch.cat([features, attended], dim=1)))
