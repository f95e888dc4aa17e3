"""The generator suite: the whole network's forward on fused and on reference operators, with and without attention."""

from __future__ import annotations

import copy
import functools

import torch
from torch import Tensor

from msa_model import Generator
from msa_model.masks import free_form_mask

from .contest import FORWARD, OURS, Call, Contest, Contestant, Settings, Truth
from .suites import Case, Suite

REFERENCE, COMPILED = "reference", "reference, compiled"
HOLE = (0.2, 0.3)
#: Case -> decoder levels with an attention stage.
NETWORKS = {"whole": (4, 3), "without attention": ()}


def size_of(settings: Settings) -> int:
    """One size: the first that was asked for."""
    return settings.sizes[0] if settings.sizes else 256


def image_and_mask(size: int, settings: Settings, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    image = torch.rand(settings.batch, 3, size, size)
    mask = torch.stack([free_form_mask(size, size, HOLE, 7 + i) for i in range(settings.batch)])
    return image.to(settings.device, dtype, memory_format=torch.channels_last), mask.to(settings.device)


def prepare(levels: tuple[int, ...], size: int, settings: Settings) -> Contest:
    torch.compiler.reset()
    torch.manual_seed(0)
    plain = Generator(attention_levels=levels, backend="reference").eval()
    fused = Generator(attention_levels=levels).eval()
    fused.load_state_dict(plain.state_dict())
    networks = [n.to(settings.device, settings.dtype, memory_format=torch.channels_last) for n in (fused, plain)]
    image, mask = image_and_mask(size, settings, settings.dtype)

    def call(network: torch.nn.Module, image: Tensor = image) -> Call:
        return Call(functools.partial(network, image, mask))

    fused, plain = networks
    truth = Truth(call(plain), call(copy.deepcopy(plain).double(), image.double()))
    contestants = {OURS: Contestant(call(fused), truth), REFERENCE: Contestant(call(plain), truth)}
    if settings.compiled:
        # Its attention asks how many pixels are holes, at which the graph breaks.
        contestants[COMPILED] = Contestant(call(torch.compile(plain, dynamic=False)), truth)
    return Contest(contestants, {FORWARD: None})


def cases(settings: Settings) -> list[Case]:
    size = size_of(settings)
    names = (OURS, REFERENCE, *((COMPILED,) if settings.compiled else ()))
    shape = f"{settings.batch}×3×{size}×{size}"
    facts = {"size": size, "batch": settings.batch, "hole": list(HOLE)}
    return [
        Case(f"{name} {size}", "generator", shape, names, functools.partial(prepare, levels, size), name, facts)
        for name, levels in NETWORKS.items()
    ]


SUITE = Suite("the generator's forward on fused and on reference operators", cases)
