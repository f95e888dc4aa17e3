"""A whole training step (SPEC 10): forward, losses without VGG, backward and update of generator and discriminator."""

from __future__ import annotations

import dataclasses

import torch

from msa_model.config import DataConfig, LossConfig, TrainConfig
from msa_model.generator import GeneratorConfig
from msa_model.masks import free_form_mask
from msa_model.training import Processes, Trainer

from . import harness

HOLE = (0.2, 0.3)


def trainer_on(backend: str, device: torch.device, dtype: torch.dtype, size: int, batch: int) -> Trainer:
    """The full-width networks on operators of one backend; autocast where dtype is a half."""
    config = TrainConfig(
        batch=batch,
        data=DataConfig(size=size),
        loss=LossConfig(vgg="none"),
        generator=GeneratorConfig(backend=backend),
        precision=str(dtype).removeprefix("torch."),
    )
    return Trainer(config, dataclasses.replace(Processes(), device=device))


def relative_difference(a: Trainer, b: Trainer) -> float:
    """Of the generators' gradients after a step, in norm."""
    ours, theirs = (torch.cat([p.grad.flatten() for p in t.generator.parameters()]) for t in (a, b))
    return ((ours - theirs).norm() / theirs.norm()).item()


def training(device: torch.device, dtype: torch.dtype, size: int, batch: int, rounds: int) -> dict:
    """Steps on fused and on reference operators, from the same weights and on the same batch."""
    trainers = {backend: trainer_on(backend, device, dtype, size, batch) for backend in ("auto", "reference")}
    image = torch.rand(batch, 3, size, size).to(device, memory_format=torch.channels_last)
    mask = torch.stack([free_form_mask(size, size, HOLE, 7 + i) for i in range(batch)]).to(device)
    for trainer in trainers.values():
        trainer.step(image, mask)
    difference = relative_difference(*trainers.values())
    steps = {name: lambda trainer=trainer: trainer.step(image, mask) for name, trainer in trainers.items()}
    timing = harness.interleave(steps, device, rounds, warmup=1)
    return {
        "size": size,
        "batch": batch,
        "hole": HOLE,
        # Batch norm over few values at the bottleneck magnifies roundings; half products are coarser still.
        "gradient difference": difference,
        "passed": difference < (1e-2 if dtype == torch.float32 else 1e-1),
        "fused ms": round(timing["auto"].median, 1),
        "reference ms": round(timing["reference"].median, 1),
        "reference / fused": round(timing["reference"].median / timing["auto"].median, 3),
    }
