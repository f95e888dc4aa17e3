"""A suite: named cases, measured one after the other, and what follows from all of them."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterable, Mapping

from tqdm import tqdm

from msa_model.commands.common import is_out_of_memory

from . import gate
from .contest import Contest, Settings, measure


@dataclasses.dataclass(frozen=True)
class Case:
    """One operator on one shape."""

    name: str  # its row, unique in the suite
    operator: str
    shape: str
    contestants: tuple[str, ...]
    prepare: Callable[[Settings], Contest]
    family: str = ""  # what it may be asked for by beside its name, shared with the same case of other sizes or holes
    facts: Mapping[str, object] = dataclasses.field(default_factory=dict)  # more of what its record says

    def answers_to(self, name: str) -> bool:
        """`x` will do for `×`."""
        return name.replace("x", "×") in (self.name.replace("x", "×"), self.family.replace("x", "×"))


def measure_case(case: Case, settings: Settings, absent: Mapping[str, str] | None = None, **limits: float) -> dict:
    """contest.measure's record, with operator, shape and facts; ``"unavailable"`` and no contestant where memory does
    not suffice for the case's own tensors or for its judges. `absent`: who does not take part, and why."""
    facts = {"operator": case.operator, "shape": case.shape, **case.facts}
    try:
        contest = case.prepare(settings)
        contest.leave_out(absent or {})
        return facts | measure(contest, settings, **limits)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        why = gate.reason(error)
    gate.release(settings.device)
    return facts | {"unavailable": why, "contestants": {}}


def measure_cases(cases: Iterable[Case], settings: Settings) -> dict[str, dict]:
    return {case.name: measure_case(case, settings) for case in cases}


@dataclasses.dataclass(frozen=True)
class Suite:
    """`cases` may depend on device and sizes. `conclude` makes, of the records and the dtype's name, more entries of
    the suite's result beside its ``"cases"``."""

    summary: str
    cases: Callable[[Settings], list[Case]]
    measure: Callable[[Iterable[Case], Settings], dict[str, dict]] = measure_cases
    conclude: Callable[[dict[str, dict], str], dict] = lambda records, dtype: {}

    def run(self, name: str, cases: list[Case], settings: Settings, dtype: str) -> dict:
        """The suite's part of a result file, of some or all of its cases."""
        records = self.measure(tqdm(cases, desc=name, file=sys.stderr), settings)
        return {"cases": records, **self.conclude(records, dtype)}
