"""Measures the memory of a call, and keeps an alternative that wants too much from ending the process."""

from __future__ import annotations

import contextlib
import gc
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from .timing import synchronize


def peak_extra_bytes(run: Callable[[], object], device: torch.device, warm: bool = False) -> int:
    """Returns the peak of what torch's allocator holds during `run` beyond what it held before. The compiled kernels'
    scratch and the result count. `warm`: it has run before."""
    if not warm:
        run()
    if device.type == "cuda":
        synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else every start and stop is announced on stderr
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = run()
    held = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    del result
    return peak


def release(device: torch.device) -> None:
    """Hands back what an alternative that failed left behind."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


@contextlib.contextmanager
def memory_limit(device: torch.device, share: float = 0.8) -> Iterator[None]:
    """Makes the CPU's allocator refuse what exceeds `share` of the memory that is free now. Without the limit Linux
    promises any amount, and kills the process once it uses it. Does nothing on CUDA, or where /proc is missing."""
    free = free_memory(device)
    if device.type != "cpu" or free == math.inf:
        yield
        return
    import resource

    before = resource.getrlimit(resource.RLIMIT_DATA)
    limit = int(_bytes_in("/proc/self/status", "VmData") + share * free)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def free_memory(device: torch.device) -> float:
    """Returns bytes. On a CPU the control group's limit counts too; infinite where nothing says how many there are."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = _bytes_in("/proc/meminfo", "MemAvailable")
    group = Path("/sys/fs/cgroup")
    try:
        allowed = int((group / "memory.max").read_text()) - int((group / "memory.current").read_text())
    except (OSError, ValueError):  # no control group, or "max": no limit
        return free
    return min(free, allowed)


def _bytes_in(file: str, name: str) -> float:
    """Reads a line "NAME: 123 kB" of a file in /proc; infinite where there is none."""
    try:
        lines = Path(file).read_text().splitlines()
    except OSError:
        return math.inf
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), math.inf)
