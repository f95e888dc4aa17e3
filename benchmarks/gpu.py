"""``make gpu``: everything that needs a GPU, in one command without network or virtual environment.

Steps, each with its own time limit: build with CUDA, the test suite on the GPU, compute-sanitizer (memcheck, racecheck)
on a small set, and the benchmarks that the targets need, in bfloat16, whose competitors compile while the tests run. A
step that fails does not stop the later ones. Logs and result files also go to $OUT where that is set; a short table and
the targets come last. The rest are parts of their own: ``--part targets``; each part is done within nine minutes.
``--only build,tests`` runs some steps. $MSA_COMMIT names the commit where git cannot.
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
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from . import report, targets
from .harness import RESULTS, ROOT
from .names import unknown

PYTHON = sys.executable
SANITIZED = ["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests/ops/test_sanitizer_set.py"]
SANITIZER = ["compute-sanitizer", "--error-exitcode=9", "--target-processes=all"]
#: Of a step's log, what is shown at its end.
LINES = 20
#: Test processes, where pytest-xdist is there to start them.
PROCESSES = min(12, os.cpu_count() or 1)
IN_PARALLEL = ["-n", str(PROCESSES)] if importlib.util.find_spec("xdist") else []

OPERATORS = [PYTHON, "-m", "benchmarks.operators", "--device=cuda", "--rounds=15"]
#: The generator's 16 partial convolutions, dealt out to processes that compile at the same time.
LAYERS = [
    tuple(f"{part}_{number}" for number in some)
    for part in ("Encode", "Decode")
    for some in ((1, 2, 3, 4), (5, 6, 7, 8))
]
#: The attention stage that the targets are for, one map and the paper's batch, with time for others to compile.
STAGE_BATCH = ("--case=64x64 30%, batch 6", "--compiled")
STAGE = ("--case=64x64 30%", *STAGE_BATCH)
#: The whole generator on one image.
INFERENCE = ("--case=whole", "--batch=1", "--compiled")
#: The two systems whose training steps the targets compare.
STEP = ("--system=pconv", "--system=ours", "--no-compile", "--no-loader")


def _suites(dtype: str, suites: Iterable[str], *options: str) -> list[str]:
    return [*OPERATORS, f"--dtype={dtype}", *(f"--suite={suite}" for suite in suites), "--batch=6", *options]


def _operators(name: str, dtype: str, *suites: str, options: tuple[str, ...] = ()) -> list[str]:
    return [*_suites(dtype, suites, *options), f"--name={name}"]


def _compile(text: str, dtype: str, suite: str, *options: str) -> list[str]:
    """Fills the compiler's caches with the contestants whose names contain the text."""
    return _suites(dtype, [suite], *options, f"--compile-only={text}")


#: name -> (seconds, command)
STEPS: dict[str, tuple[int, list[str]]] = {
    "build": (120, [PYTHON, "setup.py", "build_ext", "--inplace"]),
    "tests": (120, [PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", *IN_PARALLEL, "tests"]),
    "memcheck": (90, [*SANITIZER, "--tool=memcheck", PYTHON, *SANITIZED]),
    "racecheck": (90, [*SANITIZER, "--tool=racecheck", PYTHON, *SANITIZED]),
}
CHECKS = "tests", "memcheck", "racecheck"
TARGETS: dict[str, tuple[str, ...]] = {}
COMPILE: dict[str, tuple[str, ...]] = {}
for _dtype in ("bfloat16", "tf32", "float32"):
    _compiling = {
        f"compile-layers-{number}-{_dtype}": _compile(
            "compiled", _dtype, "layers", "--size=256", "--compiled", *(f"--layer={name}" for name in names)
        )
        for number, names in enumerate(LAYERS, 1)
    } | {
        f"compile-attention-{_dtype}": _compile("compiled", _dtype, "attention", *STAGE_BATCH),
        f"compile-flex-{_dtype}": _compile("Flex", _dtype, "attention", *STAGE_BATCH),
        f"compile-inference-{_dtype}": _compile("compiled", _dtype, "generator", *INFERENCE),
    }
    _suites_of_targets = "layers", "mask-ratios", "price-of-shift", "memory"
    _measuring = {
        f"operators-{_dtype}": (
            120,
            _operators("operators", _dtype, *_suites_of_targets, options=("--size=256", "--compiled")),
        ),
        f"stage-{_dtype}": (75, _operators("stage", _dtype, "attention", options=STAGE)),
        f"inference-{_dtype}": (55, _operators("inference", _dtype, "generator", options=INFERENCE)),
        f"step-{_dtype}": (50, [PYTHON, "-m", "benchmarks.table5", f"--precision={_dtype}", *STEP]),
    }
    COMPILE[_dtype], TARGETS[_dtype] = tuple(_compiling), tuple(_measuring)
    STEPS |= {name: (120, command) for name, command in _compiling.items()} | _measuring
    STEPS |= {
        f"networks-{_dtype}": (120, _operators("networks", _dtype, "generator", "training", "upcat-rule")),
        f"attention-{_dtype}": (190, _operators("attention", _dtype, "attention")),
        f"large-{_dtype}": (190, _operators("large", _dtype, "layers", options=("--size", "512", "1024"))),
        f"scaling-{_dtype}": (190, _operators("scaling", _dtype, "scaling")),
    }
STEPS["table5"] = (390, [PYTHON, "-m", "benchmarks.table5"])
#: Steps of one command, within nine minutes in all. Those in a tuple of their own run at the same time: none is timed.
PARTS: dict[str, tuple[str | tuple[str, ...], ...]] = {
    "usual": ("build", (*CHECKS, *COMPILE["bfloat16"]), *TARGETS["bfloat16"]),
    "checks": ("build", *CHECKS),
    "targets": ("build", COMPILE["bfloat16"], *TARGETS["bfloat16"]),
    "targets-tf32": ("build", COMPILE["tf32"], *TARGETS["tf32"]),
    "targets-float32": ("build", COMPILE["float32"], *TARGETS["float32"]),
    **{
        part: ("build", f"{part}-bfloat16", f"{part}-float32") for part in ("networks", "attention", "large", "scaling")
    },
    "table5": ("build", "table5"),
}


def steps_of(part: str) -> list[tuple[str, ...]]:
    """Its steps in order, those together that run at the same time."""
    return [step if isinstance(step, tuple) else (step,) for step in PARTS[part]]


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
    choice.add_argument("--part", default="usual", help=f"{', '.join(PARTS)} (default: usual)")
    choice.add_argument("--only", help="steps, separated by commas")
    arguments = parser.parse_args(argv)
    if arguments.part not in PARTS:
        parser.error(unknown("part", arguments.part, PARTS))
    wanted = [(name,) for name in arguments.only.split(",")] if arguments.only else steps_of(arguments.part)
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
    print(f"\n{targets.terminal(report.results(), targets.CUDA)}")
    return int(any(outcome != "ok" for outcome, _ in outcomes.values()))


def copy_results(out: Path) -> None:
    """Those of GPUs, to $OUT where it is set."""
    for result in RESULTS.glob("*.json"):
        if os.environ.get("OUT") and "cpu" not in result.stem:
            shutil.copy(result, out)


if __name__ == "__main__":
    sys.exit(main())
