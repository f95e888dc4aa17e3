"""Random cases against one part of the library, one after another until the time is up.

Every case draws what it does from its own random generator, whose seed is the pair (seed of the run, number of the
case), so that any case can be repeated alone.
"""

import faulthandler
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

MOST_SECONDS = 600  # of one case, on a busy machine

#: Draws one case and checks it in an empty folder. Returns the kind of case, by which the report counts; raises
#: AssertionError, with a message that says what was wanted and what came, where the library is at fault.
Case = Callable[[np.random.Generator, Path], str]


@dataclass
class Result:
    """What one run of an attack found.

    Attributes:
        kinds: How many cases of each kind ran and passed.
        failures: For each failed case its number and the error.
    """

    name: str
    seed: int
    seconds: float = 0.0
    kinds: Counter[str] = field(default_factory=Counter)
    failures: dict[int, str] = field(default_factory=dict)

    @property
    def cases(self) -> int:
        return self.kinds.total() + len(self.failures)

    def __str__(self) -> str:
        kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(self.kinds.items()))
        lines = [
            f"{self.name}: {self.cases} cases in {self.seconds:.0f} s, {len(self.failures)} failed (seed {self.seed})",
            f"  passed: {kinds}",
        ]
        for number, error in self.failures.items():
            lines += [f"  case {number}: {error}", f"    repeat: {repetition(self.name, self.seed, number)}"]
        return "\n".join(lines)


def repetition(name: str, seed: int, number: int) -> str:
    return f"python -m tests.attack {name} --seed {seed} --case {number}"


def run_case(case: Case, seed: int, number: int) -> str:
    """Runs one case. One that takes longer than any may ends the process, which prints where it was."""
    faulthandler.dump_traceback_later(MOST_SECONDS, exit=True)
    try:
        return _run_case(case, seed, number)
    finally:
        faulthandler.cancel_dump_traceback_later()


def _run_case(case: Case, seed: int, number: int) -> str:
    with tempfile.TemporaryDirectory(prefix="msa-attack-") as folder:
        return case(np.random.default_rng([seed, number]), Path(folder))


def run(name: str, case: Case, seed: int, seconds: float, most_failures: int = 20) -> Result:
    """Runs cases until `seconds` have passed or `most_failures` cases have failed. At least one case runs."""
    result = Result(name, seed)
    begin = time.monotonic()
    number = 0
    while number == 0 or (time.monotonic() - begin < seconds and len(result.failures) < most_failures):
        try:
            result.kinds[run_case(case, seed, number)] += 1
        except AssertionError as error:
            result.failures[number] = str(error)
        except Exception:
            result.failures[number] = traceback.format_exc()
        number += 1
    result.seconds = time.monotonic() - begin
    return result
