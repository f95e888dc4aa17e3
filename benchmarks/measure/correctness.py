"""Decides whether an alternative's figures are reported: it has to run, in time, in the memory there is, and to compute
the right result."""

from __future__ import annotations

import contextlib
import re
import signal
import textwrap
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..model import is_out_of_memory
from .memory import release
from .timing import synchronize

#: The reason given for an alternative that computes something else.
DIFFERS = "differs from the float64 result"
#: How the reason begins where memory ran out.
OUT_OF_MEMORY = "out of memory"


def agrees(result: Tensor, plain: Tensor, exact: Tensor, factor: float) -> bool:
    """Tests whether the error against the float64 result is at most `factor` times that of plain PyTorch in the same
    dtype, plus a few roundings of the largest value."""
    absolute = 4 * torch.finfo(result.dtype).eps * _largest(exact)
    return _largest(result.double() - exact) <= factor * _largest(plain.double() - exact) + absolute


def resembles(result: Tensor, exact: Tensor) -> bool:
    """Tests whether half of the dtype's digits agree: the same function, as well as its formula can compute it."""
    return _largest(result.double() - exact) <= torch.finfo(result.dtype).eps ** 0.5 * _largest(exact)


def _largest(x: Tensor) -> float:
    return x.abs().max().item()


def first_call(
    run: Callable[[], object], is_right: Callable[[object], bool], limit: float, device: torch.device
) -> str | None:
    """Makes the first call, which also warms up, and returns why its figures cannot be reported: it fails, takes more
    than `limit` seconds, or its result is not right. Returns None where they can."""
    start = time.monotonic()
    try:
        with time_limit(limit):
            result = run()
            synchronize(device)
    except Exception as error:
        why = reason(error) if time.monotonic() - start < limit else f"not ready after {limit:.0f} s"
    else:
        return None if is_right(result) else DIFFERS
    release(device)  # only here, where the error and with it the tensors of its frames are gone
    return why


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises TimeoutError once the time is over; waits for a single call into native code. Main thread only."""

    def stop(*_: object) -> None:
        raise TimeoutError

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def reason(error: BaseException) -> str:
    """Returns the first sentence of the error at the root, without the compiler's wrapping; the error's type if it says
    nothing. Where memory ran out, it says how much was wanted."""
    while inner := getattr(error, "inner_exception", None) or error.__cause__:
        error = inner
    if is_out_of_memory(error):
        wanted = re.search(r"ried to allocate ([\d.]+) ?(bytes|[KMGT]iB)", str(error))
        if not wanted:
            return OUT_OF_MEMORY
        mib = float(wanted[1]) * 1024.0 ** (["bytes", "KiB", "MiB", "GiB", "TiB"].index(wanted[2]) - 2)
        return f"{OUT_OF_MEMORY}: " + (f"{mib / 1024:.1f} GiB wanted" if mib >= 1024 else f"{mib:.1f} MiB wanted")
    words = re.sub(r"^raised exception \w+\(['\"]", "", str(error).strip()).splitlines() or [type(error).__name__]
    return textwrap.shorten(words[0].split(". ")[0].rstrip(".:"), 100, placeholder=" …")
