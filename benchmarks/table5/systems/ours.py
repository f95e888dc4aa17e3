"""The paper's own network: the training step of `msa_model`'s trainer, with random VGG-16 features."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from ...model import GeneratorConfig, LossConfig, Processes, TrainConfig, Trainer, VGG16Features
from .common import Batch, System, with_he_weights


class Ours(System):
    """Trains the paper's generator and discriminator with all its losses. Takes the options of `GeneratorConfig`, whose
    variant is also that of the losses."""

    def __init__(self, device: torch.device, precision: torch.dtype = torch.float32, **options: object) -> None:
        generator = GeneratorConfig(**options)
        with tempfile.TemporaryDirectory() as folder:
            weights = Path(folder) / "vgg16.pth"
            torch.save(with_he_weights(VGG16Features(None)).state_dict(), weights)
            loss = LossConfig(vgg=str(weights), variant=generator.variant)
            how = {"precision": str(precision).removeprefix("torch."), "seed": torch.initial_seed()}
            config = TrainConfig(generator=generator, loss=loss, **how)
            self.trainer = Trainer(config, dataclasses.replace(Processes(), device=device))
        networks = {"generator": self.trainer.generator, "discriminator": self.trainer.discriminator}
        super().__init__(device, precision, networks, self.trainer.loss.vgg)

    def step(self, batch: Batch) -> dict[str, Tensor]:
        return self.trainer.step(batch.image, batch.mask)
