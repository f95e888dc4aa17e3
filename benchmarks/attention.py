"""The attention suite: hole_attention against what a user could run instead, with the targets set for it.

The sizes are fixed, since targets belong to them: ``--size`` and ``--batch`` do not scale them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

from msa_ops import hole_attention

from .attention_cases import (
    CONTESTANTS,
    DENSE,
    GATHERED,
    SDPA,
    Map,
    attention_contest,
    dense_hole_attention,
    implementations,
)
from .contest import BOTH, FORWARD, OURS, Contest, Settings
from .suites import Case, Suite

DIRECTIONS = FORWARD, BOTH


@dataclasses.dataclass(frozen=True)
class AttentionCase:
    """`on_cpu`, `on_cuda`: the contestants there, without those that would take too long; none: not a case there. A map
    that is too large for N×N matrices is judged by the gathered form, whose equality with them the other cases show."""

    map: Map
    on_cpu: tuple[str, ...] = CONTESTANTS
    on_cuda: tuple[str, ...] = CONTESTANTS

    def contestants(self, settings: Settings) -> tuple[str, ...]:
        return self.on_cuda if settings.on_cuda else self.on_cpu

    def prepare(self, settings: Settings) -> Contest:
        runs = implementations()
        large = self.map.shape[2] > 64
        judge = functools.partial(hole_attention, backend="reference") if large else dense_hole_attention
        names = self.contestants(settings)
        return attention_contest(*self.map.tensors(settings), {name: runs[name] for name in names}, judge)


SMALL, LARGE = "64×64", "128×128"
#: The network's attention stage.
STAGE, STAGE_BATCH = "64×64 30%", "64×64 30%, batch 6"
#: Where nothing has to be compiled, which on a GPU takes up to a minute per contestant, or where no N×N matrix fits.
EAGER = (OURS, GATHERED, SDPA)
#: The large ones have the small one's hole, enlarged, so that queries and keys grow by exactly four each.
CASES = {
    SMALL: AttentionCase(Map((1, 128, 64, 64), (0.25,)), on_cuda=(OURS, DENSE, GATHERED, SDPA)),
    STAGE: AttentionCase(Map((1, 128, 64, 64), (0.30,)), on_cpu=EAGER, on_cuda=EAGER),
    # A single map keeps a GPU busy for less time than the launch of a kernel takes: also the paper's batch.
    STAGE_BATCH: AttentionCase(Map((6, 128, 64, 64), (0.30,) * 6), on_cpu=()),
    "mixed holes": AttentionCase(Map((6, 256, 32, 32), (0.05, 0.15, 0.25, 0.35, 0.45, 0.60))),
    LARGE: AttentionCase(Map((1, 128, 128, 128), (0.25,), enlarged=2), on_cpu=(OURS,), on_cuda=EAGER),
    "256×256": AttentionCase(Map((1, 128, 256, 256), (0.25,), enlarged=4), on_cpu=(), on_cuda=EAGER),
    "half holes": AttentionCase(Map((6, 128, 64, 64), (0.5,) * 6), on_cpu=()),
}

#: The place of a target for the best of all others.
BEST = "best"
#: Issue 3, per dtype: (case or growth, contestant or quantity) -> what is bounded; bounds forward, forward + backward.
#: Ratios are to be at least this, memory and growth at most.
TARGETS: dict[str, dict[tuple[str, str], tuple[str, float | None, float | None]]] = {
    "float32": {
        (SMALL, DENSE): ("ratio", 10, 6),
        (SMALL, GATHERED): ("ratio", 2, 1.5),
        ("mixed holes", DENSE): ("ratio", None, 4),
        (LARGE, OURS): ("extra_mib", 64, 128),
        ("growth", "time"): ("growth", 18, 18),
        ("growth", "extra memory"): ("growth", 4.5, 4.5),
    },
    "bfloat16": {
        ("half holes", DENSE): ("ratio", 15, 10),
        ("half holes", BEST): ("ratio", 3, 2),
    },
}


def cases(settings: Settings) -> list[Case]:
    return [
        Case(name, "hole_attention", case.map.text, case.contestants(settings), case.prepare)
        for name, case in CASES.items()
        if case.contestants(settings)
    ]


def conclude(records: Mapping[str, dict], dtype: str) -> dict:
    """How ours grows with the map; into the records, the best of the others, and every target beside its value."""
    for record in records.values():
        record[BEST] = best_of_the_others(record["contestants"])
    suite = {"growth": growth(records[SMALL], records[LARGE])} if {SMALL, LARGE} <= records.keys() else {}
    for (place, row), (quantity, *bounds) in TARGETS.get(dtype, {}).items():
        if place == "growth":
            entries = suite.get("growth", {}).get(row, {})
        else:
            record = records.get(place, {BEST: {}, "contestants": {}})
            entries = record[BEST] if row == BEST else record["contestants"].get(row, {})
        for way, bound in zip(DIRECTIONS, bounds, strict=True):
            if bound is not None and way in entries:
                entries[way]["target"] = {quantity: bound}
    return suite


def growth(small: dict, large: dict) -> dict[str, dict]:
    """How often ours at the small case goes into ours at the large one, where both are available."""
    result: dict[str, dict] = {}
    for quantity, key in (("time", "ms"), ("extra memory", "extra_mib")):
        result[quantity] = {}
        for way in DIRECTIONS:
            before, after = (record["contestants"].get(OURS, {}).get(way, {}) for record in (small, large))
            available = before.get(key) and key in after
            result[quantity][way] = {"growth": round(after[key] / before[key], 2)} if available else {}
    return result


def best_of_the_others(contestants: Mapping[str, dict]) -> dict[str, dict]:
    """The smallest ratio of all but ours, and whose it is."""
    result = {}
    for way in DIRECTIONS:
        ratios = {
            name: entries[way]["ratio"]
            for name, entries in contestants.items()
            if name != OURS and "ratio" in entries[way]
        }
        best = min(ratios, key=ratios.get, default=None)
        result[way] = {"of": best, "ratio": ratios[best]} if best else {"unavailable": "no other is"}
    return result


SUITE = Suite("hole_attention, k = 1, on fixed maps with irregular holes", cases, conclude=conclude)
