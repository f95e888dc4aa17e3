"""The scaling suite: time and extra memory of attention against the size of the map, until memory or patience ends."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping

from . import gate
from .attention_cases import (
    DENSE,
    FLEX,
    GATHERED,
    SDPA,
    Map,
    attention_call,
    attention_work,
    implementations,
    sampled_truth,
)
from .contest import FORWARD, OURS, Contest, Contestant, Settings
from .suites import Case, Suite, measure_case

SIDES = {f"{side}×{side}": side for side in (32, 64, 128, 256)}
#: Seconds that a call may be expected to take.
PATIENCE = 20.0
#: Seconds of rounds per size; one counts in any case.
ROUNDS_LIMIT = 3.0


def contestants(settings: Settings) -> tuple[str, ...]:
    """FlexAttention, which compiles anew for every size, on CUDA only."""
    return (OURS, DENSE, GATHERED, SDPA, *((FLEX,) if settings.on_cuda else ()))


def growing_map(side: int) -> Map:
    """The same hole on every size: a quarter of the map."""
    return Map((1, 128, side, side), (0.25,), enlarged=side // 32)


def prepare(side: int, settings: Settings) -> Contest:
    """The forward pass."""
    features, mask = growing_map(side).tensors(settings)
    truth, runs = sampled_truth(features, mask), implementations()
    return Contest(
        {name: Contestant(attention_call(runs[name], features, mask), truth) for name in contestants(settings)},
        {FORWARD: attention_work(features, mask)[FORWARD]},
    )


def cases(settings: Settings) -> list[Case]:
    return [
        Case(
            name,
            "hole_attention",
            growing_map(side).text,
            contestants(settings),
            functools.partial(prepare, side),
            facts={"side": side},
        )
        for name, side in SIDES.items()
    ]


def measure(growing: Iterable[Case], settings: Settings) -> dict[str, dict]:
    """Smallest map first. A contestant that ended at one size does not begin at the next, nor does one that would take
    too long there."""
    records: dict[str, dict] = {}
    ended: dict[str, str] = {}
    for case in growing:
        if records:
            last = next(reversed(records.values()))
            pairs = (case.facts["side"] / last["side"]) ** 4
            ended |= ends(last["contestants"], pairs, gate.free_memory(settings.device))
        records[case.name] = measure_case(case, settings, ended, limit=ROUNDS_LIMIT, at_least=1)
    return records


def ends(contestants: Mapping[str, dict], growth: float, free: float) -> dict[str, str]:
    """Who does not go on to a map with `growth` times as many pairs of pixels, and why. One that is going to run out of
    the `free` bytes soon shows so, however long it would take."""
    result = {}
    for name, ways in contestants.items():
        entry = ways[FORWARD]
        if "unavailable" in entry:
            result[name] = entry["unavailable"]
        elif (seconds := growth * entry["ms"] / 1e3) > PATIENCE and growth * entry["extra_mib"] * 2**20 < free:
            result[name] = f"expected to take {seconds:.0f} s"
    return result


SUITE = Suite("hole_attention on growing maps, forward, until memory or patience ends", cases, measure)
