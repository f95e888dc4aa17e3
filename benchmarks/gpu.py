"""``make gpu``: everything that needs a GPU, in one command without network or virtual environment.

Steps, each with its own time limit, all within nine minutes: build with CUDA, the test suite on the GPU,
compute-sanitizer (memcheck, racecheck) on a small set, the operator benchmarks in float32 and bfloat16. A step that
fails does not stop the later ones. Logs and result files also go to $OUT where that is set; the table comes last.
``--only build,tests`` runs some of the steps; ``--only build,attention-float32,attention-bfloat16`` is a part of its
own, since the attention suite's competitors take minutes to compile.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
PYTHON = sys.executable
SANITIZED = ["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests/ops/test_sanitizer_set.py"]
SANITIZER = ["compute-sanitizer", "--error-exitcode=9", "--target-processes=all"]

OPERATORS = [PYTHON, "-m", "benchmarks.operators", "--device=cuda", "--batch=6", "--rounds=15"]
LAYERS = [*OPERATORS, "--suite=layers", "--suite=generator", "--suite=training", "--suite=upcat-rule"]
ATTENTION = [*OPERATORS, "--suite=attention", "--name=attention"]

#: name -> (seconds, command)
STEPS: dict[str, tuple[int, list[str]]] = {
    "build": (150, [PYTHON, "setup.py", "build_ext", "--inplace"]),
    "tests": (150, [PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", "tests"]),
    "memcheck": (60, [*SANITIZER, "--tool=memcheck", PYTHON, *SANITIZED]),
    "racecheck": (60, [*SANITIZER, "--tool=racecheck", PYTHON, *SANITIZED]),
    "float32": (60, LAYERS),
    "bfloat16": (60, [*LAYERS, "--dtype=bfloat16"]),
    "attention-float32": (190, ATTENTION),
    "attention-bfloat16": (190, [*ATTENTION, "--dtype=bfloat16"]),
}
#: Run only by name.
APART = ("attention-float32", "attention-bfloat16")


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
    usual = ",".join(name for name in STEPS if name not in APART)
    parser.add_argument("--only", default=usual, help="steps, separated by commas")
    wanted = parser.parse_args(argv).only.split(",")
    if unknown := [name for name in wanted if name not in STEPS]:
        parser.error(f"unknown step {unknown[0]!r}; known are {', '.join(STEPS)}")
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
