"""The encoder, the generator and the discriminator of PIC (Zheng et al. 2019).

Their parameters are 3.60, 2.37 and 1.10 million. The known figures, 3.64, 2.40 and 1.59, contain more than a step
trains:

- the vectors of the spectral norms' power iterations, which torch keeps as buffers (0.03, 0.03 and 0.02 million);
- in the discriminator, whose attention has a decoder's feature only, the residual block 256→128 that merges short-
  and long-term attention (0.48 million): 138 GFLOP a step leave no room for running it, so it is left out here.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .pic_blocks import (
    Conv,
    DecoderBlock,
    FirstBlock,
    Output,
    ResidualBlock,
    SelfAttention,
    ShortLongAttention,
    activate,
)

ENCODER_WIDTHS = (32, 64, 128, 128, 128)
DECODER_WIDTHS = (128, 128, 128, 64, 32)


class Gaussian(NamedTuple):
    """Independent normal distributions of latent variables; float32 tensors of one shape."""

    mean: Tensor
    deviation: Tensor

    def sample(self) -> Tensor:
        return self.mean + self.deviation * torch.randn_like(self.mean)

    def divergence(self, other: Gaussian) -> Tensor:
        """Kullback-Leibler divergence of this from the other, mean over the variables: a scalar."""
        ratio = (self.deviation / other.deviation).square()
        distance = ((self.mean - other.mean) / other.deviation).square()
        return 0.5 * (ratio + distance - 1 - ratio.log()).mean()


class Encoder(nn.Module):
    """Five halvings of the masked image and of its complement, and a distribution of latents for each."""

    def __init__(self) -> None:
        super().__init__()
        widths = ENCODER_WIDTHS
        self.blocks = nn.ModuleList([FirstBlock(3, widths[0])])
        for i in range(4):
            self.blocks.append(ResidualBlock(widths[i], widths[i], widths[i + 1], down=True))
        self.inference = nn.Sequential(*(ResidualBlock(128, 128, 128) for _ in range(6)))
        self.prior = ResidualBlock(128, 128, 256)
        self.posterior = ResidualBlock(128, 128, 256)

    def forward(self, images: Tensor) -> tuple[list[Tensor], Gaussian, Gaussian]:
        """
        Args:
            images: (2N, 3, H, W), floating-point: N images that are 0 in their holes, then the N complements, which
                are 0 elsewhere; H and W multiples of 32.

        Returns:
            The features of the first N, (N, 32, H/2, W/2), (N, 64, H/4, W/4), (N, 128, H/s, W/s) for s = 8, 16, 32;
            the prior, latents (N, 128, H/32, W/32) given the masked images; and the posterior, latents given the
            complements.
        """
        features = []
        x = images
        for block in self.blocks:
            x = block(x)
            features.append(x.chunk(2)[0])
        masked, complement = x.chunk(2)
        return features, _gaussian(self.prior(self.inference(masked))), _gaussian(self.posterior(complement))


def _gaussian(parameters: Tensor) -> Gaussian:
    mean, raw_deviation = parameters.float().chunk(2, dim=1)
    return Gaussian(mean, F.softplus(raw_deviation))


class Generator(nn.Module):
    """Latents and the encoder's features to images of four sizes, each the next block's input as well."""

    def __init__(self) -> None:
        super().__init__()
        widths = DECODER_WIDTHS
        self.latent = ResidualBlock(128, 128, 128)
        self.blocks = nn.ModuleList([DecoderBlock(128, widths[0]), DecoderBlock(widths[0], widths[1])])
        for i in range(1, 4):
            self.blocks.append(DecoderBlock(widths[i] + 3, widths[i + 1]))
        self.outputs = nn.ModuleList(Output(width) for width in widths[1:])
        self.attention = ShortLongAttention(widths[1])

    def forward(self, latents: Tensor, last_feature: Tensor, feature: Tensor, valid: Tensor) -> list[Tensor]:
        """
        Args:
            latents, last_feature: (N, 128, H/32, W/32), the latter the encoder's.
            feature: the encoder's (N, 128, H/8, W/8).
            valid: (N, 1, H/8, W/8), floating-point, 1 = valid, 0 = hole.

        Returns:
            Images (N, 3, H/s, W/s) in [-1, 1] for s = 8, 4, 2, 1.
        """
        x = self.blocks[0](self.latent(latents) + last_feature)
        x = self.attention(self.blocks[1](x), feature, valid)
        images = [self.outputs[0](x)]
        for block, output in zip(self.blocks[2:], self.outputs[1:], strict=True):
            x = block(torch.cat([x, images[-1]], dim=1))
            images.append(output(x))
        return images


class Discriminator(nn.Module):
    """Five halvings with self-attention after the third."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            FirstBlock(3, 32),
            ResidualBlock(32, 32, 64, down=True),
            ResidualBlock(64, 64, 128, down=True),
            SelfAttention(128),
            ResidualBlock(128, 128, 128, down=True),
            ResidualBlock(128, 128, 128, down=True),
            ResidualBlock(128, 128, 128),
        )
        self.score = Conv(128, 1, kernel_size=3)

    def forward(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] -> scores (N, 1, H/32 - 2, W/32 - 2); H and W multiples of 32, at least 96."""
        return self.score(activate(self.layers(image)))
