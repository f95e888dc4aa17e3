"""The generator suite: the whole network's forward on fused and on reference operators, with and without attention."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import torch
from torch import Tensor

from msa_model import Generator
from msa_model.masks import free_form_mask

from .contest import FORWARD, OURS, Call, Contest, Contestant, Settings, Truth
from .suites import Case, Suite

REFERENCE, COMPILED, COMPILED_GRAPHS = "reference", "reference, compiled", "reference, compiled, reduce-overhead"
HOLE = (0.2, 0.3)
#: Case -> decoder levels with an attention stage.
WHOLE = "whole"
NETWORKS = {WHOLE: (4, 3), "without attention": ()}


def size_of(settings: Settings) -> int:
    """One size: the first that was asked for."""
    return settings.sizes[0] if settings.sizes else 256


def image_and_mask(size: int, settings: Settings, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    image = torch.rand(settings.batch, 3, size, size)
    mask = torch.stack([free_form_mask(size, size, HOLE, 7 + i) for i in range(settings.batch)])
    return image.to(settings.device, dtype, memory_format=torch.channels_last), mask.to(settings.device)


def contestants_of(
    levels: tuple[int, ...], image: Tensor, mask: Tensor, settings: Settings
) -> tuple[dict[str, Contestant], Generator]:
    """Ours and the reference with the same weights, judged by the reference in float64; and the reference's network."""
    torch.manual_seed(0)
    plain = Generator(attention_levels=levels, backend="reference").eval()
    fused = Generator(attention_levels=levels).eval()
    fused.load_state_dict(plain.state_dict())
    fused, plain = (n.to(settings.device, settings.dtype, memory_format=torch.channels_last) for n in (fused, plain))
    truth = Truth(call_of(plain, image, mask), call_of(copy.deepcopy(plain).double(), image.double(), mask))
    calls = {name: call_of(network, image, mask) for name, network in ((OURS, fused), (REFERENCE, plain))}
    return {name: Contestant(call, truth) for name, call in calls.items()}, plain


def call_of(network: Callable[[Tensor, Tensor], Tensor], image: Tensor, mask: Tensor) -> Call:
    return Call(functools.partial(network, image, mask))


def prepare(levels: tuple[int, ...], size: int, settings: Settings) -> Contest:
    torch.compiler.reset()
    image, mask = image_and_mask(size, settings, settings.dtype)
    contestants, plain = contestants_of(levels, image, mask, settings)
    truth = contestants[REFERENCE].truth
    if settings.compiled:
        # Its attention asks how many pixels are holes, at which the graph breaks.
        contestants[COMPILED] = Contestant(call_of(torch.compile(plain, dynamic=False), image, mask), truth)
    if settings.compiled and settings.on_cuda:
        graphs = torch.compile(plain, dynamic=False, mode="reduce-overhead")
        contestants[COMPILED_GRAPHS] = Contestant(call_of(graphs, image, mask), truth, capture=False)
    return Contest(contestants, {FORWARD: None})


def cases(settings: Settings) -> list[Case]:
    size = size_of(settings)
    compiled = (COMPILED, COMPILED_GRAPHS) if settings.on_cuda else (COMPILED,)
    names = (OURS, REFERENCE, *(compiled if settings.compiled else ()))
    shape = f"{settings.batch}×3×{size}×{size}"
    facts = {"size": size, "batch": settings.batch, "hole": list(HOLE)}
    return [
        Case(f"{name} {size}", "generator", shape, names, functools.partial(prepare, levels, size), name, facts)
        for name, levels in NETWORKS.items()
    ]


SUITE = Suite("the generator's forward on fused and on reference operators", cases)
