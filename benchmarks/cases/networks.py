"""The whole network on fused and on reference operators: its forward, memory on one large image, a training step."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable

import torch
from torch import Tensor

from msa_model import Generator

from ..measure import FORWARD, OURS, STEP, Alternative, Case, Prepared, Reference, Settings, significant
from ..model import DataConfig, GeneratorConfig, LossConfig, Processes, TrainConfig, Trainer, free_form_mask
from .suite import Suite

REFERENCE, COMPILED, COMPILED_GRAPHS = "reference", "reference, compiled", "reference, compiled, reduce-overhead"
HOLE = (0.2, 0.3)
#: By case the decoder levels with an attention stage.
WHOLE = "whole"
NETWORKS = {WHOLE: (4, 3), "without attention": ()}
#: The memory suite's image: size and batch are fixed, since a target belongs to them.
LARGE_SIZE = 1024
#: Seconds of the first forward there, where memory is measured.
PATIENCE = 300.0


def image_and_mask(size: int, settings: Settings, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    image = torch.rand(settings.batch, 3, size, size)
    mask = torch.stack([free_form_mask(size, size, HOLE, 7 + i) for i in range(settings.batch)])
    return image.to(settings.device, dtype, memory_format=torch.channels_last), mask.to(settings.device)


def _case(name: str, size: int, names: tuple[str, ...], prepare: Callable, batch: int, **options: object) -> Case:
    columns = {"size": size, "batch": batch}
    options = {"operator": "generator", "passes": (FORWARD,), "family": name} | options
    shape = f"{batch}×3×{size}×{size}"
    return Case(name=f"{name} {size}", shape=shape, alternatives=names, prepare=prepare, columns=columns, **options)


# ---- forward ---------------------------------------------------------------------------------------------------------


def alternatives_of(
    levels: tuple[int, ...], image: Tensor, mask: Tensor, settings: Settings
) -> tuple[dict[str, Alternative], Generator]:
    """Returns ours and the reference with the same weights, compared with the reference in float64; and the reference's
    network."""
    torch.manual_seed(0)
    plain = Generator(attention_levels=levels, backend="reference").eval()
    fused = Generator(attention_levels=levels).eval()
    fused.load_state_dict(plain.state_dict())
    fused, plain = (n.to(settings.device, settings.dtype, memory_format=torch.channels_last) for n in (fused, plain))
    exact = Alternative(functools.partial(copy.deepcopy(plain).double(), image.double(), mask))
    reference = Reference(Alternative(functools.partial(plain, image, mask)), exact)
    runs = {OURS: fused, REFERENCE: plain}
    found = {name: Alternative(functools.partial(run, image, mask), reference=reference) for name, run in runs.items()}
    return found, plain


def prepare_forward(levels: tuple[int, ...], settings: Settings) -> Prepared:
    torch.compiler.reset()
    image, mask = image_and_mask(settings.size, settings, settings.dtype)
    found, plain = alternatives_of(levels, image, mask, settings)
    reference = found[REFERENCE].reference
    if settings.compiled:
        # Its attention asks how many pixels are holes, at which the graph breaks.
        compiled = torch.compile(plain, dynamic=False)
        found[COMPILED] = Alternative(functools.partial(compiled, image, mask), reference=reference)
    if settings.compiled and settings.on_cuda:
        graphs = torch.compile(plain, dynamic=False, mode="reduce-overhead")
        found[COMPILED_GRAPHS] = Alternative(functools.partial(graphs, image, mask), reference=reference, capture=False)
    return Prepared(found)


def forward_cases(settings: Settings) -> list[Case]:
    compiled = (COMPILED, COMPILED_GRAPHS) if settings.on_cuda else (COMPILED,)
    names = (OURS, REFERENCE, *(compiled if settings.compiled else ()))
    return [
        _case(name, settings.size, names, functools.partial(prepare_forward, levels), settings.batch)
        for name, levels in NETWORKS.items()
    ]


GENERATOR = Suite(
    "the whole network",
    "The generator's forward on fused and on reference operators; brush masks with 20-30 % hole.",
    forward_cases,
)


# ---- memory ----------------------------------------------------------------------------------------------------------


def prepare_large(settings: Settings) -> Prepared:
    """Has ours alone run: the reference, with which it is compared, takes a minute for such an image on a CPU."""
    image, mask = image_and_mask(LARGE_SIZE, dataclasses.replace(settings, batch=1), settings.dtype)
    found, _ = alternatives_of(NETWORKS[WHOLE], image, mask, settings)
    return Prepared({OURS: found[OURS]}, first_call_limit=PATIENCE)


MEMORY = Suite(
    "one large image",
    "The generator's forward: peak memory beyond the weights and the image.",
    lambda settings: [_case(WHOLE, LARGE_SIZE, (OURS,), prepare_large, batch=1)],
)


# ---- training --------------------------------------------------------------------------------------------------------


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
    image, mask = image_and_mask(settings.size, settings)
    steps = {name: functools.partial(trainer.step, image, mask) for name, trainer in trainers.items()}
    for step in steps.values():
        step()
    difference = relative_difference(trainers[OURS], trainers[REFERENCE])
    prepared = Prepared(
        {name: Alternative(step) for name, step in steps.items()},
        columns={"gradient_difference": significant(difference)},
    )
    if not difference < (1e-2 if settings.dtype == torch.float32 else 1e-1):
        prepared.leave_out({OURS: "its gradients differ from the reference's"})
    return prepared


def training_cases(settings: Settings) -> list[Case]:
    """Makes the one case.

    Raises:
        ValueError: the bottleneck has a single value per channel, with which batch norm cannot be trained.
    """
    if settings.batch == 1 and settings.size <= 256:
        raise ValueError(f"the training suite needs a batch of at least 2 at size {settings.size}, got 1")
    names = (OURS, REFERENCE)
    options = {"operator": "training step", "passes": (STEP,)}
    return [_case("without VGG", settings.size, names, prepare_training, settings.batch, **options)]


TRAINING = Suite(
    "a training step",
    "Forward, losses without VGG, backward and update of generator and discriminator, on fused and on reference "
    "operators; brush masks with 20-30 % hole.",
    training_cases,
)
