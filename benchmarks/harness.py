"""One way of measuring: competitors interleaved in one process, medians and quartiles, ratios first.

Bare times on a shared machine say little; the ratio of two medians taken in the same minutes says more. So all
contestants of a case take turns, and a case's figures are its contestants' medians and their ratios.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import platform
import re
import signal
import statistics
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

RESULTS = Path(__file__).parent / "results"


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
) -> dict[str, Timing]:
    """Runs every contestant once per round, in turn, after `warmup` rounds that do not count. After `limit` seconds no
    round begins, except that three count in any case."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    begin = time.monotonic()
    for round_ in range(warmup + rounds):
        if round_ >= warmup + 3 and time.monotonic() - begin > limit:
            break
        for name, run in contestants.items():
            synchronize(device)
            start = time.perf_counter()
            run()
            synchronize(device)
            if round_ >= warmup:
                times[name].append((time.perf_counter() - start) * 1e3)
    return {name: Timing(*_quartiles(values)) for name, values in times.items()}


def _quartiles(values: list[float]) -> tuple[float, float, float]:
    if len(values) == 1:
        return values[0], values[0], values[0]
    lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
    return median, lower, upper


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


def agrees(result: Tensor, plain: Tensor, exact: Tensor, factor: float = 2.0) -> bool:
    """The gate before a number is reported: the error against the float64 result is at most `factor` times that of
    plain PyTorch in the same dtype, plus a few roundings of the largest value."""
    absolute = 4 * torch.finfo(result.dtype).eps * exact.abs().max().item()
    error = (result.double() - exact).abs().max().item()
    return error <= factor * (plain.double() - exact).abs().max().item() + absolute


#: The refusal of a contestant that computes something else.
DIFFERS = "differs from the float64 result"


def refusal(run: Callable[[], Tensor], plain: Tensor, exact: Tensor, factor: float, limit: float) -> str | None:
    """Why a contestant's numbers are not reported, in a line: its first call fails, takes more than `limit` seconds, or
    disagrees with `exact`. None where they may be. The call also warms it up."""
    start = time.monotonic()
    try:
        with _time_limit(limit):
            result = run()
    except Exception as error:
        return _reason(error) if time.monotonic() - start < limit else f"not ready after {limit:.0f} s"
    return None if agrees(result.detach(), plain.detach(), exact.detach(), factor) else DIFFERS


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
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


def _reason(error: BaseException) -> str:
    """The first sentence of what it is about, without the compiler's wrapping; the kind of error if it has no words."""
    while inner := getattr(error, "inner_exception", None) or error.__cause__:
        error = inner
    words = re.sub(r"^raised exception \w+\(['\"]", "", str(error).strip()).splitlines() or [type(error).__name__]
    return textwrap.shorten(words[0].split(". ")[0].rstrip(".:"), 100, placeholder=" …")


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
        facts["cuda"] = torch.version.cuda
    return facts


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
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def roofs(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Measured ceilings: TFLOP/s of a large matrix product, GB/s of a large copy (bytes read plus written)."""
    size = 8192 if device.type == "cuda" else 1536
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    source = torch.randn(2**28 if device.type == "cuda" else 2**24, device=device)
    target = torch.empty_like(source)
    timing = interleave({"matmul": lambda: a @ b, "copy": lambda: target.copy_(source)}, device, rounds=5)
    return {
        "tflops": 2 * size**3 / timing["matmul"].median / 1e9,
        "gbytes_per_s": 2 * source.numel() * 4 / timing["copy"].median / 1e6,
    }


def save(name: str, device: torch.device, content: dict) -> Path:
    """Writes results/NAME-DEVICEKIND.json."""
    RESULTS.mkdir(exist_ok=True)
    kind = "cpu" if device.type == "cpu" else torch.cuda.get_device_name(device).lower().replace(" ", "-")
    path = RESULTS / f"{name}-{kind}.json"
    path.write_text(json.dumps({"environment": environment(device)} | content, indent=1) + "\n")
    return path
