"""PIC, Pluralistic Image Completion (Zheng et al. 2019): its training step."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .pic_networks import Discriminator, Encoder, Gaussian, Generator
from .system import Batch, autocast

RATE, BETAS = 1e-4, (0.0, 0.999)
#: Of the terms of the generator's loss.
WEIGHTS = {
    "kl_posterior": 80,
    "kl_prior": 80,
    "l1_reconstruction": 20,
    "l1_generation": 20,
    "adversarial_generation": 1,
    "adversarial_reconstruction": 1,
}


class PIC:
    """Two paths through one encoder and one generator, with a discriminator each: generation, whose latents come from
    the masked image (the prior), and reconstruction, whose latents come from its complement (the posterior). A
    :class:`~benchmarks.systems.system.System`.

    Settled where the description leaves a choice:

    - kl_posterior compares the posterior with a normal distribution whose variance is the share of hole pixels, as the
      paper's prior adapts to their number; kl_prior compares it with the learned prior. Both are means.
    - While the generator learns, the discriminators' weights get no gradients, and the truth's score no graph. Then a
      step at 256×256 takes 138 GFLOP per image, which is the known figure; with these gradients it is 155.
    - ℓ1 terms are sums over the four scales. Smaller targets are average-pooled; of masks every s-th pixel is taken.

    Args:
        device, precision: as :class:`~benchmarks.systems.system.System` says.
    """

    def __init__(self, device: torch.device, precision: torch.dtype = torch.float32) -> None:
        self.device, self.precision = device, precision
        self.encoder, self.generator = Encoder(), Generator()
        self.discriminators = nn.ModuleDict({path: Discriminator() for path in ("generation", "reconstruction")})
        self.networks: dict[str, nn.Module] = {
            "encoder": self.encoder,
            "generator": self.generator,
            **{f"discriminator_{path}": network for path, network in self.discriminators.items()},
        }
        for network in self.networks.values():
            network.to(device, memory_format=torch.channels_last)
        generating = [*self.encoder.parameters(), *self.generator.parameters()]
        self._generator_optimizer, self._discriminator_optimizer = (
            torch.optim.Adam(parameters, lr=RATE, betas=BETAS, fused=True)
            for parameters in (generating, self.discriminators.parameters())
        )

    def compile(self) -> None:
        for network in self.networks.values():
            network.compile(dynamic=False)

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """One update of the discriminators, then one of encoder and generator.

        Args:
            batch: its image and mask are used; every mask has a hole.

        Returns:
            The generator's terms, discriminator_generation and discriminator_reconstruction: scalars on the device,
            without weights.

        Raises:
            ValueError: H or W below 96 or no multiple of 32.
        """
        height, width = batch.image.shape[2:]
        if min(height, width) < 96 or height % 32 or width % 32:
            raise ValueError(f"PIC: images must be at least 96x96 with sides multiples of 32, got {height}x{width}")
        truth = 2 * batch.image - 1
        valid = batch.mask.float()
        paths = self._forward(truth, valid)
        return self._discriminators_step(truth, paths) | self._generator_step(truth, valid, paths)

    def _forward(self, truth: Tensor, valid: Tensor) -> Paths:
        with autocast(self.device, self.precision):
            features, prior, posterior = self.encoder(torch.cat([truth * valid, truth * (1 - valid)]))
            latents = torch.cat([prior.sample(), posterior.sample()])
            images = self.generator(latents, _twice(features[-1]), _twice(features[2]), _twice(_every(8, valid)))
        generation, reconstruction = zip(*(image.chunk(2) for image in images), strict=True)
        return Paths(prior, posterior, generation, reconstruction)

    def _discriminators_step(self, truth: Tensor, paths: Paths) -> dict[str, Tensor]:
        """Least squares: scores of 1 for the truth, of 0 for fakes."""
        terms = {}
        with autocast(self.device, self.precision):
            for name, discriminator in self.discriminators.items():
                fake = getattr(paths, name)[-1].detach()
                real_score, fake_score = discriminator(torch.cat([truth, fake])).float().chunk(2)
                terms[f"discriminator_{name}"] = (real_score - 1).square().mean() + fake_score.square().mean()
        _update(self._discriminator_optimizer, sum(terms.values()))
        return {name: term.detach() for name, term in terms.items()}

    def _generator_step(self, truth: Tensor, valid: Tensor, paths: Paths) -> dict[str, Tensor]:
        self.discriminators.requires_grad_(False)
        with autocast(self.device, self.precision):
            score = self.discriminators["generation"](paths.generation[-1]).float()
            wanted = self.discriminators["reconstruction"](truth).float()
            found = self.discriminators["reconstruction"](paths.reconstruction[-1]).float()
        self.discriminators.requires_grad_(True)
        hole_share = 1 - valid.mean((1, 2, 3), keepdim=True)
        adapted = Gaussian(torch.zeros_like(hole_share), hole_share.sqrt())
        terms = {
            "kl_posterior": paths.posterior.divergence(adapted),
            "kl_prior": paths.posterior.divergence(paths.prior),
            "l1_reconstruction": _l1(paths.reconstruction, truth),
            "l1_generation": _l1(paths.generation, truth, valid),
            "adversarial_generation": (score - 1).square().mean(),
            "adversarial_reconstruction": (found - wanted).square().mean(),
        }
        _update(self._generator_optimizer, sum(WEIGHTS[name] * term for name, term in terms.items()))
        return {name: term.detach() for name, term in terms.items()}


class Paths(NamedTuple):
    """What encoder and generator make of a batch: distributions of latents, images in [-1, 1] of four sizes."""

    prior: Gaussian
    posterior: Gaussian
    generation: tuple[Tensor, ...]
    reconstruction: tuple[Tensor, ...]


def _update(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def _l1(images: tuple[Tensor, ...], truth: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean absolute difference to the truth at each image's size, where given on valid pixels only, summed."""
    total = 0
    for image in images:
        scale = truth.shape[-1] // image.shape[-1]
        difference = (image.float() - F.avg_pool2d(truth, scale)).abs()
        total = total + (difference if valid is None else difference * _every(scale, valid)).mean()
    return total


def _every(scale: int, mask: Tensor) -> Tensor:
    return mask[:, :, ::scale, ::scale]


def _twice(t: Tensor) -> Tensor:
    """For both paths."""
    return torch.cat([t, t])
