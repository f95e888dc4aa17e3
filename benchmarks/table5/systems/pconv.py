"""PConv (Liu et al. 2018): a U-Net of partial convolutions, trained without a discriminator.

Also an example of the fused operators in a network of one's own: `Encoder` and `Decoder` show each of them beside the
published formulation that it replaces.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from msa_model import InpaintingLoss
from msa_ops import partial_conv2d, partial_conv2d_upcat

from ...channel_masks import ChannelMaskPartialConv
from ...model import VGG16Features
from .layers import with_he_weights
from .system import Batch, System, detached, update

#: This backend stands for the published formulation: C-channel masks, counted by a convolution with a kernel of ones.
PUBLISHED = "reference"


class Encoder(nn.Conv2d):
    """Partial convolution with stride 2 of a map and its mask, (N, 1, H, W) or, as published, (N, C, H, W)."""

    def __init__(self, width: int, out_width: int, kernel: int, backend: str) -> None:
        super().__init__(width, out_width, kernel, stride=2, padding=kernel // 2)
        self.backend = backend

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        if self.backend == PUBLISHED:
            return ChannelMaskPartialConv(self.weight, self.bias, self.stride, self.padding)(x, mask)
        return partial_conv2d(x, mask, self.weight, self.bias, self.stride, self.padding, backend=self.backend)


class Decoder(nn.Conv2d):
    """Partial convolution of cat(nearest ×2 of low, skip) and of the masks likewise; only the published formulation
    builds these tensors."""

    def __init__(self, width: int, out_width: int, backend: str) -> None:
        super().__init__(width, out_width, kernel_size=3, padding=1)
        self.backend = backend

    def forward(self, low: Tensor, low_mask: Tensor, skip: Tensor, skip_mask: Tensor) -> tuple[Tensor, Tensor]:
        if self.backend == PUBLISHED:
            x = torch.cat([F.interpolate(low, scale_factor=2), skip], dim=1)
            mask = torch.cat([F.interpolate(low_mask, scale_factor=2), skip_mask], dim=1)
            return ChannelMaskPartialConv(self.weight, self.bias, self.stride, self.padding)(x, mask)
        return partial_conv2d_upcat(low, low_mask, skip, skip_mask, self.weight, self.bias, backend=self.backend)


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
        self.depth, self.backend = depth, backend
        widths = [3] + [width * min(8, 2**level) for level in range(depth)]
        kernels = [7, 5, 5] + [3] * depth
        levels = range(depth)
        self.encoder = nn.ModuleList(Encoder(widths[i], widths[i + 1], kernels[i], backend) for i in levels)
        self.encoder_norm = nn.ModuleList(nn.BatchNorm2d(widths[i + 1]) if i else nn.Identity() for i in levels)
        # Decoder layer i brings the map back to the size, and but for the last to the width, of the encoder's input i.
        outs = [3, *widths[1:depth]]
        lows = [*outs[1:], widths[depth]]
        self.decoder = nn.ModuleList(Decoder(lows[i] + widths[i], outs[i], backend) for i in levels)
        self.decoder_norm = nn.ModuleList(nn.BatchNorm2d(outs[i]) if i else nn.Identity() for i in levels)
        with_he_weights(self)

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        """image (N,3,H,W), mask (N,1,H,W) bool, True = valid; H and W multiples of 2^depth. Returns (N,3,H,W)."""
        x = image * mask
        if self.backend == PUBLISHED:
            mask = mask.to(x.dtype).expand_as(x)
        skips = []
        for conv, norm in zip(self.encoder, self.encoder_norm, strict=True):
            skips.append((x, mask))
            x, mask = conv(x, mask)
            x = F.relu(norm(x), inplace=True)
        for i in reversed(range(self.depth)):
            x, mask = self.decoder[i](x, mask, *skips[i])
            if i > 0:
                x = F.leaky_relu(self.decoder_norm[i](x), 0.2, inplace=True)
        return x


class PConv(System):
    """Trains `PConvUNet` as published.

    Losses: valid 1, hole 6, perceptual 0.05, style 120, total variation 0.1; perceptual and style of the prediction and
    of the composite, on VGG-16's pool1-3 (random weights). Adam at 2e-4.

    Args:
        device, precision: see `System`.
        backend, depth, width: see `PConvUNet`.
    """

    def __init__(
        self,
        device: torch.device,
        precision: torch.dtype = torch.float32,
        backend: str = "auto",
        depth: int = 7,
        width: int = 64,
    ) -> None:
        super().__init__(device, precision)
        self.generator = PConvUNet(depth, backend, width)
        self.networks = {"generator": self.generator}
        # The released variant of these losses is the one that compares the composite too.
        self.loss = InpaintingLoss(with_he_weights(VGG16Features(None)), variant="released")
        self.features = (self.loss.vgg,)
        self.place(self.generator, self.loss)
        self.optimizer = torch.optim.Adam(self.generator.parameters(), lr=2e-4, fused=True)

    def step(self, batch: Batch) -> dict[str, Tensor]:
        with self.autocast():
            prediction = self.generator(batch.image, batch.mask)
            total, terms = self.loss.generator_loss(prediction, batch.image, batch.mask, None)
        update(self.optimizer, total)
        return detached({"total": total} | terms)
