"""``make gpu``: everything that needs a GPU, in one command without network or virtual environment.

Steps, each with its own time limit: build with CUDA, the test suite on the GPU, compute-sanitizer (memcheck, racecheck)
on a small set, the operator benchmarks in float32 and bfloat16. A step that fails does not stop the later ones. Logs
and result files also go to $OUT where that is set; the table comes last. What takes longer, mostly because competitors
compile, are parts of their own: ``--part attention``; each part is done within nine minutes. ``--only build,tests``
runs some steps.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from .names import unknown

ROOT = Path(__file__).parent.parent
PYTHON = sys.executable
SANITIZED = ["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests/ops/test_sanitizer_set.py"]
SANITIZER = ["compute-sanitizer", "--error-exitcode=9", "--target-processes=all"]

OPERATORS = [PYTHON, "-m", "benchmarks.operators", "--device=cuda", "--batch=6", "--rounds=15"]
SHORT = ("layers", "generator", "training", "upcat-rule", "mask-ratios", "price-of-shift")


def _operators(name: str, dtype: str, *suites: str, options: tuple[str, ...] = ()) -> list[str]:
    return [*OPERATORS, f"--name={name}", f"--dtype={dtype}", *(f"--suite={suite}" for suite in suites), *options]


#: name -> (seconds, command)
STEPS: dict[str, tuple[int, list[str]]] = {
    "build": (150, [PYTHON, "setup.py", "build_ext", "--inplace"]),
    "tests": (150, [PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", "tests"]),
    "memcheck": (60, [*SANITIZER, "--tool=memcheck", PYTHON, *SANITIZED]),
    "racecheck": (60, [*SANITIZER, "--tool=racecheck", PYTHON, *SANITIZED]),
    "table5": (390, [PYTHON, "-m", "benchmarks.table5"]),
}
for _dtype in ("float32", "tf32", "bfloat16"):
    STEPS |= {
        _dtype: (60, _operators("operators", _dtype, *SHORT, options=("--size=256",))),
        f"attention-{_dtype}": (190, _operators("attention", _dtype, "attention")),
        f"large-{_dtype}": (190, _operators("large", _dtype, "layers", options=("--size", "512", "1024"))),
        f"scaling-{_dtype}": (190, _operators("scaling", _dtype, "scaling")),
        f"compiled-{_dtype}": (190, _operators("compiled", _dtype, "layers", options=("--size=256", "--compiled"))),
        f"inference-{_dtype}": (190, _operators("inference", _dtype, "generator", options=("--batch=1", "--compiled"))),
    }
#: Steps of one command, within nine minutes in all.
PARTS = {
    "usual": ("build", "tests", "memcheck", "racecheck", "float32", "bfloat16"),
    **{
        part: ("build", f"{part}-float32", f"{part}-bfloat16")
        for part in ("attention", "large", "scaling", "compiled", "inference")
    },
    "tf32": ("build", "tf32", "attention-tf32"),
    "table5": ("build", "table5"),
}


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
    print(f"--- {name}: {outcome}", flush=True)
    print("\n".join(log.read_text(errors="replace").splitlines()[-60:]), flush=True)
    return outcome, time.monotonic() - start


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.split("\n\n")[0])
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--part", default="usual", help=f"{', '.join(PARTS)} (default: usual)")
    choice.add_argument("--only", help="steps, separated by commas")
    arguments = parser.parse_args(argv)
    if arguments.part not in PARTS:
        parser.error(unknown("part", arguments.part, PARTS))
    wanted = arguments.only.split(",") if arguments.only else PARTS[arguments.part]
    for name in wanted:
        if name not in STEPS:
            parser.error(unknown("step", name, STEPS))
    import torch

    if not torch.cuda.is_available():
        sys.exit("make gpu: torch sees no CUDA device; nothing was run")
    out = Path(os.environ.get("OUT") or ROOT / "out")
    out.mkdir(parents=True, exist_ok=True)
    outcomes = {name: run_step(name, *STEPS[name], out) for name in STEPS if name in wanted}
    for result in (ROOT / "benchmarks" / "results").glob("*.json"):
        if os.environ.get("OUT") and "cpu" not in result.stem:
            shutil.copy(result, out)
    print(f"\n{torch.cuda.get_device_name()}, torch {torch.__version__}")
    for name, (outcome, seconds) in outcomes.items():
        print(f"{name:<18} {seconds:5.0f} s  {outcome}")
    return int(any(outcome != "ok" for outcome, _ in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
