"""``python -m benchmarks.demo_weights``: the weights that come with the package against classical fills, by
``msa evaluate``, on facades that they were not trained on."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import torch

from msa_model.cli import main as msa

from . import measure, results

#: Image side, and facades per range of hole ratios.
SIZE, COUNT = 128, 48
COMMAND = f"evaluate --synthetic {COUNT} --size {SIZE} --weights demo --device cpu --output"


def main() -> int:
    with tempfile.TemporaryDirectory() as out:
        if code := msa([*COMMAND.split(), out]):
            return code
        measured = json.loads((Path(out) / "evaluation.json").read_text())
    facts = measure.facts(torch.device("cpu")) | {"size": SIZE, "protocols": measured["protocols"]}
    print("written:", results.write("demo-weights", torch.device("cpu"), facts, map(row_of, measured["results"])).name)
    return 0


def row_of(entry: dict) -> measure.Row:
    """Returns a row of `msa evaluate`'s results flat; columns of the paper's protocol begin with ``paper_``."""
    rest = {name: value for name, value in entry.items() if name not in ("method", "figures")}
    figures = entry["figures"]
    return {
        "suite": "demo-weights",
        "case": f"{100 * entry['low']:g}-{100 * entry['high']:g} %",
        "alternative": entry["method"],
        **rest,
        **figures["standard"],
        **{f"paper_{name}": value for name, value in figures["paper"].items()},
    }


if __name__ == "__main__":
    sys.exit(main())
