"""Our own attention with shift propagation (k = 1) against the same without (k = 0)."""

from __future__ import annotations

import functools

from msa_ops import hole_attention

from ..measure import OURS, Case, Prepared, Settings
from . import attention
from .attention_alternatives import dense_hole_attention
from .suite import Suite

WITHOUT = "ours, k = 0"
STAGE, STAGE_BATCH = "64×64", "64×64, batch 6"
MAPS = {
    STAGE: attention.CASES[attention.STAGE][0],
    STAGE_BATCH: attention.CASES[attention.STAGE_BATCH][0],
    "32×32": attention.Map((6, 256, 32, 32), (0.30,) * 6),
}
ON_CUDA = (STAGE_BATCH,)


def prepare(one: attention.Map, settings: Settings) -> Prepared:
    features, mask = one.tensors(settings)
    prepared = attention.prepare(features, mask, {OURS: hole_attention}, dense_hole_attention)
    reference = attention.reference_of(functools.partial(dense_hole_attention, radius=0), features, mask)
    without = functools.partial(hole_attention, radius=0)
    prepared.alternatives[WITHOUT] = attention.alternative(without, features, mask, reference)
    return prepared


def cases(settings: Settings) -> list[Case]:
    return [
        Case(name, "hole_attention", one.text, (OURS, WITHOUT), functools.partial(prepare, one))
        for name, one in MAPS.items()
        if settings.on_cuda or name not in ON_CUDA
    ]


SUITE = Suite(
    "shift propagation",
    "Our own attention with shift propagation (k = 1) against the same without (k = 0).",
    cases,
)
