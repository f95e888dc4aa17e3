"""The paper's own network: the project's training step, with random VGG-16 features."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from msa_model.config import LossConfig, TrainConfig
from msa_model.generator import GeneratorConfig
from msa_model.training import Processes, Trainer
from msa_model.vgg import VGG16Features

from .system import Batch, with_he_weights


class Ours:
    """Generator and discriminator of SPEC 4 and 5 with all losses of SPEC 6: a
    :class:`~benchmarks.systems.system.System` around :class:`msa_model.training.Trainer`.

    Args:
        device, precision: as :class:`~benchmarks.systems.system.System` says.
        backend: of the operators; ``"reference"`` is plain PyTorch.
        depth: layers of the encoder; the paper's 8.
        variant: ``"paper"``, or ``"released"`` attention and losses.
    """

    def __init__(
        self,
        device: torch.device,
        precision: torch.dtype = torch.float32,
        backend: str = "auto",
        depth: int = 8,
        variant: str = "paper",
    ) -> None:
        with tempfile.TemporaryDirectory() as folder:
            weights = Path(folder) / "vgg16.pth"
            torch.save(with_he_weights(VGG16Features(None)).state_dict(), weights)
            config = TrainConfig(
                generator=GeneratorConfig(backend=backend, depth=depth, variant=variant),
                loss=LossConfig(vgg=str(weights), variant=variant),
                precision=str(precision).removeprefix("torch."),
                seed=torch.initial_seed(),
            )
            self.trainer = Trainer(config, dataclasses.replace(Processes(), device=device))
        self.networks = {"generator": self.trainer.generator, "discriminator": self.trainer.discriminator}

    def compile(self) -> None:
        for network in (*self.networks.values(), self.trainer.loss.vgg):
            network.compile(dynamic=False)

    def step(self, batch: Batch) -> dict[str, Tensor]:
        return self.trainer.step(batch.image, batch.mask)
