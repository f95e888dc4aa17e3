"""The training suite: a whole training step (SPEC 10) on fused and on reference operators: forward, losses without VGG,
backward and update of generator and discriminator."""

from __future__ import annotations

import dataclasses
import functools

import torch

from msa_model.config import DataConfig, LossConfig, TrainConfig
from msa_model.generator import GeneratorConfig
from msa_model.training import Processes, Trainer

from .contest import OURS, STEP, Call, Contest, Contestant, Settings
from .harness import significant
from .network import HOLE, REFERENCE, image_and_mask, size_of
from .suites import Case, Suite

BACKENDS = {OURS: "auto", REFERENCE: "reference"}


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


def prepare(size: int, settings: Settings) -> Contest:
    """From the same weights and on the same batch. The first step is compared here; ours does not take part where its
    gradients differ from the reference's by more than batch norm over few values at the bottleneck magnifies roundings,
    which are coarser in half precision."""
    trainers = {
        name: trainer_on(backend, settings.device, settings.dtype, size, settings.batch)
        for name, backend in BACKENDS.items()
    }
    image, mask = image_and_mask(size, settings)
    steps = {name: functools.partial(trainer.step, image, mask) for name, trainer in trainers.items()}
    for step in steps.values():
        step()
    difference = relative_difference(trainers[OURS], trainers[REFERENCE])
    contest = Contest(
        {name: Contestant(Call(step)) for name, step in steps.items()},
        {STEP: None},
        facts={"gradient_difference": significant(difference)},
    )
    if not difference < (1e-2 if settings.dtype == torch.float32 else 1e-1):
        contest.leave_out({OURS: "its gradients differ from the reference's"})
    return contest


def cases(settings: Settings) -> list[Case]:
    """
    Raises:
        ValueError: a single value per channel at the bottleneck, with which batch norm cannot be trained.
    """
    size = size_of(settings)
    if settings.batch == 1 and size <= 256:
        raise ValueError(f"the training suite needs a batch of at least 2 at size {size}, got 1")
    shape = f"{settings.batch}×3×{size}×{size}"
    facts = {"size": size, "batch": settings.batch, "hole": list(HOLE)}
    name = f"without VGG {size}"
    return [Case(name, "training step", shape, tuple(BACKENDS), functools.partial(prepare, size), facts=facts)]


SUITE = Suite("a training step of the paper's networks on fused and on reference operators", cases)
