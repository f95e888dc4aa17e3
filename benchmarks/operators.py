"""``python -m benchmarks.operators``: the operators against what a user could run instead.

Every suite measures cases (an operator on a shape), every case its contestants in turns; only those whose outputs, and
gradients, agreed with float64 in the same run are reported. ``--list`` shows what there is. Results go to
benchmarks/results/, and ``python -m benchmarks.report`` puts them into the README.

``--compare OLD.json NEW.json`` sets two results of the same device side by side; with ``--fail-under 0.9`` it fails
where ours, relative to a competitor, has fallen below that share of its former speed.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import re
import sys
import time

import torch

from . import compare, gate, harness, registry
from .contest import Settings
from .precision import PRECISIONS
from .suites import Case
from .tables import TABLES


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.operators",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    choose = parser.add_argument_group("what is measured; repeatable, default: all")
    choose.add_argument("--list", action="store_true", help="print suites, cases and contestants, and stop")
    choose.add_argument("--suite", action="append", default=[], metavar="NAME", help=", ".join(registry.SUITES))
    choose.add_argument("--operator", action="append", default=[], metavar="NAME", help="partial_conv2d, …")
    choose.add_argument(
        "--case", "--layer", "--shape", action="append", default=[], metavar="NAME", help="Encode_1, 64x64, …"
    )
    how = parser.add_argument_group("how")
    how.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    how.add_argument("--dtype", choices=PRECISIONS, default="float32", help="tf32: float32 multiplied as TF32, on CUDA")
    how.add_argument(
        "--size", type=int, nargs="+", default=[], help="image sides (default 256; layers on CUDA: 256 512 1024)"
    )
    how.add_argument("--batch", type=int, default=2, help="of the suites that take images")
    how.add_argument("--rounds", type=int, default=7)
    how.add_argument(
        "--compile-only",
        metavar="TEXT",
        help="only make the first calls of contestants whose names contain TEXT, so that a later run finds them in the "
        "compiler's caches",
    )
    how.add_argument("--compiled", action="store_true", help="also competitors that take minutes to compile")
    how.add_argument(
        "--name",
        help="of the result file, to which dtype and device are added (default: operators, where all is measured)",
    )
    how.add_argument("--no-save", action="store_true", help="print only")
    compared = parser.add_argument_group("comparing")
    compared.add_argument("--compare", nargs=2, metavar=("OLD", "NEW"), help="two result files")
    compared.add_argument("--fail-under", type=float, metavar="SHARE", help="exit 1 where a speed ratio fell below")
    return parser


def main(argv: list[str] | None = None) -> int:
    usage = parser()
    arguments = usage.parse_args(argv)
    if arguments.compare:
        return compare.main(*arguments.compare, arguments.fail_under)
    try:
        settings = settings_of(arguments)
        selected = registry.select(settings, arguments.suite, arguments.operator, arguments.case)
    except ValueError as error:
        usage.error(str(error))
    if arguments.list:
        print(registry.listing(selected))
        return 0
    if settings.on_cuda and not torch.cuda.is_available():
        usage.error(f"--device {settings.device}: torch finds no GPU")
    if arguments.compile_only is not None:
        return first_calls(selected, settings, arguments.dtype, arguments.compile_only)
    name = arguments.name or ("" if arguments.suite or arguments.operator or arguments.case else "operators")
    if name and arguments.dtype != "float32":
        name += f"-{arguments.dtype}"
    run(selected, settings, arguments.dtype, "" if arguments.no_save else name)
    if not name and not arguments.no_save:
        print("\nnot saved, as this is a part only: --name NAME would", file=sys.stderr)
    return 0


def settings_of(arguments: argparse.Namespace) -> Settings:
    """Without roofs, which take a run to be measured.

    Raises:
        ValueError: what cannot be.
    """
    if arguments.fail_under is not None:
        raise ValueError("--fail-under goes with --compare OLD NEW")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", arguments.device):
        raise ValueError(f"--device must be cpu, cuda or cuda:i, got {arguments.device!r}")
    if arguments.dtype == "tf32" and arguments.device == "cpu":
        raise ValueError("--dtype tf32 needs a CUDA device, got cpu")
    for name in ("batch", "rounds"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(arguments, name)}")
    return Settings(
        torch.device(arguments.device),
        PRECISIONS[arguments.dtype].dtype,
        {},
        tuple(arguments.size),
        arguments.batch,
        arguments.rounds,
        arguments.compiled,
    )


def first_calls(selected: dict[str, list[Case]], settings: Settings, dtype: str, text: str) -> int:
    """Makes what is compiled compile, and prints the seconds that each took; 1 where nothing has such a name."""
    found = False
    with PRECISIONS[dtype].active():
        for case in itertools.chain(*selected.values()):
            contest = case.prepare(settings)
            for name, way in itertools.product(contest.contestants, contest.work):
                if text in name:
                    found, start = True, time.monotonic()
                    step = contest.contestants[name].call.step(way, contest.grad)
                    why = gate.refusal(step, lambda _: True, settings.first_call_limit, settings.device)
                    seconds = time.monotonic() - start
                    print(f"{case.name}, {name}, {way}: {seconds:.1f} s{f', {why}' if why else ''}", flush=True)
    if not found:
        print(f"no contestant's name contains {text!r}", file=sys.stderr)
    return int(not found)


def run(selected: dict[str, list[Case]], settings: Settings, dtype: str, name: str) -> None:
    """Measures and prints suite by suite; writes results/NAME-DEVICEKIND.json unless there is no name."""
    torch.manual_seed(0)
    device = settings.device
    with PRECISIONS[dtype].active(), gate.memory_limit(device):
        settings = dataclasses.replace(settings, roofs=harness.roofs(device, settings.dtype))
        environment = harness.environment(device)
        content = {"environment": environment, "dtype": dtype, "roofs": settings.roofs, "suites": {}}
        for suite, cases in selected.items():
            result = registry.SUITES[suite].run(suite, cases, settings, dtype)
            content["suites"][suite] = result
            print(f"\n{suite}, {dtype}\n{TABLES[suite](result)}", flush=True)
            if name:  # what is done stays where a later suite is cut short
                incomplete = harness.save(f"{name}-incomplete", device, content)
    if name:
        print("\nwritten:", os.path.relpath(harness.save(name, device, content)))
        incomplete.unlink()


if __name__ == "__main__":
    sys.exit(main())
