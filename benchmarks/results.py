"""Reads and writes result files: the facts of a run, and a flat list of rows.

A row names ``suite``, ``case``, ``operator``, ``shape``, ``alternative`` and ``pass``, and has its quantities in
further columns (`measure.measure_case` describes them). A column without a value is absent from the row.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path

import torch

from .measure import Row

RESULTS = Path(__file__).parent / "results"


@dataclasses.dataclass(frozen=True)
class Result:
    """One result file. `name`: the file's, without its ending."""

    name: str
    facts: dict
    rows: list[Row]

    def find(self, **columns: object) -> list[Row]:
        """Returns the rows that have these values; `pass_` stands for the column ``pass``."""
        columns = {name.rstrip("_"): value for name, value in columns.items()}
        return [row for row in self.rows if columns.items() <= row.items()]

    def one(self, **columns: object) -> Row | None:
        """Returns the first such row."""
        return next(iter(self.find(**columns)), None)

    @property
    def suites(self) -> list[str]:
        return list(dict.fromkeys(row["suite"] for row in self.rows))

    @property
    def device(self) -> str:
        """Returns the device's name, with a CPU's threads."""
        threads = f", {self.facts['threads']} threads" if self.facts["device_kind"] == "cpu" else ""
        return self.facts["device"] + threads


def write(name: str, device: torch.device, facts: dict, rows: Iterable[Row]) -> Path:
    """Writes results/NAME-DEVICE.json, one row per line."""
    RESULTS.mkdir(exist_ok=True)
    kind = "cpu" if device.type == "cpu" else str(facts["device"]).lower().replace(" ", "-")
    path = RESULTS / f"{name}-{kind}.json"
    path.write_text(as_text(facts, rows))
    return path


def as_text(facts: dict, rows: Iterable[Row]) -> str:
    lines = ",\n".join(f"  {json.dumps(row, ensure_ascii=False)}" for row in rows)
    return f'{{\n"facts": {json.dumps(facts, indent=1, ensure_ascii=False)},\n"rows": [\n{lines}\n]\n}}\n'


def read(path: Path) -> Result:
    """Reads one result file.

    Raises:
        ValueError: the file cannot be read, or is no result in this format.
    """
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path}: is not JSON: {error}") from error
    if not isinstance(content, dict) or content.keys() != {"facts", "rows"}:
        raise ValueError(f"{path}: is no result of these benchmarks: run it again")
    return Result(path.stem, content["facts"], content["rows"])


def committed() -> list[Result]:
    """Returns all results by name, without those of runs that were cut short."""
    return [read(path) for path in sorted(RESULTS.glob("*.json")) if "-incomplete-" not in path.stem]
