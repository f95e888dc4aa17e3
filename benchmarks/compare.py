"""Sets two result files of benchmarks.operators side by side: what changed between two commits, on one device."""

from __future__ import annotations

import sys
from pathlib import Path

from . import results
from .measure import OURS, Row
from .results import Result

Key = tuple[str, str, str, str]


def main(old_file: str, new_file: str, fail_under: float | None) -> int:
    """Prints the comparison; returns 1 where ours fell under the share, 2 where the files cannot be compared."""
    try:
        old, new = (results.read(Path(file)) for file in (old_file, new_file))
        check_alike(old, new)
    except ValueError as error:
        print(f"benchmarks.compare: {error}", file=sys.stderr)
        return 2
    print(f"{old.facts['commit']} → {new.facts['commit']}, {new.facts['device']}, {new.facts['precision']}")
    print(table(old, new))
    found = regressions(old, new, fail_under) if fail_under is not None else []
    for line in found:
        print(f"under {fail_under:g}: {line}", file=sys.stderr)
    return int(bool(found))


def check_alike(old: Result, new: Result) -> None:
    """
    Raises:
        ValueError: the files differ in device, precision, suites or shapes, so that ratios compare no commits.
    """
    facts = [
        {name: one.facts.get(name) for name in ("device", "threads", "precision")}
        | {"suites": ", ".join(sorted(one.suites))}
        for one in (old, new)
    ]
    for name, value in facts[0].items():
        if facts[1][name] != value:
            raise ValueError(f"the files differ in {name}: {value} and {facts[1][name]}")
    shapes = {(row["suite"], row["case"]): row.get("shape") for row in new.rows}
    for row in old.rows:
        other = shapes.get((row["suite"], row["case"]), row.get("shape"))
        if other != row.get("shape"):
            raise ValueError(
                f"the files differ in the shape of {row['suite']}, {row['case']}: {row.get('shape')} and {other}"
            )


def by_key(result: Result) -> dict[Key, Row]:
    return {tuple(row[name] for name in ("suite", "case", "alternative", "pass")): row for row in result.rows}


def _name(key: Key) -> str:
    suite, case, alternative, which = key
    return f"{suite}: {case}: {alternative}, {which}"


def table(old: Result, new: Result) -> str:
    """Shows milliseconds and ratio to ours before and after, and the factor by which each changed; a ratio that grew
    means that ours became faster beside that alternative."""
    before, after = by_key(old), by_key(new)
    lines = [["", "ms", "", "", "ratio", "", ""]]
    for key in before | after:
        pair = before.get(key, {}), after.get(key, {})
        why = [f"not available: {one['unavailable']}" for one in pair if "unavailable" in one]
        lines.append([_name(key), *_change("ms", *pair), *_change("ratio", *pair), *why[:1]])
    first, *widths = [max(len(line[i]) for line in lines) for i in range(7)]
    return "\n".join(
        "  ".join(
            [line[0].ljust(first), *(c.rjust(w) for c, w in zip(line[1:7], widths, strict=True)), *line[7:]]
        ).rstrip()
        for line in lines
    )


def _change(name: str, old: Row, new: Row) -> tuple[str, str, str]:
    shown = [f"{row[name]:g}" if name in row else "-" for row in (old, new)]
    return *shown, f"{new[name] / old[name]:.2f}" if name in old and name in new else ""


def regressions(old: Result, new: Result, share: float) -> list[str]:
    """Names the rows whose ratio is below `share` of what it was, and those of ours that are not measured any more.
    Ratios within each run are compared, never times of different runs."""
    after = by_key(new)
    found = []
    for key, row in by_key(old).items():
        later = after.get(key, {"unavailable": "not in the new file"})
        if "ratio" in row and "ratio" in later and later["ratio"] < share * row["ratio"]:
            change = later["ratio"] / row["ratio"]
            found.append(f"{_name(key)}: ratio {row['ratio']:g} → {later['ratio']:g}, {change:.2f} of it")
        elif row["alternative"] == OURS and "ratio" in row and "ratio" not in later:
            found.append(f"{_name(key)}: {later['unavailable']}")
    return found
