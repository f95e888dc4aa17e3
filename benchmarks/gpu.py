"""``make gpu``: everything that needs a GPU, in one command without network or virtual environment.

It runs parts of at most four minutes, the most valuable first: the tests and compute-sanitizer on the GPU, while
alternatives compile; then the benchmarks that the targets need, in bfloat16. Other parts are asked for by name:
``--part compile,targets``; ``--only build,tests`` runs some steps. Every step has a time limit, and one that fails
does not stop the later ones. Logs and result files also go to $OUT where that is set; a short table and the targets
come last. $MSA_COMMIT names the commit where git cannot.
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
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from . import results, targets
from .measure import ROOT
from .options import unknown

#: Test processes, where pytest-xdist is there to start them.
PROCESSES = f"-n {min(12, os.cpu_count() or 1)}" if importlib.util.find_spec("xdist") else ""
#: Seconds of a part, of its first step, the build, and of the longest other step.
PART_LIMIT, BUILD_LIMIT, LIMIT = 240, 100, 140
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
#: Steps that measure, with their limits in seconds.
MEASURING = {
    "operators": (LIMIT, f"{OPERATORS} {SUITES} --name=operators"),
    "stage": (80, f"{OPERATORS} {SIX_MAPS} {ONE_MAP} --name=stage"),
    "inference": (60, f"{OPERATORS} {INFERENCE} --name=inference"),
    "step": (50, f"{TABLE5} --system=pconv --system=ours"),
    "networks": (90, f"{OPERATORS} --suite=generator --suite=training --suite=upcat-rule --name=networks"),
    "attention": (LIMIT, f"{OPERATORS} --suite=attention --name=attention"),
    "large": (LIMIT, f"{OPERATORS} --suite=layers --size 512 1024 --name=large"),
    "scaling": (LIMIT, f"{OPERATORS} --suite=scaling --name=scaling"),
    "table5": (LIMIT, TABLE5),
}
#: name -> (seconds, command). Names end in the precision where it is not bfloat16.
STEPS: dict[str, tuple[int, list[str]]] = {}
#: name -> steps after the build, in order. Those in a tuple of their own run at the same time: none of them is timed.
PARTS: dict[str, tuple[str | tuple[str, ...], ...]] = {}
#: The parts that run where none is named.
USUAL = ("checks", "targets", "stage", "training")


def _add(name: str, limit: int, command: str) -> None:
    STEPS[name] = limit, [sys.executable if word == "PYTHON" else word for word in shlex.split(command)]


_add("build", BUILD_LIMIT, "PYTHON setup.py build_ext --inplace")
_add("tests", LIMIT, f"{PYTEST} -m gpu {PROCESSES} tests")
for _tool in ("memcheck", "racecheck"):
    _add(_tool, LIMIT, f"{SANITIZER} --tool={_tool} {SANITIZED}")
for _dtype in ("bfloat16", "tf32", "float32"):
    _end = "" if _dtype == "bfloat16" else f"-{_dtype}"
    for _name, _command in COMPILING.items():
        _add(_name + _end, LIMIT, _command.replace("DTYPE", _dtype))
    for _name, (_limit, _command) in MEASURING.items():
        _add(_name + _end, _limit, _command.replace("DTYPE", _dtype))
    _compiling = tuple(name + _end for name in COMPILING)
    PARTS |= {
        **({} if _end else {"checks": (("tests", "memcheck", "racecheck", *_compiling),)}),
        f"compile{_end}": (_compiling,),
        f"targets{_end}": (f"operators{_end}",),
        f"stage{_end}": (f"stage{_end}", f"inference{_end}"),
        f"training{_end}": (f"step{_end}", f"networks{_end}"),
        **{f"{name}{_end}": (f"{name}{_end}",) for name in ("attention", "large", "scaling", "table5")},
    }


def steps_of(parts: Sequence[str]) -> list[tuple[str, ...]]:
    """Returns the build and the parts' steps in order, those together that run at the same time."""
    return [("build",), *(step if isinstance(step, tuple) else (step,) for part in parts for step in PARTS[part])]


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
    """Runs steps at the same time; returns their outcomes and seconds."""
    with ThreadPoolExecutor(len(names)) as pool:
        return dict(zip(names, pool.map(lambda name: run_step(name, *STEPS[name], logs), names), strict=True))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.split("\n\n")[0])
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--part", help=f"separated by commas (default: {','.join(USUAL)}): {', '.join(PARTS)}")
    choice.add_argument("--only", help="steps, separated by commas")
    arguments = parser.parse_args(argv)
    parts = arguments.part.split(",") if arguments.part else USUAL
    for name in parts:
        if name not in PARTS:
            parser.error(unknown("part", name, PARTS))
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
