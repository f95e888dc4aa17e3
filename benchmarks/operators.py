"""``python -m benchmarks.operators``: the operators against what a user could run instead.

Every suite measures cases (an operator on a shape), and every case its alternatives in turns; only those whose outputs,
and gradients, agreed with float64 in the same run are reported. ``--list`` shows what there is. Results go to
benchmarks/results/, and ``python -m benchmarks.report`` makes pages from them.

``--compare OLD.json NEW.json`` sets two results of the same device side by side; with ``--fail-under 0.9`` it fails
where ours, relative to another alternative, has fallen below that share of its former speed.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import os
import sys
import time

import torch
from tqdm import tqdm

from . import cases, compare, measure, results, tables
from .measure import PRECISIONS, Case, Settings
from .options import check_device


def parser() -> argparse.ArgumentParser:
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m benchmarks.operators", description=__doc__, formatter_class=style)
    add, named = parser.add_argument, dict(action="append", default=[], metavar="NAME")
    add("--list", action="store_true", help="print suites, cases and alternatives, and stop")
    add("--suite", help=f"repeatable, as the next two; default: all of {', '.join(cases.SUITES)}", **named)
    add("--operator", help="partial_conv2d, …", **named)
    add("--case", "--layer", "--shape", help="Encode_1, 64x64, …", **named)
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--dtype", choices=PRECISIONS, default="float32", help="tf32: float32 multiplied as TF32, on CUDA")
    add("--size", type=int, nargs="+", default=[], help="image sides (default 256; layers on CUDA: 256 512 1024)")
    add("--batch", type=int, default=2, help="of the suites that take images")
    add("--rounds", type=int, default=7)
    add("--compiled", action="store_true", help="also alternatives that take minutes to compile")
    compile_only = "fill the compiler's caches by first calls of alternatives whose names contain TEXT, and stop"
    add("--compile-only", metavar="TEXT", help=compile_only)
    add("--name", help="of the result file, without dtype and device (default: operators, where all is measured)")
    add("--compare", nargs=2, metavar=("OLD", "NEW"), help="compare two result files, and stop")
    add("--fail-under", type=float, metavar="SHARE", help="with --compare: exit 1 where a speed ratio fell below")
    return parser


def main(argv: list[str] | None = None) -> int:
    usage = parser()
    arguments = usage.parse_args(argv)
    if arguments.compare:
        return compare.main(*arguments.compare, arguments.fail_under)
    try:
        settings = settings_of(arguments)
        selected = cases.select(settings, arguments.suite, arguments.operator, arguments.case)
    except ValueError as error:
        usage.error(str(error))
    if arguments.list:
        print(cases.listing(selected))
        return 0
    if settings.on_cuda and not torch.cuda.is_available():
        usage.error(f"--device {settings.device}: torch finds no GPU")
    with PRECISIONS[arguments.dtype].active(), measure.memory_limit(settings.device):
        if arguments.compile_only is not None:
            return first_calls(selected, settings, arguments.compile_only)
        name = arguments.name or ("" if arguments.suite or arguments.operator or arguments.case else "operators")
        run(selected, settings, arguments.dtype, name)
    return 0


def settings_of(arguments: argparse.Namespace) -> Settings:
    """Returns the settings without roofs, which are measured at the start of a run.

    Raises:
        ValueError: options that cannot be.
    """
    if arguments.fail_under is not None:
        raise ValueError("--fail-under goes with --compare OLD NEW")
    device = check_device(arguments.device)
    if arguments.dtype == "tf32" and arguments.device == "cpu":
        raise ValueError("--dtype tf32 needs a CUDA device, got cpu")
    for name in ("batch", "rounds"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(arguments, name)}")
    how = dict(batch=arguments.batch, rounds=arguments.rounds, compiled=arguments.compiled)
    return Settings(device, PRECISIONS[arguments.dtype].dtype, sizes=tuple(arguments.size), **how)


def first_calls(selected: dict[str, list[Case]], settings: Settings, text: str) -> int:
    """Makes the compiler compile, and prints the seconds that each alternative took; returns 1 where none has such a
    name."""
    found = False
    for case in itertools.chain(*selected.values()):
        prepared = case.prepare(settings)
        for name, which in itertools.product(prepared.alternatives, case.passes):
            if text in name:
                found, start = True, time.monotonic()
                step = functools.partial(prepared.alternatives[name].step, which, prepared.grad)
                why = measure.first_call(step, lambda _: True, settings.first_call_limit, settings.device)
                seconds = time.monotonic() - start
                print(f"{case.name}, {name}, {which}: {seconds:.1f} s{f', {why}' if why else ''}", flush=True)
    if not found:
        print(f"no alternative's name contains {text!r}", file=sys.stderr)
    return int(not found)


def run(selected: dict[str, list[Case]], settings: Settings, dtype: str, name: str) -> None:
    """Measures and prints suite by suite; writes results/NAME-DTYPE-DEVICE.json unless there is no name."""
    torch.manual_seed(0)
    device = settings.device
    settings = dataclasses.replace(settings, roofs=measure.roofs(device, settings.dtype))
    about = {suite: {"title": cases.SUITES[suite].title, "about": cases.SUITES[suite].about} for suite in selected}
    facts = measure.facts(device, dtype) | {"roofs": settings.roofs, "suites": about}
    name += f"-{dtype}" if name and dtype != "float32" else ""
    rows: list[measure.Row] = []
    for suite, some in selected.items():
        found: list[measure.Row] = []
        for case in tqdm(some, desc=suite, file=sys.stderr):
            found += measure.measure_case(case, settings)
        found = [{"suite": suite, **row} for row in [*found, *cases.SUITES[suite].totals(found)]]
        rows += found
        shown = [tables.full_table(found), *([tables.ratio_table(found)] if len(tables.names(found)) > 1 else [])]
        print(f"\n{suite}, {dtype}", *shown, sep="\n\n", flush=True)
        if name:  # keeps what is done where a later suite is cut short
            incomplete = results.write(f"{name}-incomplete", device, facts, rows)
    if name:
        print("\nwritten:", os.path.relpath(results.write(name, device, facts, rows)))
        incomplete.unlink()
    else:
        print("\nnot saved, as this is a part only: --name NAME would", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
