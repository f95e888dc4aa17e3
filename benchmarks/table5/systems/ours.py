"""The paper's own network: the training step of `msa_model`'s trainer, with random VGG-16 features."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from ...model import GeneratorConfig, LossConfig, Processes, TrainConfig, Trainer, VGG16Features
from .layers import with_he_weights
from .system import Batch, System


class Ours(System):
    """Trains the paper's generator and discriminator with all its losses.

    Args:
        device, precision: see `System`.
        backend: of the operators; ``"reference"`` is plain PyTorch.
        depth: layers of the encoder; the paper's 8.
        width: channels of the generator's first layer; the paper's 64.
        variant: ``"paper"``, or ``"released"`` attention and losses.
    """

    def __init__(
        self,
        device: torch.device,
        precision: torch.dtype = torch.float32,
        backend: str = "auto",
        depth: int = 8,
        width: int = 64,
        variant: str = "paper",
    ) -> None:
        super().__init__(device, precision)
        with tempfile.TemporaryDirectory() as folder:
            weights = Path(folder) / "vgg16.pth"
            torch.save(with_he_weights(VGG16Features(None)).state_dict(), weights)
            config = TrainConfig(
                generator=GeneratorConfig(base_width=width, backend=backend, depth=depth, variant=variant),
                loss=LossConfig(vgg=str(weights), variant=variant),
                precision=str(precision).removeprefix("torch."),
                seed=torch.initial_seed(),
            )
            self.trainer = Trainer(config, dataclasses.replace(Processes(), device=device))
        self.networks = {"generator": self.trainer.generator, "discriminator": self.trainer.discriminator}
        self.features = (self.trainer.loss.vgg,)

    def step(self, batch: Batch) -> dict[str, Tensor]:
        return self.trainer.step(batch.image, batch.mask)
