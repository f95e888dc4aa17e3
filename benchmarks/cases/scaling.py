"""Time and extra memory of attention against the size of the map, until memory or patience ends."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from ..measure import FORWARD, OURS, Case, Prepared, Row, Settings, free_memory
from . import attention
from .suite import Suite

SIDES = (32, 64, 128, 256)
#: Seconds that a call may be expected to take.
PATIENCE = 20.0


def growing_map(side: int) -> attention.Map:
    """Returns the same hole on every size: a quarter of the map."""
    return attention.Map((1, 128, side, side), (0.25,), enlarged=side // 32)


def prepare(side: int, names: tuple[str, ...], settings: Settings) -> Prepared:
    features, mask = growing_map(side).tensors(settings)
    reference, runs = attention.sampled_reference(features, mask), attention.implementations()
    alternatives = {name: attention.alternative(runs[name], features, mask, reference) for name in names}
    return Prepared(alternatives, attention.work_of(features, mask))


def cases(settings: Settings) -> list[Case]:
    """FlexAttention, which compiles anew for every size, on CUDA only."""
    flex = (attention.FLEX,) if settings.on_cuda else ()
    names = (OURS, attention.DENSE, attention.GATHERED, attention.SDPA, *flex)
    return [
        Case(
            f"{side}×{side}",
            "hole_attention",
            growing_map(side).text,
            names,
            functools.partial(prepare, side, names),
            (FORWARD,),
            columns={"side": side},
        )
        for side in SIDES
    ]


def absent(rows: Sequence[Row], case: Case, settings: Settings) -> dict[str, str]:
    """Leaves out what was unavailable at the size before, and what would take too long at this one."""
    last = [row for row in rows if row["side"] == rows[-1]["side"]]
    growth = (case.columns["side"] / last[0]["side"]) ** 4 if last else 1.0
    return unavailable(last, growth, free_memory(settings.device))


def unavailable(last: Sequence[Row], growth: float, free: float) -> dict[str, str]:
    """Names the alternatives that do not go on to a map with `growth` times as many pairs of pixels, and why. One that
    is going to exceed the `free` bytes is let run, since that shows soon, however long it would take."""
    result = {}
    for row in last:
        if "unavailable" in row:
            result[row["alternative"]] = row["unavailable"]
        elif (seconds := growth * row["ms"] / 1e3) > PATIENCE and growth * row["extra_mib"] * 2**20 < free:
            result[row["alternative"]] = f"expected to take {seconds:.0f} s"
    return result


SUITE = Suite(
    "attention on growing maps",
    "Forward, 128 channels, a quarter of the map is hole.",
    cases,
    absent,
    limits={"limit": 3.0, "at_least": 1},
)
