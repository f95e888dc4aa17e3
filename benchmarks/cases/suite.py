"""A suite: cases that are measured one after the other and shown in one table."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence

from tqdm import tqdm

from ..measure import Case, Row, Settings, measure_case


@dataclasses.dataclass(frozen=True)
class Suite:
    """A group of cases.

    Args:
        title, about: what the measurements' page says above the suite's table; result files hold both.
        cases: makes the cases, which may depend on device and sizes.
        absent: names the alternatives that do not take part in a case, and why, from the rows measured so far.
        totals: makes further rows from all rows, such as sums over cases.
        limits: seconds and rounds, as for `measure_prepared`.
    """

    title: str
    about: str
    cases: Callable[[Settings], list[Case]]
    absent: Callable[[Sequence[Row], Case, Settings], Mapping[str, str]] = lambda rows, case, settings: {}
    totals: Callable[[Sequence[Row]], list[Row]] = lambda rows: []
    limits: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def run(self, name: str, cases: Sequence[Case], settings: Settings) -> list[Row]:
        rows: list[Row] = []
        for case in tqdm(cases, desc=name, file=sys.stderr):
            rows += measure_case(case, settings, self.absent(rows, case, settings), **self.limits)
        return [{"suite": name, **row} for row in [*rows, *self.totals(rows)]]
