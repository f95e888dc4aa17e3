"""``make gpu``: everything that needs a GPU, in one command without network or virtual environment.

It runs parts of at most four minutes, the most valuable first: the tests and compute-sanitizer on the GPU, while
alternatives compile; then the benchmarks that the targets need, in bfloat16. Other parts are asked for by name:
``--part attention``; ``--only build,tests`` runs some steps. Every step has its own time limit, and one that fails does
not stop the later ones. Logs and result files also go to $OUT where that is set; a short table and the targets come
last. $MSA_COMMIT names the commit where git cannot.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from . import results, targets
from .measure import ROOT
from .options import unknown

PYTHON = sys.executable
#: Test processes, where pytest-xdist is there to start them.
PROCESSES = ["-n", str(min(12, os.cpu_count() or 1))] if importlib.util.find_spec("xdist") else []
PYTEST = [PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
SANITIZER = ["compute-sanitizer", "--error-exitcode=9", "--target-processes=all"]
#: How many lines of a step's log are shown at its end.
LINES = 20
#: Seconds of a part, and of its first step, the build.
PART_LIMIT, BUILD_LIMIT = 240, 100
#: The generator's 16 partial convolutions, dealt out to processes that compile at the same time.
LAYERS = [
    [f"--layer={part}_{number}" for number in some]
    for part in ("Encode", "Decode")
    for some in ((1, 2, 3, 4), (5, 6, 7, 8))
]
#: The attention stage that the targets are for, with one map and with the paper's batch.
STAGE_BATCH = ["--suite=attention", "--case=64x64 30%, batch 6", "--compiled"]
STAGE = [*STAGE_BATCH, "--case=64x64 30%"]
INFERENCE = ["--suite=generator", "--case=whole", "--batch=1", "--compiled"]
SUITES = ["--suite=layers", "--suite=mask-ratios", "--suite=shift-propagation", "--suite=memory", "--size=256"]
NETWORKS = ["--suite=generator", "--suite=training", "--suite=upcat-rule"]


def _operators(dtype: str, *options: str) -> list[str]:
    return [
        PYTHON,
        "-m",
        "benchmarks.operators",
        "--device=cuda",
        "--rounds=15",
        "--batch=6",
        f"--dtype={dtype}",
        *options,
    ]


def _compile_steps(dtype: str) -> dict[str, list[str]]:
    """Steps that fill the compiler's caches with the alternatives whose names contain a text."""
    layers = ["--suite=layers", "--size=256", "--compiled", "--compile-only=compiled"]
    return {
        f"compile-layers-{number}-{dtype}": _operators(dtype, *layers, *some) for number, some in enumerate(LAYERS, 1)
    } | {
        f"compile-attention-{dtype}": _operators(dtype, *STAGE_BATCH, "--compile-only=compiled"),
        f"compile-flex-{dtype}": _operators(dtype, *STAGE_BATCH, "--compile-only=Flex"),
        f"compile-inference-{dtype}": _operators(dtype, *INFERENCE, "--compile-only=compiled"),
    }


def _measuring_steps(dtype: str) -> dict[str, tuple[int, list[str]]]:
    table5 = [PYTHON, "-m", "benchmarks.table5", f"--precision={dtype}"]
    systems = ["--system=pconv", "--system=ours", "--no-compile", "--no-loader"]
    return {
        f"operators-{dtype}": (140, _operators(dtype, *SUITES, "--compiled", "--name=operators")),
        f"stage-{dtype}": (80, _operators(dtype, *STAGE, "--name=stage")),
        f"inference-{dtype}": (60, _operators(dtype, *INFERENCE, "--name=inference")),
        f"step-{dtype}": (50, [*table5, *systems]),
        f"networks-{dtype}": (90, _operators(dtype, *NETWORKS, "--name=networks")),
        f"attention-{dtype}": (140, _operators(dtype, "--suite=attention", "--name=attention")),
        f"large-{dtype}": (140, _operators(dtype, "--suite=layers", "--size", "512", "1024", "--name=large")),
        f"scaling-{dtype}": (140, _operators(dtype, "--suite=scaling", "--name=scaling")),
        f"table5-{dtype}": (140, [*table5, "--no-compile", "--no-loader"]),
    }


CHECKS = ("tests", "memcheck", "racecheck")
SANITIZED = ["-x", "tests/ops/test_sanitizer_set.py"]
#: name -> (seconds, command)
STEPS: dict[str, tuple[int, list[str]]] = {
    "build": (BUILD_LIMIT, [PYTHON, "setup.py", "build_ext", "--inplace"]),
    "tests": (140, [*PYTEST, "-m", "gpu", *PROCESSES, "tests"]),
    "memcheck": (140, [*SANITIZER, "--tool=memcheck", *PYTEST, *SANITIZED]),
    "racecheck": (140, [*SANITIZER, "--tool=racecheck", *PYTEST, *SANITIZED]),
}
#: name -> steps in order; those in a tuple of their own run at the same time, as none of them is timed.
PARTS: dict[str, tuple[str | tuple[str, ...], ...]] = {}
for _dtype in ("bfloat16", "tf32", "float32"):
    _compiling = _compile_steps(_dtype)
    STEPS |= {name: (140, command) for name, command in _compiling.items()} | _measuring_steps(_dtype)
    _suffix = "" if _dtype == "bfloat16" else f"-{_dtype}"
    PARTS |= {
        ("checks" if _dtype == "bfloat16" else f"compile{_suffix}"): (
            "build",
            (*(CHECKS if _dtype == "bfloat16" else ()), *_compiling),
        ),
        f"targets{_suffix}": ("build", f"operators-{_dtype}"),
        f"stage{_suffix}": ("build", f"stage-{_dtype}", f"inference-{_dtype}"),
        f"training{_suffix}": ("build", f"step-{_dtype}", f"networks-{_dtype}"),
        **{f"{name}{_suffix}": ("build", f"{name}-{_dtype}") for name in ("attention", "large", "scaling", "table5")},
    }
#: What runs where no part is named.
USUAL = ("checks", "targets", "stage", "training")


def steps_of(parts: Sequence[str]) -> list[tuple[str, ...]]:
    """Returns the steps of the parts in order, those together that run at the same time; the build only once."""
    steps = [step if isinstance(step, tuple) else (step,) for part in parts for step in PARTS[part]]
    return list(dict.fromkeys(steps))


def run_step(name: str, limit: int, command: list[str], logs: Path) -> tuple[str, float]:
    """Runs one step with its output in logs/NAME.log; returns its outcome in words and the seconds it took."""
    environment = os.environ | {
        "MSA_OPS_FORCE_CUDA": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": str(ROOT),
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    }
    start = time.monotonic()
    log = logs / f"{name}.log"
    try:
        with log.open("w") as output:
            code = subprocess.run(
                command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, timeout=limit
            ).returncode
        outcome = "ok" if code == 0 else f"failed (exit {code})"
    except subprocess.TimeoutExpired:
        outcome = f"out of time ({limit} s)"
    except FileNotFoundError:
        outcome = f"not available: no {command[0]}"
    lines = [f"--- {name}: {outcome}", *log.read_text(errors="replace").splitlines()[-LINES:]]
    print("\n".join(lines), flush=True)  # in one piece, since others may be writing
    return outcome, time.monotonic() - start


def run_together(names: tuple[str, ...], logs: Path) -> dict[str, tuple[str, float]]:
    """Outcomes and seconds of steps that run at the same time."""
    with ThreadPoolExecutor(len(names)) as pool:
        return dict(zip(names, pool.map(lambda name: run_step(name, *STEPS[name], logs), names), strict=True))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.split("\n\n")[0])
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--part", help=f"{', '.join(PARTS)} (default: {', '.join(USUAL)})")
    choice.add_argument("--only", help="steps, separated by commas")
    arguments = parser.parse_args(argv)
    if arguments.part and arguments.part not in PARTS:
        parser.error(unknown("part", arguments.part, PARTS))
    parts = [arguments.part] if arguments.part else USUAL
    wanted = [(name,) for name in arguments.only.split(",")] if arguments.only else steps_of(parts)
    for name in itertools.chain(*wanted):
        if name not in STEPS:
            parser.error(unknown("step", name, STEPS))
    import torch

    if not torch.cuda.is_available():
        sys.exit("make gpu: torch sees no CUDA device; nothing was run")
    out = Path(os.environ.get("OUT") or ROOT / "out")
    out.mkdir(parents=True, exist_ok=True)
    outcomes: dict[str, tuple[str, float]] = {}
    for together in wanted:
        outcomes |= run_together(together, out)
        copy_results(out)  # after every step, so that they are there where a later one is cut short
    print(f"\n{torch.cuda.get_device_name()}, torch {torch.__version__}")
    for name, (outcome, seconds) in outcomes.items():
        print(f"{name:<28} {seconds:5.0f} s  {outcome}")
    print(f"\n{targets.terminal(results.committed(), targets.CUDA)}")
    return int(any(outcome != "ok" for outcome, _ in outcomes.values()))


def copy_results(out: Path) -> None:
    """Those of GPUs, to $OUT where it is set."""
    for result in results.RESULTS.glob("*.json"):
        if os.environ.get("OUT") and "cpu" not in result.stem:
            shutil.copy(result, out)


if __name__ == "__main__":
    sys.exit(main())
