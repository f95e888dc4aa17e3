"""Measures the memory of a call, and keeps an alternative that wants too much from ending the process."""

from __future__ import annotations

import contextlib
import gc
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from .timing import synchronize


def peak_extra_bytes(run: Callable[[], object], device: torch.device) -> int:
    """Returns the peak of what torch's allocator holds during `run` beyond what it held before. The compiled kernels'
    scratch and the result count. `run` is to have run before, since a first call plans and compiles."""
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
    promises any amount, and kills the process once it uses it. Does nothing on CUDA."""
    if device.type == "cuda":
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_DATA)
    limit = int(_bytes_in("/proc/self/status", "VmData") + share * free_memory())
    resource.setrlimit(resource.RLIMIT_DATA, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def free_memory() -> int:
    """Returns the free bytes of the machine, or what its control group leaves, if that is less."""
    free, group = _bytes_in("/proc/meminfo", "MemAvailable"), Path("/sys/fs/cgroup")
    try:
        return min(free, int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):  # no control group, or "max": no limit
        return free


def _bytes_in(file: str, name: str) -> int:
    """Reads a line "NAME: 123 kB" of a file in /proc."""
    return next(
        int(line.split()[1]) * 1024 for line in Path(file).read_text().splitlines() if line.startswith(f"{name}:")
    )
