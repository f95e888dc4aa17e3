"""The attention stage of the decoder: pixelwise attention, then the fusion of Eqs. 9-12."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from msa_ops import HoleAttention


class SqueezeExcitation(nn.Module):
    """Channel weights from global averages (Eqs. 9-11): u ⊙ σ(W₂ ReLU(W₁ mean(u)))."""

    def __init__(self, channels: int, expansion: float = 1.0) -> None:
        super().__init__()
        hidden = max(1, round(channels * expansion))
        self.blocks = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels), nn.Sigmoid())

    def forward(self, u: Tensor) -> Tensor:
        """u (N,C,H,W) -> (N,C,H,W)."""
        return u * self.blocks(u.mean(dim=(2, 3)))[:, :, None, None]


class AttentionBlock(nn.Module):
    """Attention stage: φ and its attended version concatenated, reweighted per channel, merged back (Eqs. 6-12).

    Args:
        channels: C of the features.
        se_ratio: hidden width of the squeeze-and-excitation over 2C; 1 in the released code.
        attention: options of :class:`msa_ops.HoleAttention` (scale, radius, renormalize, variant, eps, backend).
    """

    def __init__(self, channels: int, se_ratio: float = 1.0, **attention) -> None:
        super().__init__()
        self.attention = HoleAttention(**attention)
        self.squeeze_excitation = SqueezeExcitation(2 * channels, se_ratio)
        self.combiner = nn.Conv2d(2 * channels, channels, kernel_size=1)

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """features (N,C,H,W), mask (N,1,H,W) of this stage with 1 = background; returns (N,C,H,W)."""
        attended = self.attention(features, mask)
        return self.combiner(self.squeeze_excitation(torch.cat([features, attended], dim=1)))
