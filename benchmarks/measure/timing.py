"""Times alternatives in turns, within one process.

A bare time on a shared machine says little. The ratio of two medians that were taken in the same minutes says more, so
all alternatives of a case take turns. ``torch.utils.benchmark`` and ``triton.testing`` time one function to its end
before the next, which is why the loop is written here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

#: Seconds after which no further round begins, except that this many rounds are made in any case.
ROUNDS_LIMIT, ROUNDS_AT_LEAST = 15.0, 3


class Timing(NamedTuple):
    """Milliseconds: median, lower and upper quartile."""

    median: float
    lower: float
    upper: float


def timing_of(milliseconds: Sequence[float]) -> Timing:
    return Timing(*np.percentile(milliseconds, (50, 25, 75)).tolist())


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(run: Callable[[], object], device: torch.device) -> float:
    """Returns the milliseconds of one call; the device finishes earlier work before, and the call's own work within."""
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return (time.perf_counter() - start) * 1e3


def take_turns(
    clocks: Mapping[str, Callable[[], float]], rounds: int, limit: float = ROUNDS_LIMIT
) -> dict[str, Timing]:
    """Calls every clock once per round, in turn; a clock runs an alternative and returns the milliseconds it took."""
    times: dict[str, list[float]] = {name: [] for name in clocks}
    begin = time.monotonic()
    for number in range(rounds):
        if number >= ROUNDS_AT_LEAST and time.monotonic() - begin > limit:
            break
        for name, clock in clocks.items():
            times[name].append(clock())
    return {name: timing_of(values) for name, values in times.items()}


def significant(value: float) -> float:
    """Rounds to four significant digits, as result files hold a value."""
    return float(f"{value:.4g}")
