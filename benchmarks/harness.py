"""One way of taking time: competitors interleaved in one process, medians and quartiles, ratios first.

Bare times on a shared machine say little; the ratio of two medians taken in the same minutes says more. So all
contestants of a case take turns, and a case's figures are its contestants' medians and their ratios.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parent.parent


@dataclasses.dataclass(frozen=True)
class Timing:
    """Milliseconds: median and quartiles."""

    median: float
    lower: float
    upper: float


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def interleave(
    contestants: dict[str, Callable[[], object]],
    device: torch.device,
    rounds: int,
    warmup: int = 2,
    limit: float = math.inf,
    at_least: int = 3,
) -> dict[str, Timing]:
    """Runs every contestant once per round, in turn, after `warmup` rounds that do not count. After `limit` seconds no
    round begins, except that `at_least` count in any case."""
    clocks = {name: functools.partial(timed, run, device) for name, run in contestants.items()}
    return take_turns(clocks, rounds, warmup, limit, at_least)


def take_turns(
    clocks: dict[str, Callable[[], float]],
    rounds: int,
    warmup: int = 0,
    limit: float = math.inf,
    at_least: int = 3,
) -> dict[str, Timing]:
    """The same of functions that run a contestant and return the milliseconds that it took."""
    times: dict[str, list[float]] = {name: [] for name in clocks}
    begin = time.monotonic()
    for round_ in range(warmup + rounds):
        if round_ >= warmup + at_least and time.monotonic() - begin > limit:
            break
        for name, clock in clocks.items():
            milliseconds = clock()
            if round_ >= warmup:
                times[name].append(milliseconds)
    return {name: timing_of(values) for name, values in times.items()}


def timed(run: Callable[[], object], device: torch.device) -> float:
    """Milliseconds of one call, with the device's work before it left out and its own waited for."""
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return (time.perf_counter() - start) * 1e3


def timing_of(milliseconds: list[float]) -> Timing:
    if len(milliseconds) == 1:
        return Timing(*milliseconds * 3)
    lower, median, upper = statistics.quantiles(milliseconds, n=4, method="inclusive")
    return Timing(median, lower, upper)


def peak_extra_bytes(run: Callable[[], object], device: torch.device, warm: bool = False) -> int:
    """Peak of what torch's allocator holds during `run` beyond what it held before, the compiled kernels' scratch and
    the result included. `warm`: it has run before."""
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


def environment(device: torch.device) -> dict[str, object]:
    """What a figure depends on."""
    facts: dict[str, object] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "device_kind": device.type,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": _commit(),
        "command": "python -m " + " ".join([_module(), *sys.argv[1:]]),
    }
    if device.type == "cuda":
        facts |= {"cuda": torch.version.cuda, "driver": _driver()}
    return facts


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return _output(command).partition("\n")[0] or "unknown"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "CPU")
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    widest = next((name for flag, name in (("avx512f", "AVX-512"), ("avx2", "AVX2")) if flag in flags), "")
    return f"{model} {widest}".strip()


def _module() -> str:
    main = sys.modules["__main__"]
    return getattr(main.__spec__, "name", "?") if getattr(main, "__spec__", None) else "?"


def _commit() -> str:
    """With -dirty where tracked code differs from it; what the benchmarks themselves write does not count. MSA_COMMIT
    names it where code was copied to a machine without its history."""
    if named := os.environ.get("MSA_COMMIT"):
        return named
    git = ["git", "-C", str(ROOT)]
    head = _output([*git, "rev-parse", "--short=12", "HEAD"])
    written = [":!benchmarks/results", ":!README.md", ":!docs/*.png"]
    changed = _output([*git, "status", "--porcelain", "--untracked-files=no", "--", ".", *written])
    return f"{head}{'-dirty' if changed else ''}" if head else "unknown"


def _output(command: list[str]) -> str:
    """What a command prints; nothing where it fails or does not exist."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def roofs(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Measured ceilings: TFLOP/s of a large matrix product, GB/s of a large copy (bytes read plus written)."""
    size = 8192 if device.type == "cuda" else 1536
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    source = torch.randn(2**28 if device.type == "cuda" else 2**24, device=device)
    target = torch.empty_like(source)
    timing = interleave({"matmul": lambda: a @ b, "copy": lambda: target.copy_(source)}, device, rounds=9)
    # Of a ceiling the better runs tell more than the middle ones.
    return {
        "tflops": significant(2 * size**3 / timing["matmul"].lower / 1e9),
        "gbytes_per_s": significant(2 * source.numel() * 4 / timing["copy"].lower / 1e6),
    }


def significant(value: float) -> float:
    """As result files hold it: four significant digits."""
    return float(f"{value:.4g}")


def save(name: str, device: torch.device, content: dict) -> Path:
    """Writes results/NAME-DEVICEKIND.json; the environment that content brings goes before today's."""
    RESULTS.mkdir(exist_ok=True)
    kind = "cpu" if device.type == "cpu" else torch.cuda.get_device_name(device).lower().replace(" ", "-")
    path = RESULTS / f"{name}-{kind}.json"
    path.write_text(json.dumps({"environment": environment(device)} | content, indent=1) + "\n")
    return path
