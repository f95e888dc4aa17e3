"""Whose numbers are reported: a contestant that runs, in time, in the memory there is, and computes the right thing."""

from __future__ import annotations

import contextlib
import gc
import math
import re
import signal
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from msa_model.commands.common import is_out_of_memory

from .harness import synchronize

#: Why a contestant is refused that computes something else.
DIFFERS = "differs from the float64 result"
#: How the reason of one that found no memory begins.
OUT_OF_MEMORY = "out of memory"

Results = Mapping[str, Tensor]


def agrees(result: Tensor, plain: Tensor, exact: Tensor, factor: float = 2.0) -> bool:
    """Whether the error against the float64 result is at most `factor` times that of plain PyTorch in the same dtype,
    plus a few roundings of the largest value."""
    absolute = 4 * torch.finfo(result.dtype).eps * _largest(exact)
    return _largest(result.double() - exact) <= factor * _largest(plain.double() - exact) + absolute


def resembles(result: Tensor, exact: Tensor) -> bool:
    """Whether half of the dtype's digits agree: the same function, computed as well as its formula allows."""
    return _largest(result.double() - exact) <= torch.finfo(result.dtype).eps ** 0.5 * _largest(exact)


def _largest(x: Tensor) -> float:
    return x.abs().max().item()


def refusal(
    run: Callable[[], Results], right: Callable[[Results], bool], limit: float, device: torch.device
) -> str | None:
    """Why a contestant's numbers are not reported, in a line: its first call fails, takes more than `limit` seconds, or
    gives what is not right. None where they may be. The call also warms it up."""
    start = time.monotonic()
    try:
        with time_limit(limit):
            results = run()
            synchronize(device)
    except Exception as error:
        why = reason(error) if time.monotonic() - start < limit else f"not ready after {limit:.0f} s"
    else:
        return None if right(results) else DIFFERS
    release(device)  # only here, where the error and with it the tensors of its frames are gone
    return why


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """TimeoutError once the time is over; a single call into native code is waited for. Main thread only."""

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
    """The first sentence of what it is about, without the compiler's wrapping; the kind of error if it has no words."""
    while inner := getattr(error, "inner_exception", None) or error.__cause__:
        error = inner
    if is_out_of_memory(error):
        return _wanted_memory(str(error))
    words = re.sub(r"^raised exception \w+\(['\"]", "", str(error).strip()).splitlines() or [type(error).__name__]
    return textwrap.shorten(words[0].split(". ")[0].rstrip(".:"), 100, placeholder=" …")


def _wanted_memory(message: str) -> str:
    """ "out of memory: 16.0 GiB wanted", where the allocator says how much."""
    found = re.search(r"ried to allocate ([\d.]+) ?(bytes|[KMGT]iB)", message)
    if not found:
        return OUT_OF_MEMORY
    size, unit = float(found[1]), found[2]
    if unit == "bytes":
        size, unit = size / 2**20, "MiB"
    if unit == "MiB" and size >= 1024:
        size, unit = size / 1024, "GiB"
    return f"{OUT_OF_MEMORY}: {size:.1f} {unit} wanted"


def release(device: torch.device) -> None:
    """Hands back what a contestant that failed left behind."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


@contextlib.contextmanager
def memory_limit(device: torch.device, share: float = 0.8) -> Iterator[None]:
    """On a CPU, the allocator refuses what would exceed `share` of the memory that is free now. Without it Linux
    promises any amount, and ends the process that takes it at its word. Nothing on CUDA and on other systems."""
    free = free_memory(device)
    if device.type != "cpu" or not sys.platform.startswith("linux") or free == math.inf:
        yield
        return
    import resource

    before = resource.getrlimit(resource.RLIMIT_DATA)
    limit = int(_fact("/proc/self/status", "VmData") + share * free)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def free_memory(device: torch.device) -> float:
    """Bytes; on a CPU within the control group's limit if there is one, infinite where nothing says how many."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = _fact("/proc/meminfo", "MemAvailable")
    group = Path("/sys/fs/cgroup")
    try:
        allowed = int((group / "memory.max").read_text()) - int((group / "memory.current").read_text())
    except (OSError, ValueError):  # no control group, or "max": no limit
        return free
    return min(free, allowed)


def _fact(file: str, name: str) -> float:
    """Bytes from a line "NAME: 123 kB" of /proc; infinite where there is none."""
    try:
        lines = Path(file).read_text().splitlines()
    except OSError:
        return math.inf
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), math.inf)
