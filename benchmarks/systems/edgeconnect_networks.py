"""The generator and the discriminator of EdgeConnect (Nazeri et al. 2019), which both of its stages use."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from .instance_norm import instance_norm
from .spectral_norm import SpectralConv2d, SpectralConvTranspose2d


class EdgeConnectGenerator(nn.Module):
    """Two halvings, eight dilated residual blocks at 256 channels, two doublings: 10.76 M parameters with 3 input and 1
    output channels, 10.77 M with 4 and 3.

    Instance norm and ReLU follow every convolution but the last. That norm takes off any bias, so only the last
    convolution has one.

    Args:
        channels: of the input.
        out_channels: of the output.
        squash: the elementwise function at the end.
        spectral: spectral norm on all convolutions but the last.
    """

    def __init__(
        self, channels: int, out_channels: int, squash: Callable[[Tensor], Tensor], spectral: bool = False
    ) -> None:
        super().__init__()
        conv = SpectralConv2d if spectral else nn.Conv2d
        transposed = SpectralConvTranspose2d if spectral else nn.ConvTranspose2d

        def halving(width: int) -> list[nn.Module]:
            return _normed(conv(width, 2 * width, kernel_size=4, stride=2, padding=1, bias=False))

        def doubling(width: int) -> list[nn.Module]:
            return _normed(transposed(width, width // 2, kernel_size=4, stride=2, padding=1, bias=False))

        self.layers = nn.Sequential(
            nn.ReflectionPad2d(3),
            *_normed(conv(channels, 64, kernel_size=7, bias=False)),
            *halving(64),
            *halving(128),
            *(DilatedResidualBlock(256, conv) for _ in range(8)),
            *doubling(256),
            *doubling(128),
            nn.ReflectionPad2d(3),
            nn.Conv2d(64, out_channels, kernel_size=7),
        )
        self.squash = squash

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, out_channels, H, W); H and W multiples of 4, at least 12."""
        return self.squash(self.layers(x))


class DilatedResidualBlock(nn.Module):
    """Plus its input: reflection pad, 3×3 with dilation 2, instance norm, ReLU, reflection pad, 3×3, instance norm."""

    def __init__(self, channels: int, conv: type[nn.Conv2d]) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReflectionPad2d(2),
            *_normed(conv(channels, channels, kernel_size=3, dilation=2, bias=False)),
            nn.ReflectionPad2d(1),
            conv(channels, channels, kernel_size=3, bias=False),
            instance_norm(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def _normed(conv: nn.Module) -> list[nn.Module]:
    return [conv, instance_norm(conv.out_channels), nn.ReLU(inplace=True)]


class PatchDiscriminator(nn.Module):
    """Five 4×4 convolutions with padding 1 and spectral norm, LeakyReLU(0.2) between them: 2.76 M parameters.

    Their geometry is that of :class:`msa_model.Discriminator`; all five maps are returned, for feature matching.

    Args:
        channels: of the input.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        widths = (channels, 64, 128, 256, 512, 1)
        self.layers = nn.ModuleList(
            SpectralConv2d(widths[i], widths[i + 1], kernel_size=4, stride=2 if i < 3 else 1, padding=1, bias=False)
            for i in range(5)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """
        Args:
            x: (N, channels, H, W), floating-point; H and W multiples of 8, at least 24.

        Returns:
            Activations (N, 64, H/2, W/2), (N, 128, H/4, W/4), (N, 256, H/8, W/8), (N, 512, H/8 - 1, W/8 - 1) and, as
            the fifth, logits (N, 1, H/8 - 2, W/8 - 2), positive = real.
        """
        features = []
        for layer in self.layers[:-1]:
            x = F.leaky_relu(layer(x), 0.2)
            features.append(x)
        return [*features, self.layers[-1](x)]
