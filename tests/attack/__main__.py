"""Attacks the library with random cases for as long as it is told: ``python -m tests.attack all --seconds 60``."""

import argparse
import importlib
import json
import secrets
import sys
from pathlib import Path

from . import campaign

#: Each is a module of this package with a function `case`.
ATTACKS = ("operators", "kills", "checkpoints", "files", "weights")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.attack", description=__doc__)
    parser.add_argument("attack", nargs="+", choices=("all", *ATTACKS))
    parser.add_argument("--seconds", type=float, default=60, help="how long each attack runs (default: 60)")
    parser.add_argument("--seed", type=int, help="seed of the run (default: a new one, which is printed)")
    parser.add_argument("--case", type=int, help="run only the case of this number")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    options = parser.parse_args(arguments)
    seed = secrets.randbelow(10**9) if options.seed is None else options.seed
    names = ATTACKS if "all" in options.attack else tuple(dict.fromkeys(options.attack))
    results = []
    for name in names:
        case = importlib.import_module(f".{name}", __package__).case
        if options.case is not None:
            print(f"{name}: {campaign.run_case(case, seed, options.case)}: passed")
            continue
        print(f"{name}: seed {seed}, {options.seconds:.0f} s", flush=True)
        results.append(campaign.run(name, case, seed, options.seconds))
        print(results[-1], flush=True)
    if options.json:
        options.json.write_text(json.dumps([vars(result) for result in results], indent=2) + "\n")
    return 1 if any(result.failures for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
