"""``python -m benchmarks.table5``: training time per image of PIC, PConv, EdgeConnect and Ours (the paper's Table 5).

A step is forward, all losses, every backward and every optimiser step, on data that is on the device already. PConv and
Ours run on reference operators, on fused ones, and both compiled. Variants of one system start from the same weights,
and those whose losses or gradients differ from the reference's are not reported. The loader is measured apart, before
the steps. Ctrl-C keeps what is done. Results are written to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import sys

import torch

from .. import measure, options, results
from ..measure import PRECISIONS
from . import loader, report
from .comparison import FUSED, REFERENCE, Comparison, variants_of
from .systems import HOLE, SYSTEMS, make_batch

USUAL = {"size": 256, "batch": 6, "rounds": 5}
QUICK = {"size": 128, "batch": 2, "rounds": 3}
#: Seconds in which the variants must be ready: no limit but for a quick run, which leaves two of its six minutes for
#: rounds and loader.
COMPILE_LIMIT, QUICK_COMPILE_LIMIT = 24 * 3600, 240
#: float16 needs loss scaling, which changes what a step is.
CHOICES = [name for name in PRECISIONS if name != "float16"]


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.table5", description=__doc__.split("\n\n")[0])
    parser.add_argument("--system", action="append", metavar="NAME", help=f"one or more of {', '.join(SYSTEMS)}")
    parser.add_argument("--size", type=int, help="image side, a multiple of 32 from 96 on (default 256)")
    parser.add_argument("--batch", type=int, help="images per step (default 6)")
    parser.add_argument("--rounds", type=int, help="timed steps of every variant (default 5)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=CHOICES, default="float32", help="tf32: on CUDA")
    parser.add_argument("--no-compile", action="store_true", help="leave the compiled variants out")
    quick = "reduced run: {size}x{size}, batch {batch}, {rounds} rounds, reference not compiled".format(**QUICK)
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--no-loader", action="store_true", help="leave the loader out, which takes half a minute")
    parser.add_argument("--no-save", action="store_true", help="print only")
    parser.set_defaults(**(QUICK if parser.parse_args(argv).quick else USUAL))
    arguments = parser.parse_args(argv)
    for name in arguments.system or []:
        if name not in SYSTEMS:
            parser.error(options.unknown("system", name, SYSTEMS))
    for name in USUAL:
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(arguments, name)}")
    if arguments.size < 96 or arguments.size % 32:
        parser.error(f"--size must be a multiple of 32 from 96 on, got {arguments.size}")
    try:
        device = options.check_device(arguments.device)
    except ValueError as error:
        parser.error(str(error))
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error(f"--device {arguments.device}: torch finds no GPU")
    if arguments.precision == "tf32" and device.type == "cpu":
        parser.error("--precision tf32 needs a CUDA device")
    return arguments


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    size, batch, quick = arguments.size, arguments.batch, arguments.quick
    device, precision = torch.device(arguments.device), PRECISIONS[arguments.precision]
    compiled = () if arguments.no_compile else (FUSED,) if quick else (REFERENCE, FUSED)
    systems = [name for name in SYSTEMS if name in (arguments.system or SYSTEMS)]
    variants = [variant for name in systems for variant in variants_of(name, compiled)]
    with precision.active():
        roofs = measure.roofs(device, precision.dtype)
    facts = measure.facts(device, arguments.precision) | {"quick": quick, "size": size, "batch": batch}
    facts |= {"hole": HOLE, "roofs": roofs, "complete": False}
    compile_limit = QUICK_COMPILE_LIMIT if quick else COMPILE_LIMIT
    comparison = Comparison(make_batch(size, batch, device), precision, arguments.rounds, compile_limit)
    loader_rows = []
    try:
        if not arguments.no_loader:
            facts["loader_workers"] = loader.WORKERS
            loader_rows = loader.rows(size, batch, seconds=2 if quick else 8)
        comparison.run(variants)
        facts["complete"] = True
    except KeyboardInterrupt:
        print("interrupted: the table holds what was done", file=sys.stderr)
    # An incomplete run must not replace a complete one.
    name = "table5" + "-quick" * quick + "-incomplete" * (not facts["complete"])
    name += f"-{arguments.precision}" * (arguments.precision != "float32")
    rows = comparison.rows(roofs["tflops"]) + loader_rows
    print(report.section(results.Result(name, facts, rows)))
    if not arguments.no_save:
        print("\nwritten:", results.write(name, device, facts, rows))
    return 0 if facts["complete"] else 130


if __name__ == "__main__":
    sys.exit(main())
