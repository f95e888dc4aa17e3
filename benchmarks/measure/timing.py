"""Times alternatives in turns, within one process.

A bare time on a shared machine says little. The ratio of two medians that were taken in the same minutes says more, so
all alternatives of a case take turns. ``torch.utils.benchmark`` and ``triton.testing`` time one function to its end
before the next, which is why the loop is written here.
"""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch


class Timing(NamedTuple):
    """Milliseconds: median, lower and upper quartile."""

    median: float
    lower: float
    upper: float


def timing_of(milliseconds: Sequence[float]) -> Timing:
    if len(milliseconds) == 1:
        return Timing(*milliseconds * 3)
    lower, median, upper = statistics.quantiles(milliseconds, n=4, method="inclusive")
    return Timing(median, lower, upper)


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
    clocks: Mapping[str, Callable[[], float]],
    rounds: int,
    warmup: int = 0,
    limit: float = math.inf,
    at_least: int = 3,
) -> dict[str, Timing]:
    """Calls every clock once per round, in turn; a clock runs an alternative and returns the milliseconds it took.

    Args:
        warmup: rounds before the first that counts.
        limit: seconds after which no round begins, except that `at_least` rounds count in any case.
    """
    times: dict[str, list[float]] = {name: [] for name in clocks}
    begin = time.monotonic()
    for number in range(warmup + rounds):
        if number >= warmup + at_least and time.monotonic() - begin > limit:
            break
        for name, clock in clocks.items():
            milliseconds = clock()
            if number >= warmup:
                times[name].append(milliseconds)
    return {name: timing_of(values) for name, values in times.items()}


def interleave(
    runs: Mapping[str, Callable[[], object]], device: torch.device, rounds: int, warmup: int = 2, **limits: float
) -> dict[str, Timing]:
    """Times functions in turns with `timed`; limits as for `take_turns`."""
    return take_turns(
        {name: functools.partial(timed, run, device) for name, run in runs.items()}, rounds, warmup, **limits
    )


def significant(value: float) -> float:
    """Rounds to four significant digits, as result files hold a value."""
    return float(f"{value:.4g}")
