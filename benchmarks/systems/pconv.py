"""PConv (Liu et al. 2018): a U-Net of partial convolutions, trained without a discriminator.

Also an example of the fused operators in a network of one's own: :class:`FusedEncoder` and :class:`FusedDecoder` are
all it takes, beside the layers that they replace.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from msa_model import InpaintingLoss
from msa_model.vgg import VGG16Features
from msa_ops import PartialConv2d, partial_conv2d_upcat

from ..competitors import ChannelMaskPartialConv
from .system import Batch, autocast, with_he_weights


class FusedEncoder(PartialConv2d):
    """Partial convolution with stride 2 of a map and its mask (N, 1, H, W)."""

    def __init__(self, in_width: int, width: int, kernel: int, backend: str) -> None:
        super().__init__(in_width, width, kernel, stride=2, padding=kernel // 2, return_mask=True, backend=backend)


class FusedDecoder(nn.Conv2d):
    """Partial convolution of cat(nearest ×2 of low, skip), none of which is built; masks are (N, 1, H, W)."""

    def __init__(self, in_width: int, width: int, backend: str) -> None:
        super().__init__(in_width, width, kernel_size=3, padding=1)
        self.backend = backend

    def forward(self, low: Tensor, low_mask: Tensor, skip: Tensor, skip_mask: Tensor) -> tuple[Tensor, Tensor]:
        return partial_conv2d_upcat(low, low_mask, skip, skip_mask, self.weight, self.bias, backend=self.backend)


class PublishedEncoder(nn.Conv2d):
    """The same with one mask channel per feature channel, counted by a convolution with a kernel of ones."""

    def __init__(self, in_width: int, width: int, kernel: int) -> None:
        super().__init__(in_width, width, kernel, stride=2, padding=kernel // 2)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return ChannelMaskPartialConv(self.weight, self.bias, self.stride, self.padding)(x, mask)


class PublishedDecoder(nn.Conv2d):
    """The same of upsampled and concatenated maps and masks, all of them built."""

    def __init__(self, in_width: int, width: int) -> None:
        super().__init__(in_width, width, kernel_size=3, padding=1)

    def forward(self, low: Tensor, low_mask: Tensor, skip: Tensor, skip_mask: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.cat([F.interpolate(low, scale_factor=2), skip], dim=1)
        mask = torch.cat([F.interpolate(low_mask, scale_factor=2), skip_mask], dim=1)
        return ChannelMaskPartialConv(self.weight, self.bias, self.stride, self.padding)(x, mask)


class PConvUNet(nn.Module):
    """Encoder 7/5/5/3…, stride 2, 64-128-256-512-512… channels, ReLU; decoder nearest ×2, concatenation with the
    encoder's map, 3×3, LeakyReLU(0.2); batch norm in all but the first and the last layer.

    Args:
        depth: layers of the encoder; 7 as published (25.8 M parameters).
        backend: of the fused operators; ``"reference"`` is the published formulation. The state dict is the same.
    """

    def __init__(self, depth: int = 7, backend: str = "auto") -> None:
        super().__init__()
        self.depth, self.is_published = depth, backend == "reference"
        options = () if self.is_published else (backend,)
        encoder, decoder = (PublishedEncoder, PublishedDecoder) if self.is_published else (FusedEncoder, FusedDecoder)
        widths = [3] + [64 * min(8, 2**level) for level in range(depth)]
        kernels = [7, 5, 5] + [3] * depth
        levels = range(depth)
        self.encoder = nn.ModuleList(encoder(widths[i], widths[i + 1], kernels[i], *options) for i in levels)
        self.encoder_norm = nn.ModuleList(nn.BatchNorm2d(widths[i + 1]) if i else nn.Identity() for i in levels)
        # Decoder layer i brings the map back to the size, and but for the last to the width, of the encoder's input i.
        outs = [3, *widths[1:depth]]
        lows = [*outs[1:], widths[depth]]
        self.decoder = nn.ModuleList(decoder(lows[i] + widths[i], outs[i], *options) for i in levels)
        self.decoder_norm = nn.ModuleList(nn.BatchNorm2d(outs[i]) if i else nn.Identity() for i in levels)
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
        for i in reversed(range(self.depth)):
            x, mask = self.decoder[i](x, mask, *skips[i])
            if i > 0:
                x = F.leaky_relu(self.decoder_norm[i](x), 0.2, inplace=True)
        return x


class PConv:
    """Training of :class:`PConvUNet` as published: a :class:`~benchmarks.systems.system.System`.

    Losses: valid 1, hole 6, perceptual 0.05, style 120, total variation 0.1; perceptual and style of the prediction and
    of the composite, on VGG-16's pool1-3 (random weights). Adam at 2e-4.

    Args:
        device, precision: as :class:`~benchmarks.systems.system.System` says.
        backend, depth: of :class:`PConvUNet`.
    """

    def __init__(
        self,
        device: torch.device,
        precision: torch.dtype = torch.float32,
        backend: str = "auto",
        depth: int = 7,
    ) -> None:
        self.device, self.precision = device, precision
        layout = {"device": device, "memory_format": torch.channels_last}
        self.generator = PConvUNet(depth, backend).to(**layout)
        self.networks = {"generator": self.generator}
        # The released variant of these losses is the one that compares the composite too.
        self.loss = InpaintingLoss(with_he_weights(VGG16Features(None)), variant="released").to(**layout)
        self.optimizer = torch.optim.Adam(self.generator.parameters(), lr=2e-4, fused=True)

    def compile(self) -> None:
        for network in (self.generator, self.loss.vgg):
            network.compile(dynamic=False)

    def step(self, batch: Batch) -> dict[str, Tensor]:
        with autocast(self.device, self.precision):
            prediction = self.generator(batch.image, batch.mask)
            total, terms = self.loss.generator_loss(prediction, batch.image, batch.mask, None)
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        self.optimizer.step()
        return {name: term.detach() for name, term in ({"total": total} | terms).items()}
