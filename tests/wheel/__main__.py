"""Tests one wheel under other versions of Python and torch: ``python -m tests.wheel dist/*.whl``.

For every pair of versions it makes an environment, installs torch and the wheel, runs ``python -m msa_ops.info``,
`numbers` and the tests that an installation can break, and removes the environment. It prints a table, in which every
pair that could not be tested has a row with the reason.
"""

import argparse
import sys
from pathlib import Path

from . import environments
from .environments import Outcome

PYTHONS = ("3.11", "3.12", "3.13")
TORCHES = ("2.11", "2.12", "2.13", "2.14")


def table(outcomes: list[Outcome]) -> str:
    """The outcomes in Markdown."""
    lines = [
        "| Python | torch | triton | result | largest error, float32 | seconds |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for outcome in outcomes:
        error = "" if outcome.error is None else f"{outcome.error:.1e}"
        cells = (outcome.python, outcome.torch, outcome.triton, outcome.result, error, f"{outcome.seconds:.0f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def pair(text: str) -> tuple[str, str]:
    python, slash, torch = text.partition("/")
    if not (python and slash and torch):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form PYTHON/TORCH, such as 3.12/2.13")
    return python, torch


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.wheel", description=__doc__)
    parser.add_argument("wheel", type=Path, help="the wheel file")
    parser.add_argument(
        "--pairs",
        nargs="+",
        type=pair,
        default=[(python, torch) for torch in TORCHES for python in PYTHONS],
        metavar="PYTHON/TORCH",
        help=f"the versions to test (default: Python {', '.join(PYTHONS)}, each with torch {', '.join(TORCHES)})",
    )
    parser.add_argument(
        "--here", action="store_true", help="test only with this Python and the dependencies of this environment"
    )
    parser.add_argument("--no-tests", action="store_true", help="only msa_ops.info and the numbers, no tests")
    options = parser.parse_args(arguments)
    if not options.wheel.is_file():
        parser.error(f"there is no wheel {options.wheel}")
    outcomes = []
    for python, torch in [(None, None)] if options.here else options.pairs:
        outcomes.append(environments.check(options.wheel.resolve(), python, torch, not options.no_tests))
        print(table(outcomes[-1:]).splitlines()[-1], flush=True)
    print("", table(outcomes), sep="\n")
    tested = [outcome.result == environments.PASSED for outcome in outcomes if outcome.was_installed]
    return 0 if tested and all(tested) else 1


if __name__ == "__main__":
    sys.exit(main())
