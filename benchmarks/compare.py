"""Two result files of benchmarks.operators side by side: what changed between two commits, on one device."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from .contest import OURS


class Row(NamedTuple):
    suite: str
    case: str
    contestant: str
    way: str

    def __str__(self) -> str:
        return f"{self.suite}: {self.case}: {self.contestant}, {self.way.replace('_', ' + ')}"


def main(old_file: str, new_file: str, fail_under: float | None) -> int:
    """Prints the comparison; 1 where ours fell under the share, 2 where the files cannot be compared."""
    try:
        old, new = (_read(Path(file)) for file in (old_file, new_file))
        _check_alike(old, new)
    except ValueError as error:
        print(f"benchmarks.compare: {error}", file=sys.stderr)
        return 2
    commits = " → ".join(content["environment"]["commit"] for content in (old, new))
    print(f"{commits}, {new['environment']['device']}, {new['dtype']}")
    print(table(old, new))
    if fail_under is None:
        return 0
    found = regressions(old, new, fail_under)
    for line in found:
        print(f"under {fail_under:g}: {line}", file=sys.stderr)
    return 1 if found else 0


def _read(path: Path) -> dict:
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path}: is not JSON: {error}") from error
    if not isinstance(content, dict) or "suites" not in content:
        raise ValueError(f"{path}: is no result of benchmarks.operators")
    return content


def _check_alike(old: dict, new: dict) -> None:
    """Ratios of other devices, precisions or shapes are no comparison of commits."""
    facts = [
        {name: content["environment"].get(name) for name in ("device", "threads")}
        | {"dtype": content["dtype"], "suites": ", ".join(sorted(content["suites"]))}
        for content in (old, new)
    ]
    for name, value in facts[0].items():
        if facts[1][name] != value:
            raise ValueError(f"the files differ in {name}: {value} and {facts[1][name]}")
    for suite, result in old["suites"].items():
        for case, record in result["cases"].items():
            other = new["suites"][suite]["cases"].get(case, record)
            if other["shape"] != record["shape"]:
                raise ValueError(
                    f"the files differ in the shape of {suite}, {case}: {record['shape']} and {other['shape']}"
                )


def entries(content: dict) -> Iterator[tuple[Row, dict]]:
    """Every contestant's entry in every case and sum."""
    for suite, result in content["suites"].items():
        for case, record in (result["cases"] | result.get("sums", {})).items():
            for contestant, ways in record["contestants"].items():
                for way, entry in ways.items():
                    yield Row(suite, case, contestant, way), entry


def table(old: dict, new: dict) -> str:
    """Milliseconds and ratio to ours before and after, with the factor by which each changed; a ratio that grew means
    that ours became faster beside that contestant."""
    before, after = dict(entries(old)), dict(entries(new))
    lines = [["", "ms", "→", "×", "ratio", "→", "×"]]
    for row in dict.fromkeys([*before, *after]):
        pair = before.get(row, {}), after.get(row, {})
        reasons = dict.fromkeys(entry["unavailable"] for entry in pair if "unavailable" in entry)
        why = [f"not available: {reason}" for reason in reasons]
        lines.append([str(row), *_change("ms", *pair), *_change("ratio", *pair), *why])
    first, *widths = [max(len(line[i]) for line in lines) for i in range(7)]
    return "\n".join(
        "  ".join(
            [
                line[0].ljust(first),
                *(cell.rjust(width) for cell, width in zip(line[1:7], widths, strict=True)),
                *line[7:],
            ]
        ).rstrip()
        for line in lines
    )


def _change(name: str, old: dict, new: dict) -> tuple[str, str, str]:
    shown = [f"{entry[name]:g}" if name in entry else "-" for entry in (old, new)]
    return *shown, f"{new[name] / old[name]:.2f}" if name in old and name in new else ""


def regressions(old: dict, new: dict, share: float) -> list[str]:
    """The rows whose ratio is below `share` of what it was, and those of ours that are not measured any more. Ratios
    within each run are compared, never times of different runs."""
    after = dict(entries(new))
    found = []
    for row, entry in entries(old):
        case = new["suites"][row.suite]["cases"].get(row.case, {})
        later = after.get(row, {"unavailable": case.get("unavailable", "not in the new file")})
        if "ratio" in entry and "ratio" in later and later["ratio"] < share * entry["ratio"]:
            change = later["ratio"] / entry["ratio"]
            found.append(f"{row}: ratio {entry['ratio']:g} → {later['ratio']:g}, {change:.2f} of it")
        elif row.contestant == OURS and "ratio" in entry and "ratio" not in later:
            found.append(f"{row}: {later['unavailable']}")
    return found
