"""What PIC's networks (Zheng et al. 2019) are made of: residual blocks and short+long-term attention.

Every convolution has spectral norm, a bias and an orthogonal initial weight; the activation is LeakyReLU(0.1).

The published initial weights have gain 0.02, which spectral norm divides out again, so that the networks start as the
same functions here. What that gain would change is the size of Adam's first steps next to the weights: one power
iteration a step cannot follow them, and losses of 10⁴ to 10¹⁵ have been seen after the first. The gain here is 1.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .instance_norm import instance_norm
from .spectral_norm import SpectralConv2d, SpectralConvTranspose2d

Conv = functools.partial(SpectralConv2d, init=nn.init.orthogonal_)
TransposedConv = functools.partial(
    SpectralConvTranspose2d, kernel_size=3, stride=2, padding=1, output_padding=1, init=nn.init.orthogonal_
)


def activate(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.1)


class ResidualBlock(nn.Module):
    """Activation, 3×3, activation, 3×3, plus a 1×1 shortcut; ``down`` halves the size by average pooling.

    Args:
        channels, hidden, out_channels: of the input, between the two convolutions, of the output.
    """

    def __init__(self, channels: int, hidden: int, out_channels: int, down: bool = False) -> None:
        super().__init__()
        self.first = Conv(channels, hidden, kernel_size=3, padding=1)
        self.second = Conv(hidden, out_channels, kernel_size=3, padding=1)
        self.shortcut = Conv(channels, out_channels, kernel_size=1)
        self.down = down

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(activate(self.first(activate(x)))) + self.shortcut(x)
        # The pool of the sum is the sum of the pools.
        return F.avg_pool2d(x, 2) if self.down else x


class FirstBlock(nn.Module):
    """The block that takes an image: 3×3, activation, 3×3, pool, plus pool, 1×1."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.first = Conv(channels, out_channels, kernel_size=3, padding=1)
        self.second = Conv(out_channels, out_channels, kernel_size=3, padding=1)
        self.shortcut = Conv(channels, out_channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.second(activate(self.first(x)))
        return F.avg_pool2d(residual, 2) + self.shortcut(F.avg_pool2d(x, 2))


class DecoderBlock(nn.Module):
    """Instance norm, activation, 3×3, instance norm, activation, transposed 3×3 that doubles the size, plus such a
    transposed convolution as shortcut."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([instance_norm(channels), instance_norm(out_channels)])
        self.first = Conv(channels, out_channels, kernel_size=3, padding=1)
        self.second = TransposedConv(out_channels, out_channels)
        self.shortcut = TransposedConv(channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.first(activate(self.norms[0](x)))
        return self.second(activate(self.norms[1](residual))) + self.shortcut(x)


class Output(nn.Module):
    """Activation, reflection pad, 3×3 to three channels, tanh: an image in [-1, 1]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv(channels, 3, kernel_size=3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.conv(F.pad(activate(x), (1, 1, 1, 1), mode="reflect")))


class SelfAttention(nn.Module):
    """Every pixel plus γ times the mean of all, weighted by softmax(QᵀQ): queries, a 1×1 convolution to a quarter of
    the channels, are keys too, and values are the features themselves. γ starts at 0, as in self-attention GANs."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query = Conv(channels, channels // 4, kernel_size=1)
        self.gamma = nn.Parameter(torch.zeros(()))

    def weights(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, HW, HW), rows of sum 1."""
        query = self.query(x).flatten(2)
        return torch.softmax(query.mT @ query, dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        return self.gamma * attend(self.weights(x), x) + x


class ShortLongAttention(SelfAttention):
    """Self-attention within the decoder (short) and, by the same weights, attention to the encoder's feature, taken
    where the image is a hole (long); a residual block merges the two."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.alpha = nn.Parameter(torch.zeros(()))
        self.merge = ResidualBlock(2 * channels, channels, channels)

    def forward(self, x: Tensor, feature: Tensor, valid: Tensor) -> Tensor:
        """
        Args:
            x, feature: decoder's and encoder's features (N, C, H, W).
            valid: (N, 1, H, W), floating-point, 1 = valid, 0 = hole.

        Returns:
            (N, C, H, W).
        """
        weights = self.weights(x)
        short = self.gamma * attend(weights, x) + x
        long = self.alpha * (1 - valid) * attend(weights, feature) + valid * feature
        return self.merge(torch.cat([short, long], dim=1))


def attend(weights: Tensor, values: Tensor) -> Tensor:
    """Weighted means of the values' pixels: weights (N, HW, HW), values (N, C, H, W) -> (N, C, H, W)."""
    return (values.flatten(2) @ weights.mT).view_as(values)
