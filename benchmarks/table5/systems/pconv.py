"""PConv (Liu et al. 2018): a U-Net of partial convolutions, trained without a discriminator.

Also an example of the fused operators in a network of one's own: `PartialConvolution` shows them beside the published
formulation that they replace.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from msa_model import InpaintingLoss
from msa_ops import partial_conv2d, partial_conv2d_upcat

from ...channel_masks import ChannelMaskPartialConv
from ...model import VGG16Features
from .common import Batch, System, update, with_he_weights

#: This backend stands for the published formulation: C-channel masks, counted by a convolution with a kernel of ones.
PUBLISHED = "reference"


class PartialConvolution(nn.Conv2d):
    """Takes a map and its mask, (N, 1, H, W) or, as published, (N, C, H, W). With `skip`, a larger map and its mask, it
    is a decoder's: a convolution of cat(nearest ×2 of x, skip), which only the published formulation builds."""

    def __init__(self, width: int, out_width: int, kernel: int, stride: int, backend: str) -> None:
        super().__init__(width, out_width, kernel, stride, padding=kernel // 2)
        self.backend = backend

    def forward(self, x: Tensor, mask: Tensor, *skip: Tensor) -> tuple[Tensor, Tensor]:
        if self.backend == PUBLISHED:
            if skip:
                doubled = (F.interpolate(t, scale_factor=2) for t in (x, mask))
                x, mask = (torch.cat(pair, dim=1) for pair in zip(doubled, skip, strict=True))
            return ChannelMaskPartialConv(self.weight, self.bias, self.stride, self.padding)(x, mask)
        if skip:
            return partial_conv2d_upcat(x, mask, *skip, self.weight, self.bias, backend=self.backend)
        return partial_conv2d(x, mask, self.weight, self.bias, self.stride, self.padding, backend=self.backend)


class PConvUNet(nn.Module):
    """Encoder 7/5/5/3…, stride 2, 64-128-256-512-512… channels, ReLU; decoder nearest ×2, concatenation with the
    encoder's map, 3×3, LeakyReLU(0.2); batch norm in all but the first and the last layer.

    Args:
        depth: layers of the encoder; 7 as published (25.8 M parameters).
        backend: of the fused operators; ``"reference"`` is the published formulation. The state dict is the same.
        width: channels of the first layer; 64 as published.
    """

    def __init__(self, depth: int = 7, backend: str = "auto", width: int = 64) -> None:
        super().__init__()
        self.is_published = backend == PUBLISHED
        self.encoder, self.encoder_norm = nn.ModuleList(), nn.ModuleList()
        self.decoder, self.decoder_norm = nn.ModuleList(), nn.ModuleList()  # layer i brings back the encoder's input i
        widths = [3] + [width * min(8, 2**level) for level in range(depth)]
        for i, (outer, inner) in enumerate(itertools.pairwise(widths)):
            self.encoder.append(PartialConvolution(outer, inner, {0: 7, 1: 5, 2: 5}.get(i, 3), 2, backend))
            self.encoder_norm.append(nn.BatchNorm2d(inner) if i else nn.Identity())
            self.decoder.append(PartialConvolution(inner + outer, outer, 3, 1, backend))
            self.decoder_norm.append(nn.BatchNorm2d(outer) if i else nn.Identity())
        with_he_weights(self)

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        """image (N,3,H,W), mask (N,1,H,W) bool, True = valid; H and W multiples of 2^depth. Returns (N,3,H,W)."""
        x = image * mask
        if self.is_published:
            mask = mask.to(x.dtype).expand_as(x)
        skips = []
        for conv, norm in zip(self.encoder, self.encoder_norm, strict=True):
            skips.append((x, mask))
            x, mask = conv(x, mask)
            x = F.relu(norm(x), inplace=True)
        for i, skip in reversed(list(enumerate(skips))):
            x, mask = self.decoder[i](x, mask, *skip)
            if i > 0:
                x = F.leaky_relu(self.decoder_norm[i](x), 0.2, inplace=True)
        return x


class PConv(System):
    """Trains `PConvUNet`, whose options it takes, as published.

    Losses: valid 1, hole 6, perceptual 0.05, style 120, total variation 0.1; perceptual and style of the prediction and
    of the composite, on VGG-16's pool1-3 (random weights). Adam at 2e-4.
    """

    def __init__(self, device: torch.device, precision: torch.dtype = torch.float32, **network: object) -> None:
        # The released variant of these losses is the one that compares the composite too.
        self.loss = InpaintingLoss(with_he_weights(VGG16Features(None)), variant="released").to(device)
        super().__init__(device, precision, {"generator": PConvUNet(**network)}, self.loss.vgg)
        self.optimizer = torch.optim.Adam(self.networks.parameters(), lr=2e-4, fused=True)

    def step(self, batch: Batch) -> dict[str, Tensor]:
        with self.autocast():
            prediction = self.networks["generator"](batch.image, batch.mask)
            total, terms = self.loss.generator_loss(prediction, batch.image, batch.mask, None)
        update(self.optimizer, total)
        return {"total": total} | terms
