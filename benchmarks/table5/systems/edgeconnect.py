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
from .layers import Sum, VGG19Features, instance_norm, spectral_norm
from .system import Batch, System, detached, without_gradients

PERCEPTUAL = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")
STYLE = ("relu2_2", "relu3_4", "relu4_4", "relu5_2")


def make_generator(channels: int, out_channels: int, spectral: bool, width: int = 64) -> nn.Sequential:
    """Returns two halvings, eight dilated residual blocks at 256 channels, two doublings: (N, channels, H, W) ->
    (N, out_channels, H, W), H and W multiples of 4, at least 12.

    It has 10.76 M parameters with 3 input channels and 1 output channel, 10.77 M with 4 and 3. Instance norm and ReLU
    follow every convolution but the last. That norm removes any bias, so only the last convolution has one.

    Args:
        spectral: whether all convolutions but the last have spectral norm.
        width: channels of the first convolution; 64 as published.
    """

    def normed(conv: nn.Module) -> list[nn.Module]:
        return [spectral_norm(conv) if spectral else conv, instance_norm(conv.out_channels)]

    def conv(width: int, out_width: int, kernel: int, **options: int) -> list[nn.Module]:
        return normed(nn.Conv2d(width, out_width, kernel, bias=False, **options))

    def doubling(width: int) -> list[nn.Module]:
        layer = nn.ConvTranspose2d(width, width // 2, kernel_size=4, stride=2, padding=1, bias=False)
        return [*normed(layer), nn.ReLU()]

    def residual_block(width: int) -> nn.Module:
        first, second = conv(width, width, 3, dilation=2), conv(width, width, 3)
        layers = nn.Sequential(nn.ReflectionPad2d(2), *first, nn.ReLU(), nn.ReflectionPad2d(1), *second)
        return Sum(layers, nn.Identity())

    return nn.Sequential(
        *(nn.ReflectionPad2d(3), *conv(channels, width, 7), nn.ReLU()),
        *(*conv(width, 2 * width, 4, stride=2, padding=1), nn.ReLU()),
        *(*conv(2 * width, 4 * width, 4, stride=2, padding=1), nn.ReLU()),
        *(residual_block(4 * width) for _ in range(8)),
        *doubling(4 * width),
        *doubling(2 * width),
        *(nn.ReflectionPad2d(3), nn.Conv2d(width, out_channels, kernel_size=7)),
    )


class PatchDiscriminator(nn.Module):
    """Five 4×4 convolutions with padding 1 and spectral norm, LeakyReLU(0.2) between them: 2.76 M parameters.

    Args:
        channels: of the input.
        width: channels of the first convolution; 64 as published.
    """

    def __init__(self, channels: int, width: int = 64) -> None:
        super().__init__()
        widths = (channels, width, 2 * width, 4 * width, 8 * width, 1)
        self.layers = nn.ModuleList(
            spectral_norm(nn.Conv2d(widths[i], widths[i + 1], 4, stride=2 if i < 3 else 1, padding=1, bias=False))
            for i in range(5)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Returns all five maps: activations (N, 64, H/2, W/2), (N, 128, H/4, W/4), (N, 256, H/8, W/8),
        (N, 512, H/8 - 1, W/8 - 1), and logits (N, 1, H/8 - 2, W/8 - 2), positive = real; H and W multiples of 8, at
        least 24."""
        features = []
        for layer in self.layers[:-1]:
            x = F.leaky_relu(layer(x), 0.2)
            features.append(x)
        return [*features, self.layers[-1](x)]


class Stage(System):
    """A generator and a discriminator. In a step both backwards come first, then both optimiser steps."""

    #: Weights of the terms of the generator's loss.
    WEIGHTS: ClassVar[dict[str, float]]

    def __init__(
        self, generator: nn.Module, discriminator: nn.Module, device: torch.device, precision: torch.dtype
    ) -> None:
        super().__init__(device, precision)
        self.generator, self.discriminator = generator, discriminator
        self.networks = {"generator": generator, "discriminator": discriminator}
        self.place(generator, discriminator)
        self.optimizers = [
            torch.optim.Adam(network.parameters(), lr=rate, betas=(0.0, 0.9), fused=True)
            for network, rate in ((generator, 1e-4), (discriminator, 1e-5))
        ]

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Updates both networks; H and W are multiples of 8, at least 24, and the masks have a hole."""
        with self.autocast():
            real, fake = self._images(batch)
            features = self.discriminator(torch.cat([real, fake.detach()]))
            real_logits, fake_logits = features[-1].chunk(2)
            discriminator_loss = _cross_entropy(real_logits, real=True) + _cross_entropy(fake_logits, real=False)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        discriminator_loss.backward()
        real_features = [f.detach().chunk(2)[0] for f in features]
        with self.autocast(), without_gradients(self.discriminator):
            fake_features = self.discriminator(fake)
            terms = self._terms(batch, fake, (fake_features, real_features))
            terms["adversarial"] = _cross_entropy(fake_features[-1], real=True)
        sum(self.WEIGHTS[name] * term for name, term in terms.items()).backward()
        for optimizer in self.optimizers:
            optimizer.step()
        return detached(terms | {"discriminator": discriminator_loss})

    def _images(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns what the discriminator sees: the real images and the generator's."""
        raise NotImplementedError

    def _terms(self, batch: Batch, fake: Tensor, features: tuple[list[Tensor], list[Tensor]]) -> dict[str, Tensor]:
        """Returns the terms of the generator's loss but the adversarial one, from the generated images and from the
        discriminator's features of them and of the real ones."""
        raise NotImplementedError


class EdgeConnectEdge(Stage):
    """The edge stage: completes the edges of a grey image whose hole is empty.

    Args:
        device, precision: see `System`.
        width: of the generator and the discriminator; 64 as published.
    """

    WEIGHTS: ClassVar = {"adversarial": 1, "feature_matching": 10}

    def __init__(self, device: torch.device, precision: torch.dtype = torch.float32, width: int = 64) -> None:
        generator = make_generator(3, 1, spectral=True, width=width)
        super().__init__(generator, PatchDiscriminator(2, width), device, precision)

    def _images(self, batch: Batch) -> tuple[Tensor, Tensor]:
        hole = (~batch.mask).float()
        logits = self.generator(torch.cat([batch.grey * (1 - hole), batch.edges * (1 - hole), hole], dim=1))
        return tuple(torch.cat([batch.grey, edges], dim=1) for edges in (batch.edges, torch.sigmoid(logits)))

    def _terms(self, batch: Batch, fake: Tensor, features: tuple[list[Tensor], list[Tensor]]) -> dict[str, Tensor]:
        return {"feature_matching": _mean_differences(*features)}


class EdgeConnectInpainting(Stage):
    """The inpainting stage: fills the hole of a colour image, given its edges. These are the true ones, as in the
    paper's training before the two stages are joined.

    Args:
        device, precision: see `System`.
        width: of the generator and the discriminator; 64 as published.
    """

    WEIGHTS: ClassVar = {"adversarial": 0.1, "l1": 1, "perceptual": 0.1, "style": 250}

    def __init__(self, device: torch.device, precision: torch.dtype = torch.float32, width: int = 64) -> None:
        generator = make_generator(4, 3, spectral=False, width=width)
        super().__init__(generator, PatchDiscriminator(3, width), device, precision)
        self.vgg = VGG19Features()
        self.features = (self.vgg,)
        self.place(self.vgg)

    def _images(self, batch: Batch) -> tuple[Tensor, Tensor]:
        values = self.generator(torch.cat([batch.image * batch.mask, batch.edges], dim=1))
        return batch.image, (torch.tanh(values) + 1) / 2

    def _terms(self, batch: Batch, fake: Tensor, features: tuple[list[Tensor], list[Tensor]]) -> dict[str, Tensor]:
        """The style term compares the holes; one pass of VGG-19 takes whole images and holes."""
        hole = (~batch.mask).float()
        found, wanted = (self.vgg(torch.cat([images, images * hole])) for images in (fake, batch.image))
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
