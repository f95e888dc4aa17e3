"""Sets two result files of benchmarks.operators side by side: what changed between two commits, on one device."""

from __future__ import annotations

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
    """Prints milliseconds and ratios to ours before and after, and the factor by which each changed. A ratio that grew
    means that ours became faster beside that alternative. Returns 1 where a ratio fell under the share, or ours is not
    measured any more; 2 where the files cannot be compared."""
    try:
        old, new = (results.read(Path(file)) for file in (old_file, new_file))
        both = joined(old, new)
    except ValueError as error:
        print(f"benchmarks.compare: {error}", file=sys.stderr)
        return 2
    print(f"{old.facts['commit']} → {new.facts['commit']}, {new.facts['device']}, {new.facts['precision']}")
    columns = ["ms_old", "ms_new", "ms_change", "ratio_old", "ratio_new", "ratio_change", "unavailable_new"]
    print(both.set_index(KEY)[columns].to_string(na_rep="-", sparsify=False, float_format="{:.4g}".format))
    if fail_under is None:
        return 0
    # Ratios within each run are compared, never times of different runs.
    fell = both["ratio_new"] < fail_under * both["ratio_old"]
    gone = (both["alternative"] == OURS) & both["ratio_old"].notna() & both["ratio_new"].isna()
    for row in both[fell | gone].to_dict("records"):
        name = f"{row['suite']}: {row['case']}: {row['alternative']}, {row['pass']}"
        print(f"under {fail_under:g}: {name}: ratio {row['ratio_old']} → {row['ratio_new']}", file=sys.stderr)
    return int(any(fell | gone))


def joined(old: Result, new: Result) -> DataFrame:
    """Returns the rows of both.

    Raises:
        ValueError: the files differ in device, precision, suites or shapes, so that ratios compare no commits.
    """
    import pandas as pd

    before, after = (
        {name: one.facts.get(name) for name in ("device", "threads", "precision")} | {"suites": sorted(one.suites)}
        for one in (old, new)
    )
    for name, value in before.items():
        if after[name] != value:
            raise ValueError(f"the files differ in {name}: {value} and {after[name]}")
    frames = [
        pd.DataFrame(one.rows).reindex(columns=[*KEY, "shape", "ms", "ratio", "unavailable"]) for one in (old, new)
    ]
    both = frames[0].merge(frames[1], how="outer", on=KEY, suffixes=("_old", "_new"))
    for name in ("ms", "ratio"):
        both[f"{name}_change"] = (both[f"{name}_new"] / both[f"{name}_old"]).round(2)
    shapes = both.dropna(subset=["shape_old", "shape_new"])
    for row in shapes[shapes["shape_old"] != shapes["shape_new"]].to_dict("records"):
        where = f"{row['suite']}, {row['case']}"
        raise ValueError(f"the files differ in the shape of {where}: {row['shape_old']} and {row['shape_new']}")
    return both
