"""EdgeConnect (Nazeri et al. 2019): the training steps of its edge stage and of its inpainting stage, each a
:class:`~benchmarks.systems.system.System`.

Its masks say 1 = hole; ours, 1 = valid, are turned over where a step begins.

Counted work of a step at 256×256: 337 and 649 GFLOP per image. The known figures, 343 and 654, contain gradients of the
discriminator's weights from the generator's loss, which nothing reads (6 GFLOP). Within both, VGG-19 runs to its last
activation, though the losses need nothing beyond relu5_2 (12 GFLOP); truths have no graph.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from msa_model.losses import gram_matrix

from .edgeconnect_networks import EdgeConnectGenerator, PatchDiscriminator
from .system import Batch, autocast
from .vgg19 import VGG19Features

BETAS = (0.0, 0.9)
PERCEPTUAL = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")
STYLE = ("relu2_2", "relu3_4", "relu4_4", "relu5_2")


class _Stage:
    """A generator and a discriminator. In a step both backwards come first, then both optimiser steps."""

    def __init__(
        self,
        generator: EdgeConnectGenerator,
        discriminator: PatchDiscriminator,
        device: torch.device,
        precision: torch.dtype,
    ) -> None:
        self.device, self.precision = device, precision
        self.generator = generator.to(device, memory_format=torch.channels_last)
        self.discriminator = discriminator.to(device, memory_format=torch.channels_last)
        self.networks: dict[str, nn.Module] = {"generator": self.generator, "discriminator": self.discriminator}
        self._generator_optimizer, self._discriminator_optimizer = (
            torch.optim.Adam(network.parameters(), lr=rate, betas=BETAS, fused=True)
            for network, rate in ((self.generator, 1e-4), (self.discriminator, 1e-5))
        )

    def compile(self) -> None:
        for network in self.networks.values():
            network.compile(dynamic=False)

    def _backward_discriminator(self, real: Tensor, fake: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Its loss, with the backward done, and its features of the real images, without a graph."""
        with autocast(self.device, self.precision):
            features = self.discriminator(torch.cat([real, fake.detach()]))
            real_logits, fake_logits = features[-1].chunk(2)
            loss = _cross_entropy(real_logits, real=True) + _cross_entropy(fake_logits, real=False)
        self._discriminator_optimizer.zero_grad()
        loss.backward()
        return loss.detach(), [f.detach().chunk(2)[0] for f in features]

    def _frozen_discriminator(self, fake: Tensor) -> list[Tensor]:
        """Its features of the fake images, with gradients to these only."""
        self.discriminator.requires_grad_(False)
        features = self.discriminator(fake)
        self.discriminator.requires_grad_(True)
        return features

    def _update(self, generator_loss: Tensor) -> None:
        """The generator's backward, and both optimiser steps."""
        self._generator_optimizer.zero_grad()
        generator_loss.backward()
        self._generator_optimizer.step()
        self._discriminator_optimizer.step()


class EdgeConnectEdge(_Stage):
    """The edge stage: completes the edges of a grey image whose hole is empty.

    generator's loss = adversarial + 10 · feature_matching

    Args:
        device, precision: as :class:`~benchmarks.systems.system.System` says.
    """

    def __init__(self, device: torch.device, precision: torch.dtype = torch.float32) -> None:
        generator = EdgeConnectGenerator(3, 1, squash=torch.sigmoid, spectral=True)
        super().__init__(generator, PatchDiscriminator(2), device, precision)

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """One update of both networks.

        Args:
            batch: H and W multiples of 8, at least 24; its grey, edges and mask are used.

        Returns:
            adversarial, feature_matching and discriminator: scalars on the device, without weights.
        """
        hole = (~batch.mask).float()
        valid = 1 - hole
        with autocast(self.device, self.precision):
            edges = self.generator(torch.cat([batch.grey * valid, batch.edges * valid, hole], dim=1))
            fake = torch.cat([batch.grey, edges], dim=1)
        real = torch.cat([batch.grey, batch.edges], dim=1)
        discriminator_loss, real_features = self._backward_discriminator(real, fake)
        with autocast(self.device, self.precision):
            fake_features = self._frozen_discriminator(fake)
            adversarial = _cross_entropy(fake_features[-1], real=True)
            feature_matching = _mean_differences(fake_features, real_features)
        self._update(adversarial + 10 * feature_matching)
        return {
            "adversarial": adversarial.detach(),
            "feature_matching": feature_matching.detach(),
            "discriminator": discriminator_loss,
        }


class EdgeConnectInpainting(_Stage):
    """The inpainting stage: fills the hole of a colour image, given its edges. These are the true ones, as in the
    paper's training before the two stages are joined.

    generator's loss = l1 + 0.1 · perceptual + 250 · style + 0.1 · adversarial

    Args:
        device, precision: as :class:`~benchmarks.systems.system.System` says.
    """

    def __init__(self, device: torch.device, precision: torch.dtype = torch.float32) -> None:
        generator = EdgeConnectGenerator(4, 3, squash=_to_unit_range)
        super().__init__(generator, PatchDiscriminator(3), device, precision)
        self.vgg = VGG19Features().to(device, memory_format=torch.channels_last)

    def compile(self) -> None:
        super().compile()
        self.vgg.compile(dynamic=False)

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """One update of both networks.

        Args:
            batch: H and W multiples of 8, at least 24; its image, edges and mask are used. The mask must have a hole,
                by whose size the ℓ1 term is divided.

        Returns:
            l1, perceptual, style, adversarial and discriminator: scalars on the device, without weights.
        """
        hole = (~batch.mask).float()
        with autocast(self.device, self.precision):
            prediction = self.generator(torch.cat([batch.image * (1 - hole), batch.edges], dim=1))
        discriminator_loss, _ = self._backward_discriminator(batch.image, prediction)
        with autocast(self.device, self.precision):
            l1 = F.l1_loss(prediction.float(), batch.image) / hole.mean()
            perceptual, style = self._feature_terms(prediction, batch.image, hole)
            adversarial = _cross_entropy(self._frozen_discriminator(prediction)[-1], real=True)
        self._update(l1 + 0.1 * perceptual + 250 * style + 0.1 * adversarial)
        return {
            "l1": l1.detach(),
            "perceptual": perceptual.detach(),
            "style": style.detach(),
            "adversarial": adversarial.detach(),
            "discriminator": discriminator_loss,
        }

    def _feature_terms(self, prediction: Tensor, truth: Tensor, hole: Tensor) -> tuple[Tensor, Tensor]:
        """Perceptual term on whole images, style term on their holes; one pass of VGG-19 takes both."""
        found = self.vgg(torch.cat([prediction, prediction * hole]))
        wanted = self.vgg(torch.cat([truth, truth * hole]))
        perceptual = _mean_differences(*([f[name].chunk(2)[0] for name in PERCEPTUAL] for f in (found, wanted)))
        with torch.autocast(self.device.type, enabled=False):  # Gram matrices of halves overflow
            grams = ([gram_matrix(f[name].chunk(2)[1].float()) for name in STYLE] for f in (found, wanted))
            return perceptual, _mean_differences(*grams)


def _to_unit_range(x: Tensor) -> Tensor:
    return (torch.tanh(x) + 1) / 2


def _cross_entropy(logits: Tensor, real: bool) -> Tensor:
    """Binary cross entropy with the discriminator's sigmoid folded in: autocast refuses it on probabilities."""
    return F.softplus(-logits.float() if real else logits.float()).mean()


def _mean_differences(found: list[Tensor], wanted: list[Tensor]) -> Tensor:
    """Σᵢ mean |foundᵢ - wantedᵢ|, with gradients to found only."""
    return sum(F.l1_loss(f.float(), w.detach().float()) for f, w in zip(found, wanted, strict=True))
