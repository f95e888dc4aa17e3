"""Makes a fresh environment for one pair of versions and checks a wheel in it."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: What an installation can break: loading, registration, package data, commands. The other tests run from the source.
TESTS = (
    "tests/ops/core/test_backends.py",
    "tests/ops/core/test_import.py",
    "tests/ops/partial_conv/test_definition.py",
    "tests/ops/decoder_conv/test_definition.py",
    "tests/ops/shift_attention/test_definition.py",
    "tests/model/cli",
    "tests/model/nn/test_generator.py",
)
EXTRAS = "train,evaluate"
TOOLS = ("pytest", "pytest-xdist", "hypothesis", "expecttest")
PASSED = "passed"
#: Variables that would let the source tree, or another build, stand in for the wheel.
HIDDEN = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "MSA_OPS_LIBRARY_DIR")


@dataclass
class Outcome:
    """What became of one pair. `error`: the largest float32 error of `numbers`; None where it did not run."""

    python: str
    torch: str
    triton: str = "none"
    result: str = PASSED
    error: float | None = None
    seconds: float = 0.0
    was_installed: bool = False


class StepError(Exception):
    """A step of the check failed; the message is one line that says why. Every function below raises it."""


def run(*command: str | Path, folder: Path, seconds: float = 1800) -> str:
    """Runs a command in `folder`, away from the source tree, and returns what it printed."""
    environment = {name: value for name, value in os.environ.items() if name not in HIDDEN}
    try:
        result = subprocess.run(
            [str(word) for word in command],
            cwd=folder,
            env={**environment, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=seconds,
        )
    except subprocess.TimeoutExpired as error:
        raise StepError(f"{Path(command[0]).name} took more than {seconds:.0f} s") from error
    if result.returncode:
        print(result.stdout, file=sys.stderr)
        raise StepError(reason(result.stdout) or f"exit status {result.returncode}")
    return result.stdout


def reason(output: str) -> str:
    """The line of pip's or pytest's output that says what went wrong: the first error of pip, else the last line."""
    lines = [line.strip("= \n") for line in output.splitlines() if line.strip("= \n")]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or lines[-1:] or [""])[0].replace("|", "/")[:200]


def find_python(version: str) -> str:
    """The path of an interpreter of this version, from PATH or from pyenv."""
    found = [shutil.which(f"python{version}"), sys.executable]
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    found += sorted(map(str, pyenv.glob(f"versions/{version}*/bin/python")))
    ask = "import sys; print('{}.{}'.format(*sys.version_info))"
    for candidate in filter(None, found):
        result = subprocess.run([candidate, "-c", ask], capture_output=True, text=True, check=False)
        if result.returncode == 0 and result.stdout.strip() == version:
            return candidate
    raise StepError(f"there is no python{version} on this machine")


def install(folder: Path, wheel: Path, python: str, torch: str) -> Path:
    """Makes an environment with these versions and the wheel with its dependencies; returns its interpreter."""
    run(find_python(python), "-m", "venv", "environment", folder=folder)
    interpreter = folder / "environment" / "bin" / "python"
    pip = (interpreter, "-m", "pip", "install", "--quiet", "--no-compile", "--disable-pip-version-check")
    run(*pip, f"torch=={torch}.*", "triton", folder=folder)
    run(*pip, f"msa-ops[{EXTRAS}] @ {wheel.as_uri()}", *TOOLS, folder=folder)
    return interpreter


def borrow(folder: Path, wheel: Path) -> Path:
    """Makes an environment with the wheel that finds its dependencies in the one that runs this."""
    run(sys.executable, "-m", "venv", "environment", folder=folder)
    interpreter = folder / "environment" / "bin" / "python"
    run(interpreter, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", wheel, folder=folder)
    # A .pth file does not bring an editable installation along.
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = Path(run(interpreter, "-c", ask, folder=folder).strip())
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return interpreter


def check_info(text: str) -> dict[str, str]:
    """The rows of ``python -m msa_ops.info``, which must know the build and have the CPU kernels."""
    rows = dict(re.split(r"  +", line, maxsplit=1) for line in text.splitlines() if "  " in line)
    for name in ("built with", "runs on", "processor", "backend cpu"):
        value = rows.get(name, "missing")
        if value.startswith(("missing", "not ")):
            raise StepError(f"msa_ops.info: {name}: {value}")
    return rows


def check(wheel: Path, python: str | None, torch: str | None, with_tests: bool = True) -> Outcome:
    """Checks the wheel with these versions, or, where both are None, with those of the environment that runs this."""
    outcome, start = Outcome(python or "this one", torch or "this one"), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="msa-ops-wheel-") as name:
        folder = Path(name)
        try:
            interpreter = install(folder, wheel, python, torch) if python and torch else borrow(folder, wheel)
            outcome.was_installed = True
            check_installed(interpreter, folder, outcome, with_tests)
        except StepError as error:
            outcome.result = f"{'failed' if outcome.was_installed else 'not installed'}: {error}"
    outcome.seconds = time.monotonic() - start
    return outcome


def check_installed(interpreter: Path, folder: Path, outcome: Outcome, with_tests: bool) -> None:
    """Runs the checks in an environment that is ready and writes what they find into `outcome`."""
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", folder)
    versions = (
        "import importlib.util, platform, torch, msa_ops; print(platform.python_version(), torch.__version__, "
        "__import__('triton').__version__ if importlib.util.find_spec('triton') else 'none', msa_ops.__file__)"
    )
    outcome.python, outcome.torch, outcome.triton, where = run(interpreter, "-c", versions, folder=folder).split()
    if folder.resolve() not in Path(where).resolve().parents:
        raise StepError(f"msa_ops is imported from {where}, not from the wheel")
    check_info(run(interpreter, "-m", "msa_ops.info", folder=folder))
    errors = json.loads(run(interpreter, "-m", "tests.wheel.numbers", folder=folder).splitlines()[-1])
    outcome.error = max(value for name, value in errors.items() if name.endswith("float32"))
    if not with_tests:
        return
    pytest = (interpreter, "-m", "pytest", "-q", "-n", "2", "-m", "not slow", "-p", "no:cacheprovider")
    last = run(*pytest, *TESTS, folder=folder).splitlines()[-1]
    print(f"{outcome.python}, torch {outcome.torch}: {last}", flush=True)
