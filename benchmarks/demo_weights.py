"""``python -m benchmarks.demo_weights``: the weights that come with the package against classical fills, by
``msa evaluate``, on facades that they were not trained on."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import torch

from msa_model.cli import main as msa

from . import measure, results

SIZE, COUNT = 128, 48


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo_weights", description=__doc__.split("\n\n")[0])
    parser.add_argument("--count", type=int, default=COUNT, help=f"facades per range of hole ratios (default {COUNT})")
    parser.add_argument("--no-save", action="store_true", help="print only")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as out:
        options = {"synthetic": arguments.count, "size": SIZE, "weights": "demo", "device": "cpu", "output": out}
        code = msa(["evaluate", *(word for name, value in options.items() for word in (f"--{name}", str(value)))])
        if code:
            return code
        measured = json.loads((Path(out) / "evaluation.json").read_text())
    if not arguments.no_save:
        facts = measure.facts(torch.device("cpu")) | {"size": SIZE, "protocols": measured["protocols"]}
        written = results.write("demo-weights", torch.device("cpu"), facts, map(row_of, measured["results"]))
        print("written:", written.name)
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
