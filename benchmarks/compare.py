"""Sets two result files of benchmarks.operators side by side: what changed between two commits, on one device."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from . import results
from .measure import OURS
from .results import Result

if TYPE_CHECKING:
    from pandas import DataFrame

KEY = ["suite", "case", "alternative", "pass"]


def main(old_file: str, new_file: str, fail_under: float | None) -> int:
    """Prints the comparison; returns 1 where ours fell under the share, 2 where the files cannot be compared."""
    try:
        old, new = (results.read(Path(file)) for file in (old_file, new_file))
        both = joined(old, new)
    except ValueError as error:
        print(f"benchmarks.compare: {error}", file=sys.stderr)
        return 2
    print(f"{old.facts['commit']} → {new.facts['commit']}, {new.facts['device']}, {new.facts['precision']}")
    columns = ["ms_old", "ms_new", "ms_change", "ratio_old", "ratio_new", "ratio_change", "unavailable_new"]
    print(both[columns].to_string(na_rep="-", sparsify=False, float_format="{:.4g}".format))
    found = regressions(both, fail_under) if fail_under is not None else []
    for line in found:
        print(f"under {fail_under:g}: {line}", file=sys.stderr)
    return int(bool(found))


def joined(old: Result, new: Result) -> DataFrame:
    """Returns the rows of both, by KEY: milliseconds and ratio to ours before and after, and the factor by which each
    changed. A ratio that grew means that ours became faster beside that alternative.

    Raises:
        ValueError: the files differ in device, precision, suites or shapes, so that ratios compare no commits.
    """
    import pandas as pd

    facts = [
        {name: one.facts.get(name) for name in ("device", "threads", "precision")}
        | {"suites": ", ".join(sorted(one.suites))}
        for one in (old, new)
    ]
    for name, value in facts[0].items():
        if facts[1][name] != value:
            raise ValueError(f"the files differ in {name}: {value} and {facts[1][name]}")
    columns = ["ms", "ratio", "unavailable", "shape"]
    tables = [pd.DataFrame(one.rows).set_index(KEY).reindex(columns=columns) for one in (old, new)]
    both = tables[0].add_suffix("_old").join(tables[1].add_suffix("_new"), how="outer")
    both = both.reindex(tables[0].index.union(tables[1].index, sort=False))
    for key, row in both.dropna(subset=["shape_old", "shape_new"]).iterrows():
        if row["shape_old"] != row["shape_new"]:
            shapes = f"{row['shape_old']} and {row['shape_new']}"
            raise ValueError(f"the files differ in the shape of {key[0]}, {key[1]}: {shapes}")
    for name in ("ms", "ratio"):
        both[f"{name}_change"] = (both[f"{name}_new"] / both[f"{name}_old"]).round(2)
    return both


def regressions(both: DataFrame, share: float) -> list[str]:
    """Names the rows whose ratio is below `share` of what it was, and those of ours that are not measured any more.
    Ratios within each run are compared, never times of different runs."""
    found = []
    for (suite, case, alternative, which), row in both[both["ratio_old"].notna()].iterrows():
        name, old, new = f"{suite}: {case}: {alternative}, {which}", row["ratio_old"], row["ratio_new"]
        if new < share * old:
            found.append(f"{name}: ratio {old:g} → {new:g}, {new / old:.2f} of it")
        elif alternative == OURS and math.isnan(new):
            why = row["unavailable_new"]
            found.append(f"{name}: {why if isinstance(why, str) else 'not in the new file'}")
    return found
