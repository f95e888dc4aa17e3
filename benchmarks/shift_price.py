"""The price-of-shift suite: our own attention with shift propagation (k = 1) against the same without (k = 0)."""

from __future__ import annotations

import functools

from msa_ops import hole_attention

from .attention_cases import Map, attention_call, attention_contest, attention_truth
from .attention_competitors import dense_hole_attention
from .contest import OURS, Contest, Contestant, Settings
from .suites import Case, Suite

WITHOUT = "ours, k = 0"
STAGE, STAGE_BATCH = "64×64", "64×64, batch 6"
MAPS = {
    STAGE: Map((1, 128, 64, 64), (0.30,)),
    STAGE_BATCH: Map((6, 128, 64, 64), (0.30,) * 6),
    "32×32": Map((6, 256, 32, 32), (0.30,) * 6),
}
#: As in the attention suite.
ON_CUDA = (STAGE_BATCH,)


def prepare(case: Map, settings: Settings) -> Contest:
    features, mask = case.tensors(settings)
    contest = attention_contest(features, mask, {OURS: hole_attention}, dense_hole_attention)
    truth = attention_truth(functools.partial(dense_hole_attention, radius=0), features, mask)
    without = attention_call(functools.partial(hole_attention, radius=0), features, mask)
    contest.contestants[WITHOUT] = Contestant(without, truth)
    return contest


def cases(settings: Settings) -> list[Case]:
    return [
        Case(name, "hole_attention", case.text, (OURS, WITHOUT), functools.partial(prepare, case))
        for name, case in MAPS.items()
        if settings.on_cuda or name not in ON_CUDA
    ]


SUITE = Suite("hole_attention with shift propagation (k = 1) against the same without (k = 0)", cases)
