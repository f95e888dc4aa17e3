"""EdgeConnect (Nazeri et al. 2019): its networks, and the training steps of its edge and its inpainting stage.

EdgeConnect's masks say 1 = hole; ours, 1 = valid, are inverted where a step begins.

A step at 256×256 counts 337 and 649 GFLOP per image. The known figures, 343 and 654, contain gradients of the
discriminator's weights from the generator's loss, which nothing reads (6 GFLOP). Both contain the last layers of
VGG-19, though the losses need nothing beyond relu5_2 (12 GFLOP); the features of the truth have no graph.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...model import gram_matrix
from .common import Batch, Sum, System, instance_norm, spectral_norm, with_he_weights, without_gradients

PERCEPTUAL = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")
STYLE = ("relu2_2", "relu3_4", "relu4_4", "relu5_2")


def make_generator(channels: int, out_channels: int, spectral: bool, width: int) -> nn.Sequential:
    """Returns two halvings, eight dilated residual blocks at 256 channels, two doublings: (N, channels, H, W) ->
    (N, out_channels, H, W), H and W multiples of 4, at least 12. `width`: of the first convolution; 64 as published.

    It has 10.76 M parameters with 3 input channels and 1 output channel, 10.77 M with 4 and 3. Instance norm and ReLU
    follow every convolution but the last, and remove any bias, so only the last has one. If `spectral`, all but the
    last have spectral norm.
    """

    def normed(width: int, out_width: int, kernel: int, kind: type = nn.Conv2d, **geometry: int) -> list[nn.Module]:
        layer = kind(width, out_width, kernel, bias=False, **geometry)
        return [spectral_norm(layer) if spectral else layer, instance_norm(out_width), nn.ReLU()]

    halving = dict(kernel=4, stride=2, padding=1)
    doubling = halving | dict(kind=nn.ConvTranspose2d)
    inner = 4 * width
    layers = [nn.ReflectionPad2d(3), *normed(channels, width, 7)]
    layers += [*normed(width, 2 * width, **halving), *normed(2 * width, inner, **halving)]
    for _ in range(8):
        first = nn.ReflectionPad2d(2), *normed(inner, inner, 3, dilation=2)
        second = nn.ReflectionPad2d(1), *normed(inner, inner, 3)[:-1]  # without ReLU
        layers.append(Sum(nn.Sequential(*first, *second), nn.Identity()))
    layers += [*normed(inner, 2 * width, **doubling), *normed(2 * width, width, **doubling)]
    return nn.Sequential(*layers, nn.ReflectionPad2d(3), nn.Conv2d(width, out_channels, kernel_size=7))


class PatchDiscriminator(nn.ModuleList):
    """Five 4×4 convolutions with padding 1 and spectral norm, LeakyReLU(0.2) between them: 2.76 M parameters."""

    def __init__(self, channels: int, width: int) -> None:
        widths = (channels, width, 2 * width, 4 * width, 8 * width, 1)
        super().__init__(
            spectral_norm(nn.Conv2d(widths[i], widths[i + 1], 4, stride=2 if i < 3 else 1, padding=1, bias=False))
            for i in range(5)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Returns all five maps: activations (N, 64, H/2, W/2), (N, 128, H/4, W/4), (N, 256, H/8, W/8),
        (N, 512, H/8 - 1, W/8 - 1), and logits (N, 1, H/8 - 2, W/8 - 2), positive = real; H and W multiples of 8, at
        least 24."""
        maps = []
        for layer in self:
            x = layer(x) if layer is self[-1] else F.leaky_relu(layer(x), 0.2)
            maps.append(x)
        return maps


class VGG19Features(nn.ModuleDict):
    """All sixteen activations of VGG-19 (Simonyan & Zisserman 2015): frozen, with random weights.

    3×3 convolutions with padding 1 and ReLU, a 2×2 maximum pool between groups.
    """

    #: Channels and number of convolutions of every group.
    GROUPS = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))

    def __init__(self) -> None:
        super().__init__()
        width = 3
        for group, (channels, depth) in enumerate(self.GROUPS, 1):
            for layer in range(1, depth + 1):
                self[f"relu{group}_{layer}"] = nn.Conv2d(width, channels, kernel_size=3, padding=1)
                width = channels
        with_he_weights(self).requires_grad_(False)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Maps (N, 3, H, W) in [0, 1] to "relu1_1" … "relu5_4" -> (N, C, H/s, W/s), s = 1, 2, 4, 8, 16 by group."""
        features = {}
        for name, convolution in self.items():
            if name.endswith("_1") and features:
                x = F.max_pool2d(x, 2)
            x = features[name] = F.relu(convolution(x))
        return features


class Stage(System):
    """A generator and a discriminator, whose first layers have `width` channels; 64 as published. In a step both
    backwards come first, then the optimiser steps of both.

    A subclass implements `images`, which returns what the discriminator sees, real and generated; and `terms`: those of
    the generator's loss but the adversarial one, given the generated images and the discriminator's maps of the
    generated and of the real ones.
    """

    CHANNELS: ClassVar[tuple[int, int, int]]  # the generator's input and output, the discriminator's input
    SPECTRAL: ClassVar[bool]  # whether the generator has spectral norm
    WEIGHTS: ClassVar[dict[str, float]]  # of the terms of the generator's loss

    def __init__(self, device: torch.device, precision: torch.dtype = torch.float32, width: int = 64) -> None:
        self.generator = make_generator(*self.CHANNELS[:2], self.SPECTRAL, width)
        self.discriminator = PatchDiscriminator(self.CHANNELS[2], width)
        networks = {"generator": self.generator, "discriminator": self.discriminator}
        frozen = [VGG19Features()] if "perceptual" in self.WEIGHTS else []
        super().__init__(device, precision, networks, *frozen)
        rates = (self.generator, 1e-4), (self.discriminator, 1e-5)
        groups = [{"params": network.parameters(), "lr": rate} for network, rate in rates]
        self.optimizer = torch.optim.Adam(groups, betas=(0.0, 0.9), fused=True)

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Updates both networks; H and W are multiples of 8, at least 24, and the masks have a hole."""
        with self.autocast():
            real, fake = self.images(batch)
            maps = self.discriminator(torch.cat([real, fake.detach()]))
            real_logits, fake_logits = maps[-1].chunk(2)
            discriminator_loss = _cross_entropy(real_logits, real=True) + _cross_entropy(fake_logits, real=False)
        self.optimizer.zero_grad()
        discriminator_loss.backward()
        with self.autocast(), without_gradients(self.discriminator):
            fake_maps, real_maps = self.discriminator(fake), [m.chunk(2)[0] for m in maps]
            terms = self.terms(batch, fake, fake_maps, real_maps)
            terms["adversarial"] = _cross_entropy(fake_maps[-1], real=True)
        sum(self.WEIGHTS[name] * term for name, term in terms.items()).backward()
        self.optimizer.step()
        return terms | {"discriminator": discriminator_loss}


class EdgeConnectEdge(Stage):
    """The edge stage: completes the edges of a grey image whose hole is empty."""

    CHANNELS, SPECTRAL = (3, 1, 2), True
    WEIGHTS: ClassVar = {"adversarial": 1, "feature_matching": 10}

    def images(self, batch: Batch) -> list[Tensor]:
        hole = (~batch.mask).float()
        logits = self.generator(torch.cat([batch.grey * (1 - hole), batch.edges * (1 - hole), hole], dim=1))
        return [torch.cat([batch.grey, edges], dim=1) for edges in (batch.edges, torch.sigmoid(logits))]

    def terms(self, batch: Batch, fake: Tensor, *maps: list[Tensor]) -> dict[str, Tensor]:
        return {"feature_matching": _mean_differences(*maps)}


class EdgeConnectInpainting(Stage):
    """The inpainting stage: fills the hole of a colour image, given its edges. These are the true ones, as in the
    paper's training before the two stages are joined."""

    CHANNELS, SPECTRAL = (4, 3, 3), False
    WEIGHTS: ClassVar = {"adversarial": 0.1, "l1": 1, "perceptual": 0.1, "style": 250}

    def images(self, batch: Batch) -> list[Tensor]:
        values = self.generator(torch.cat([batch.image * batch.mask, batch.edges], dim=1))
        return [batch.image, (torch.tanh(values) + 1) / 2]

    def terms(self, batch: Batch, fake: Tensor, *maps: list[Tensor]) -> dict[str, Tensor]:
        """The style term compares the holes; one pass of VGG-19 takes whole images and holes."""
        hole = (~batch.mask).float()
        (vgg,) = self.frozen
        found, wanted = (vgg(torch.cat([images, images * hole])) for images in (fake, batch.image))
        perceptual = _mean_differences(*([f[name].chunk(2)[0] for name in PERCEPTUAL] for f in (found, wanted)))
        with torch.autocast(self.device.type, enabled=False):  # Gram matrices of halves overflow
            grams = ([gram_matrix(f[name].chunk(2)[1].float()) for name in STYLE] for f in (found, wanted))
            style = _mean_differences(*grams)
        return {"l1": F.l1_loss(fake.float(), batch.image) / hole.mean(), "perceptual": perceptual, "style": style}


def _cross_entropy(logits: Tensor, real: bool) -> Tensor:
    """Binary cross entropy of the discriminator's sigmoid, from logits: autocast refuses probabilities."""
    return F.softplus(-logits.float() if real else logits.float()).mean()


def _mean_differences(found: list[Tensor], wanted: list[Tensor]) -> Tensor:
    """Σᵢ mean |foundᵢ - wantedᵢ|, with gradients to found only."""
    return sum(F.l1_loss(f.float(), w.detach().float()) for f, w in zip(found, wanted, strict=True))
