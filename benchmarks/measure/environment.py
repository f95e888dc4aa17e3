"""The facts that a figure depends on, the precisions, and the roofs of the device."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from .timing import significant, take_turns, timed

ROOT = Path(__file__).parents[2]
#: What the benchmarks write themselves, which makes no commit dirty.
WRITTEN = "benchmarks/results", "README.md", "docs/measurements"


@dataclasses.dataclass(frozen=True)
class Precision:
    """A dtype of tensors, and whether CUDA multiplies float32 as TF32."""

    dtype: torch.dtype
    tf32: bool = False

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Sets torch's switches for TF32 accordingly; one of them is on by default."""
        switches = (torch.backends.cuda.matmul, torch.backends.cudnn)
        before = [switch.allow_tf32 for switch in switches]
        try:
            for switch in switches:
                switch.allow_tf32 = self.tf32
            yield
        finally:
            for switch, value in zip(switches, before, strict=True):
                switch.allow_tf32 = value


PRECISIONS = {
    "float32": Precision(torch.float32),
    "tf32": Precision(torch.float32, tf32=True),
    "bfloat16": Precision(torch.bfloat16),
    "float16": Precision(torch.float16),
}


def facts(device: torch.device, precision: str = "float32") -> dict[str, object]:
    """Returns command, commit, device, threads, versions and precision of this run."""
    on_cuda = device.type == "cuda"
    main = getattr(sys.modules["__main__"], "__spec__", None)
    module = getattr(main, "name", "?").removesuffix(".__main__")
    found: dict[str, object] = {
        "device": torch.cuda.get_device_name(device) if on_cuda else _processor(),
        "device_kind": device.type,
        "precision": precision,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": _commit(),
        "command": " ".join(["python -m", module, *sys.argv[1:]]),
    }
    if on_cuda:
        driver = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        found |= {"cuda": torch.version.cuda, "driver": driver.partition("\n")[0] or "unknown"}
    return found


def _processor() -> str:
    """Returns the processor's name and its widest vectors."""
    lines = (line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines())
    found = {name.strip(): text.strip() for name, _, text in lines}
    flags = found.get("flags", "").split()
    widest = "AVX-512" if "avx512f" in flags else "AVX2" if "avx2" in flags else ""
    return f"{found.get('model name', 'CPU')} {widest}".strip()


def _commit() -> str:
    """Returns the commit, with -dirty where tracked code differs from it. MSA_COMMIT names it where code was copied
    without its history."""
    if named := os.environ.get("MSA_COMMIT"):
        return named
    git, excluded = ("git", "-C", str(ROOT)), [f":!{path}" for path in WRITTEN]
    head = _output(*git, "rev-parse", "--short=12", "HEAD")
    changed = _output(*git, "status", "--porcelain", "--untracked-files=no", "--", ".", *excluded)
    return f"{head}{'-dirty' if changed else ''}" if head else "unknown"


def _output(*command: str) -> str:
    """Returns what a command prints; nothing where it fails or does not exist."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def roofs(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Measures what no computation exceeds: TFLOP/s of a large matrix product, GB/s of a large copy (bytes read plus
    bytes written)."""
    size = 8192 if device.type == "cuda" else 1536
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    source = torch.randn(2**28 if device.type == "cuda" else 2**24, device=device)
    target = torch.empty_like(source)
    runs = {"product": lambda: a @ b, "copy": lambda: target.copy_(source)}
    clocks = {name: functools.partial(timed, run, device) for name, run in runs.items()}
    take_turns(clocks, rounds=2)  # warms up
    times = take_turns(clocks, rounds=9)
    # For a roof the faster runs tell more than the middle ones.
    return {
        "tflops": significant(2 * size**3 / times["product"].lower / 1e9),
        "gbytes_per_s": significant(2 * source.numel() * 4 / times["copy"].lower / 1e6),
    }
