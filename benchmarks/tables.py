"""Markdown tables of measured rows. Nothing here knows a suite: its rows say what there is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from .measure import Row

NOT_AVAILABLE = "–"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def digits(value: float, count: int) -> str:
    """Writes so many significant digits, never as a power of ten."""
    return f"{value:.{max(0, count - 1 - math.floor(math.log10(value)))}f}" if value else "0"


FORMATS: dict[str, tuple[str, Callable[[float], str]]] = {
    "eager_ms": ("eager ms", lambda value: digits(value, 4)),
    "tflops": ("TFLOP/s", lambda value: digits(value, 3)),
    "roof_share": ("of the roof", "{:.0%}".format),
    "extra_mib": ("extra MiB", "{:.1f}".format),
}


def cell(row: Row, name: str) -> str:
    return FORMATS[name][1](row[name]) if name in row else ""


def distinct(rows: Iterable[Row], column: str) -> list:
    return list(dict.fromkeys(row[column] for row in rows if column in row))


def names(rows: Iterable[Row]) -> list[str]:
    return distinct(rows, "alternative")


def baseline_of(rows: Sequence[Row]) -> str:
    """Returns the alternative that the suite's ratios are to: the one whose ratio is 1 in every row that has one."""
    others = {row["alternative"] for row in rows if row.get("ratio", 1.0) != 1.0}
    return next((name for name in names(rows) if name not in others), "ours")


def ratio_table(rows: Sequence[Row]) -> str:
    """Shows by case the baseline's time over every other alternative's, in brackets that of eager times, and the
    baseline's rate and memory; in every cell a value per pass."""
    baseline, passes = baseline_of(rows), distinct(rows, "pass")
    others = [name for name in names(rows) if name != baseline]
    found = {(row["case"], row["alternative"], row["pass"]): row for row in rows}
    quantities = [name for name in FORMATS if name != "eager_ms" and any(name in row for row in rows)]
    header = ["case", "shape", *(f"{baseline} / {name}" for name in others)]
    header += [f"{baseline}: {FORMATS[name][0]}" for name in quantities]
    lines = []
    for case in distinct(rows, "case"):
        shape = next((row["shape"] for row in rows if row["case"] == case and "shape" in row), "")
        own = {which: found.get((case, baseline, which), {}) for which in passes}
        cells = [[ratio(row, found.get((case, name, which))) for which, row in own.items()] for name in others]
        cells += [[cell(row, name) for row in own.values()] for name in quantities]
        lines.append([case, shape, *(" · ".join(filter(None, values)) for values in cells)])
    return table(header, lines)


def ratio(own: Row, other: Row | None) -> str:
    """Writes time over time, with that of eager times in brackets where the device's stand beside."""
    if not own or other is None:
        return ""
    if "ms" not in own or "ms" not in other:
        return NOT_AVAILABLE
    shown = f"{own['ms'] / other['ms']:.2f}"
    if any(row.get("eager_ms", row["ms"]) != row["ms"] for row in (own, other)):
        shown += f" ({own['eager_ms'] / other['eager_ms']:.2f})"
    return shown


def full_table(rows: Sequence[Row]) -> str:
    """Shows every row: milliseconds with quartiles, rate and memory, or why there are none."""
    quantities = [name for name in FORMATS if any(name in row for row in rows)]
    header = ["case", "alternative", "pass", "ms (quartiles)", *(FORMATS[name][0] for name in quantities)]
    lines, last = [], None
    for row in rows:
        label, last = row["case"] if row["case"] != last else "", row["case"]
        lines.append([label, named(row), row["pass"], _time(row), *(cell(row, name) for name in quantities)])
    return table(header, lines)


def named(row: Row) -> str:
    """Names the alternative, with a word where its time is the host's beside the device's of others."""
    return f"{row['alternative']}, eager" if row.get("graph") is False else row["alternative"]


def _time(row: Row) -> str:
    if "unavailable" in row:
        return f"not available: {row['unavailable']}"
    quartiles = f" ({digits(row['lower_ms'], 4)} - {digits(row['upper_ms'], 4)})" if "lower_ms" in row else ""
    return digits(row["ms"], 4) + quartiles
