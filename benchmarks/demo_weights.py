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

from . import harness

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
        content = {"size": SIZE, "protocols": measured["protocols"], "rows": measured["results"]}
        print("written:", harness.save("demo-weights", torch.device("cpu"), content).name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
