"""Markdown tables of measured rows. Nothing here knows a suite: its rows say what there is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from .measure import Row

#: The alternative that the ratios are to has this ratio.
UNIT = 1.0
NOT_AVAILABLE = "–"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def digits(value: float, count: int) -> str:
    """Writes so many significant digits, never as a power of ten."""
    return f"{value:.{max(0, count - 1 - math.floor(math.log10(value)))}f}" if value else "0"


FORMATS: dict[str, tuple[str, Callable[[float], str]]] = {
    "eager_ms": ("eager ms", lambda value: digits(value, 4)),
    "tflops": ("TFLOP/s", lambda value: digits(value, 3)),
    "roof_share": ("of the roof", "{:.0%}".format),
    "extra_mib": ("extra MiB", "{:.1f}".format),
}


def cells(row: Row, names: Iterable[str]) -> list[str]:
    return [FORMATS[name][1](row[name]) if name in row else "" for name in names]


def distinct(rows: Iterable[Row], column: str) -> list:
    return list(dict.fromkeys(row[column] for row in rows if column in row))


def baseline_of(rows: Sequence[Row]) -> str:
    """Returns the alternative that the suite's ratios are to: the one whose ratio is 1 in every row that has one."""
    ratios = {name: {row.get("ratio", UNIT) for row in rows if row["alternative"] == name} for name in names(rows)}
    return next(iter([name for name, found in ratios.items() if found == {UNIT}]), "ours")


def names(rows: Iterable[Row]) -> list[str]:
    return distinct(rows, "alternative")


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
        own = [found.get((case, baseline, which), {}) for which in passes]
        line = [case, next((row["shape"] for row in rows if row["case"] == case and "shape" in row), "")]
        for name in others:
            line.append([ratio(row, found.get((case, name, row.get("pass")))) for row in own])
        line += [[cells(row, [name])[0] for row in own] for name in quantities]
        lines.append([cell if isinstance(cell, str) else " · ".join(filter(None, cell)) for cell in line])
    return table(header, lines)


def ratio(own: Row, other: Row | None) -> str:
    """Writes time over time, with that of eager times in brackets where the device's stand beside."""
    if other is None:
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
        label = row["case"] if row["case"] != last else ""
        last = row["case"]
        lines.append([label, named(row), row["pass"], _time(row), *cells(row, quantities)])
    return table(header, lines)


def named(row: Row) -> str:
    """Names the alternative, with a word where its time is the host's beside the device's of others."""
    return f"{row['alternative']}, eager" if row.get("graph") is False else row["alternative"]


def _time(row: Row) -> str:
    if "unavailable" in row:
        return f"not available: {row['unavailable']}"
    quartiles = [f"{digits(row[name], 4)}" for name in ("lower_ms", "upper_ms") if name in row]
    return digits(row["ms"], 4) + (f" ({' - '.join(quartiles)})" if quartiles else "")
