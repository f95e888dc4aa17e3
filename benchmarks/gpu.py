"""``make gpu``: everything that needs a GPU, in one command without network or virtual environment.

It runs parts of at most four minutes, the most valuable first: the tests and compute-sanitizer on the GPU, while
alternatives compile; then the benchmarks that the targets need, in bfloat16. Other parts are asked for by name:
``--part compile,targets``. Every step has a time limit, and one that fails does not stop the later ones. Logs and
result files also go to $OUT where that is set; a short table and the targets come last. $MSA_COMMIT names the commit
where git cannot.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import os
import shlex
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from . import results, targets
from .measure import ROOT
from .options import unknown

#: Test processes, where pytest-xdist is there to start them.
PROCESSES = f"-n {min(12, os.cpu_count() or 1)}" if importlib.util.find_spec("xdist") else ""
#: Seconds of a part with the build, and of a step: usually, and of those that need less.
PART_LIMIT, LIMIT = 240, 140
LIMITS = {"build": 100, "stage": 80, "inference": 60, "step": 50, "networks": 90}
#: How many lines of a step's log are shown at its end.
LINES = 20
PYTEST = "PYTHON -m pytest -q -p no:cacheprovider"
SANITIZER = "compute-sanitizer --error-exitcode=9 --target-processes=all"
SANITIZED = f"{PYTEST} -x tests/ops/test_sanitizer_set.py"
OPERATORS = "PYTHON -m benchmarks.operators --device=cuda --rounds=15 --batch=6 --dtype=DTYPE"
TABLE5 = "PYTHON -m benchmarks.table5 --precision=DTYPE --no-compile --no-loader"
#: The attention stage that the targets are for, with the paper's batch, and with one map.
SIX_MAPS, ONE_MAP = "--suite=attention --case='64x64 30%, batch 6' --compiled", "--case='64x64 30%'"
INFERENCE = "--suite=generator --case=whole --batch=1 --compiled"
SUITES = "--suite=layers --suite=mask-ratios --suite=shift-propagation --suite=memory --size=256 --compiled"
#: Steps that fill the compiler's caches; the generator's layers are dealt out to processes that run at the same time.
COMPILING = {
    f"compile-layers-{part}-{numbers[0]}": f"{OPERATORS} --suite=layers --size=256 --compiled --compile-only=compiled "
    + " ".join(f"--layer={part}_{number}" for number in numbers)
    for part in ("Encode", "Decode")
    for numbers in ((1, 2, 3, 4), (5, 6, 7, 8))
} | {
    "compile-attention": f"{OPERATORS} {SIX_MAPS} --compile-only=compiled",
    "compile-flex": f"{OPERATORS} {SIX_MAPS} --compile-only=Flex",
    "compile-inference": f"{OPERATORS} {INFERENCE} --compile-only=compiled",
}
COMMANDS = {
    "build": "PYTHON setup.py build_ext --inplace",
    "tests": f"{PYTEST} -m gpu {PROCESSES} tests",
    "memcheck": f"{SANITIZER} --tool=memcheck {SANITIZED}",
    "racecheck": f"{SANITIZER} --tool=racecheck {SANITIZED}",
    **COMPILING,
    "operators": f"{OPERATORS} {SUITES} --name=operators",
    "stage": f"{OPERATORS} {SIX_MAPS} {ONE_MAP} --name=stage",
    "inference": f"{OPERATORS} {INFERENCE} --name=inference",
    "step": f"{TABLE5} --system=pconv --system=ours",
    "networks": f"{OPERATORS} --suite=generator --suite=training --suite=upcat-rule --name=networks",
    "attention": f"{OPERATORS} --suite=attention --name=attention",
    "large": f"{OPERATORS} --suite=layers --size 512 1024 --name=large",
    "scaling": f"{OPERATORS} --suite=scaling --name=scaling",
    "table5": TABLE5,
}
#: name -> steps after the build, in order; those together run at the same time, where none of them is timed.
PARTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "checks": (("tests", "memcheck", "racecheck", *COMPILING),),
    "compile": (tuple(COMPILING),),
    "targets": (("operators",),),
    "stage": (("stage",), ("inference",)),
    "training": (("step",), ("networks",)),
    **{name: ((name,),) for name in ("attention", "large", "scaling", "table5")},
}
PRECISIONS = ("bfloat16", "tf32", "float32")
#: The parts that run where none is named.
USUAL = ("checks", "targets", "stage", "training")
#: name -> seconds that they may take, and command.
Steps = dict[str, tuple[int, list[str]]]


def steps_of(part: str) -> list[Steps]:
    """Returns a part's steps in order, those together that run at the same time. ``targets-tf32`` is the part
    ``targets`` in another precision than the usual.

    Raises:
        ValueError: the name of no part.
    """
    name, _, precision = part.partition("-")
    if name not in PARTS or precision not in ("", *PRECISIONS):
        raise ValueError(unknown("part", part, PARTS))
    end = f"-{precision}" if precision else ""
    return [{step + end: named(step, precision or PRECISIONS[0]) for step in together} for together in PARTS[name]]


def named(step: str, precision: str = "") -> tuple[int, list[str]]:
    words = shlex.split(COMMANDS[step].replace("DTYPE", precision))
    return LIMITS.get(step, LIMIT), [sys.executable if word == "PYTHON" else word for word in words]


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


def run_together(steps: Steps, logs: Path) -> dict[str, tuple[str, float]]:
    """Runs steps at the same time; returns their outcomes and seconds."""
    with ThreadPoolExecutor(len(steps)) as pool:
        found = pool.map(lambda name: run_step(name, *steps[name], logs), steps)
        return dict(zip(steps, found, strict=True))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.split("\n\n")[0])
    text = f"separated by commas (default: {','.join(USUAL)}): {', '.join(PARTS)}; each also as targets-tf32, …-float32"
    parser.add_argument("--part", type=lambda text: text.split(","), default=USUAL, help=text)
    try:
        wanted = [{"build": named("build")}, *itertools.chain(*map(steps_of, parser.parse_args(argv).part))]
    except ValueError as error:
        parser.error(str(error))
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
    of_gpus = [row for row in targets.rows(results.committed()) if row["kind"] == targets.CUDA]
    print(f"\n{targets.section(of_gpus)}")
    return int(any(outcome != "ok" for outcome, _ in outcomes.values()))


def copy_results(out: Path) -> None:
    """Copies those of GPUs to $OUT where it is set."""
    for result in results.RESULTS.glob("*.json"):
        if os.environ.get("OUT") and "cpu" not in result.stem:
            shutil.copy(result, out)


if __name__ == "__main__":
    sys.exit(main())
