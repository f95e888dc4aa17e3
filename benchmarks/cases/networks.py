"""The whole network on fused and on reference operators: its forward, memory on one large image, a training step."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import torch
from torch import Tensor

from msa_model import Generator

from ..measure import FORWARD, OURS, STEP, Alternative, Case, Prepared, Settings, Suite, significant
from ..model import DataConfig, GeneratorConfig, LossConfig, Processes, TrainConfig, Trainer, free_form_mask

REFERENCE, COMPILED, COMPILED_GRAPHS = "reference", "reference, compiled", "reference, compiled, reduce-overhead"
HOLE = (0.2, 0.3)
#: By case the decoder levels with an attention stage.
WHOLE = "whole"
NETWORKS = {WHOLE: (4, 3), "without attention": ()}
#: The memory suite's image: size and batch are fixed, since a target belongs to them.
LARGE_SIZE = 1024


def image_and_mask(size: int, settings: Settings, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    image = torch.rand(settings.batch, 3, size, size)
    mask = torch.stack([free_form_mask(size, size, HOLE, 7 + i) for i in range(settings.batch)])
    image = image.to(settings.device, dtype, memory_format=torch.channels_last)
    return {"image": image, "mask": mask.to(settings.device)}


def _case(name: str, settings: Settings, names: tuple[str, ...], prepare: Callable, which: str = FORWARD) -> Case:
    size, batch = settings.size, settings.batch
    operator = "training step" if which == STEP else "generator"
    columns = {"size": size, "batch": batch}
    return Case(f"{name} {size}", operator, f"{batch}×3×{size}×{size}", names, prepare, (which,), columns)


def prepare_forward(levels: tuple[int, ...], names: tuple[str, ...], settings: Settings) -> Prepared:
    """Gives ours the weights of the reference's network, with which all are compared."""
    torch.compiler.reset()
    inputs = image_and_mask(settings.size, settings, settings.dtype)
    torch.manual_seed(0)
    plain = Generator(attention_levels=levels, backend="reference").eval()
    fused = Generator(attention_levels=levels).eval()
    fused.load_state_dict(plain.state_dict())
    fused, plain = (n.to(settings.device, settings.dtype, memory_format=torch.channels_last) for n in (fused, plain))
    # The reference's attention asks how many pixels are holes, at which the compiler's graph breaks.
    runs = {
        OURS: fused,
        REFERENCE: plain,
        COMPILED: torch.compile(plain, dynamic=False),
        COMPILED_GRAPHS: torch.compile(plain, dynamic=False, mode="reduce-overhead"),
    }
    reference = Alternative(plain, inputs)
    return Prepared(
        {name: Alternative(runs[name], inputs, reference, capture=name != COMPILED_GRAPHS) for name in names}
    )


def forward_cases(settings: Settings) -> list[Case]:
    compiled = (COMPILED, COMPILED_GRAPHS) if settings.on_cuda else (COMPILED,)
    names = (OURS, REFERENCE, *(compiled if settings.compiled else ()))
    return [
        _case(name, settings, names, functools.partial(prepare_forward, levels, names))
        for name, levels in NETWORKS.items()
    ]


GENERATOR = Suite(
    "the whole network",
    "The generator's forward on fused and on reference operators; brush masks with 20-30 % hole.",
    forward_cases,
)


def memory_cases(settings: Settings) -> list[Case]:
    """Has ours alone run: the reference, with which it is compared, takes a minute for such an image on a CPU."""
    large = dataclasses.replace(settings, sizes=(LARGE_SIZE,), batch=1)
    return [_case(WHOLE, large, (OURS,), lambda settings: prepare_forward(NETWORKS[WHOLE], (OURS,), large))]


MEMORY = Suite(
    "one large image",
    "The generator's forward: peak memory beyond the weights and the image.",
    memory_cases,
)


def trainer_on(backend: str, settings: Settings) -> Trainer:
    """Makes the full-width networks on operators of one backend; with autocast where dtype is a half."""
    config = TrainConfig(
        batch=settings.batch,
        data=DataConfig(size=settings.size),
        loss=LossConfig(vgg="none"),
        generator=GeneratorConfig(backend=backend),
        precision=str(settings.dtype).removeprefix("torch."),
    )
    return Trainer(config, dataclasses.replace(Processes(), device=settings.device))


def relative_difference(a: Trainer, b: Trainer) -> float:
    """Returns the difference of the generators' gradients after a step, in norm."""
    ours, theirs = (torch.cat([p.grad.flatten() for p in t.generator.parameters()]) for t in (a, b))
    return ((ours - theirs).norm() / theirs.norm()).item()


def prepare_training(settings: Settings) -> Prepared:
    """Compares the first step, from the same weights and on the same batch. Ours does not take part where its gradients
    differ by more than batch norm over few values at the bottleneck magnifies roundings, which are coarser in half
    precision."""
    trainers = {OURS: trainer_on("auto", settings), REFERENCE: trainer_on("reference", settings)}
    inputs = image_and_mask(settings.size, settings)
    for trainer in trainers.values():
        trainer.step(*inputs.values())
    difference = relative_difference(trainers[OURS], trainers[REFERENCE])
    is_right = difference < (1e-2 if settings.dtype == torch.float32 else 1e-1)
    return Prepared(
        {name: Alternative(trainer.step, inputs) for name, trainer in trainers.items()},
        unavailable={} if is_right else {OURS: "its gradients differ from the reference's"},
        columns={"gradient_difference": significant(difference)},
    )


def training_cases(settings: Settings) -> list[Case]:
    """Makes the one case.

    Raises:
        ValueError: the bottleneck has a single value per channel, with which batch norm cannot be trained.
    """
    if settings.batch == 1 and settings.size <= 256:
        raise ValueError(f"the training suite needs a batch of at least 2 at size {settings.size}, got 1")
    return [_case("without VGG", settings, (OURS, REFERENCE), prepare_training, STEP)]


TRAINING = Suite(
    "a training step",
    "Forward, losses without VGG, backward and update of generator and discriminator, on fused and on reference "
    "operators; brush masks with 20-30 % hole.",
    training_cases,
)
