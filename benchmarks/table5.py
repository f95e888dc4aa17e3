"""``python -m benchmarks.table5``: training time per image of PIC, PConv, EdgeConnect and Ours (Table 5, SPEC 10).

A step is forward, all losses, every backward and every optimiser step, on data that is on the device already. PConv and
Ours run on reference operators, on fused ones, and both compiled. Variants of one system start from the same weights,
and no number is reported of one whose losses or gradients are not the reference's. The loader is measured apart.
Ctrl-C keeps what is done. Results go to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import math
import re
import sys

import torch

from . import gate, harness, loader, names, table5_report
from .harness import significant
from .precision import PRECISIONS
from .systems import SYSTEMS, make_batch
from .systems.system import HOLE
from .table5_contest import BASELINES, FUSED, REFERENCE, Contest, Variant, variants_of

#: Per system the milliseconds per image that the paper gives, and the GFLOP per image that the published step counts.
PUBLISHED = {
    "pic": {"ms": 6.3, "gflop": 138},
    "pconv": {"ms": 32.75, "gflop": 201},
    "edgeconnect-edge": {"ms": 56.5, "gflop": 343},
    "edgeconnect-inpainting": {"ms": 84, "gflop": 654},
    "edgeconnect": {"ms": 140.5, "gflop": 997},
    "ours": {"ms": 67.5, "gflop": 288},
}
#: EdgeConnect's two stages are trained one after the other; the paper adds them up.
EDGECONNECT = tuple(variants_of(f"edgeconnect-{stage}")[0] for stage in ("edge", "inpainting"))
USUAL = {"size": 256, "batch": 6, "rounds": 5}
QUICK = {"size": 128, "batch": 2, "rounds": 3}
#: Seconds in which a quick run's variants must be ready; of its six minutes that leaves two for rounds and loader.
QUICK_COMPILE_LIMIT = 240
LOADER_WORKERS = 2
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
    arguments = parser.parse_args(argv)
    for name in arguments.system or []:
        if name not in SYSTEMS:
            parser.error(names.unknown("system", name, SYSTEMS))
    for name, value in (QUICK if arguments.quick else USUAL).items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
        elif getattr(arguments, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(arguments, name)}")
    if arguments.size < 96 or arguments.size % 32:
        parser.error(f"--size must be a multiple of 32 from 96 on, got {arguments.size}")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", arguments.device):
        parser.error(f"--device must be cpu, cuda or cuda:i, got {arguments.device!r}")
    if arguments.device != "cpu" and not torch.cuda.is_available():
        parser.error(f"--device {arguments.device}: torch finds no GPU")
    if arguments.precision == "tf32" and arguments.device == "cpu":
        parser.error("--precision tf32 needs a CUDA device")
    return arguments


def rows(contest: Contest, variants: list[Variant], roof: float) -> list[dict]:
    """What is known of every variant so far, in order; EdgeConnect's sum after its stages."""
    result = []
    for variant in variants:
        if variant in contest.facts:
            result.append(_row(contest, variant.system, (variant,), roof))
        if variant == EDGECONNECT[-1] and all(_timed_in(contest, (stage,)) for stage in EDGECONNECT):
            result.append(_row(contest, "edgeconnect", EDGECONNECT, roof))
    return result


def _row(contest: Contest, name: str, parts: tuple[Variant, ...], roof: float) -> dict:
    """One row of the table, of variants that are trained one after the other: system, operators, paper (ms, gflop and
    the ratio to Ours), then ``unavailable`` or the contest's facts with, once it was timed, ms and quartiles_ms per
    image, rounds, tflops, roof_share, ratio (to each baseline that took turns with it) and apart (whether for want of
    memory nothing else did). `roof` is in TFLOP/s."""
    published = PUBLISHED[name] | {"ratio": significant(PUBLISHED[name]["ms"] / PUBLISHED["ours"]["ms"])}
    row = {"system": name, "operators": parts[0].label, "paper": published}
    facts = [contest.facts[part] for part in parts]
    if "unavailable" in facts[0]:
        return row | facts[0]
    row |= facts[0] | {
        "parameters": sum(fact["parameters"] for fact in facts),
        "gflop": significant(sum(fact["gflop"] for fact in facts)),
        "extra_mib": max(fact["extra_mib"] for fact in facts),
    }
    if turns := _timed_in(contest, parts):
        # An interrupted round may lack some of them.
        steps = [sum(times) for times in zip(*(turns[part] for part in parts), strict=False)]
        timing = harness.timing_of([milliseconds / len(contest.batch) for milliseconds in steps])
        tflops = row["gflop"] / timing.median
        row |= {
            "ms": significant(timing.median),
            "quartiles_ms": [significant(timing.lower), significant(timing.upper)],
            "rounds": len(steps),
            "apart": turns is not contest.turns[0],
            "tflops": significant(tflops),
            "roof_share": significant(tflops / roof),
            "ratio": {
                baseline.operators: significant(
                    timing.median * len(contest.batch) / harness.timing_of(turns[baseline]).median
                )
                for baseline in BASELINES
                if turns.get(baseline)
            },
        }
    return row


def _timed_in(contest: Contest, parts: tuple[Variant, ...]) -> dict[Variant, list[float]] | None:
    """The turns that all the parts took together."""
    return next((turns for turns in contest.turns if all(turns.get(part) for part in parts)), None)


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    device, precision = torch.device(arguments.device), PRECISIONS[arguments.precision]
    systems = [name for name in SYSTEMS if name in (arguments.system or SYSTEMS)]
    compiled = () if arguments.no_compile else (FUSED,) if arguments.quick else (REFERENCE, FUSED)
    variants = [variant for name in systems for variant in variants_of(name, compiled)]
    with precision.active():
        roofs = harness.roofs(device, precision.dtype)
    content = {
        "environment": harness.environment(device),
        "quick": arguments.quick,
        "size": arguments.size,
        "batch": arguments.batch,
        "hole": HOLE,
        "precision": arguments.precision,
        "roofs": roofs,
    }
    batch = make_batch(arguments.size, arguments.batch, device)
    contest = Contest(batch, precision, arguments.rounds, QUICK_COMPILE_LIMIT if arguments.quick else math.inf)
    complete = False
    try:
        contest.measure(variants)
        if not arguments.no_loader:
            content["loader"] = _loader(arguments)
        complete = True
    except KeyboardInterrupt:
        print("interrupted: the table holds what was done", file=sys.stderr)
    content |= {"complete": complete, "rows": rows(contest, variants, roofs["tflops"])}
    print(table5_report.terminal(content))
    if not arguments.no_save:
        # What is not complete must not take the place of what is.
        name = "table5" + "-quick" * arguments.quick + "-incomplete" * (not content["complete"])
        name += f"-{arguments.precision}" * (arguments.precision != "float32")
        print("\nwritten:", harness.save(name, device, content).relative_to(harness.ROOT))
    return 0 if content["complete"] else 130


def _loader(arguments: argparse.Namespace) -> dict:
    """Milliseconds per image that the training loader takes, for each of its sources."""
    short = {"seconds": 2, "photos": 12, "masks": 6} if arguments.quick else {"seconds": 8}
    try:
        sources = loader.measure(arguments.size, arguments.batch, LOADER_WORKERS, **short)
    except (OSError, RuntimeError) as error:  # disk, shared memory, a worker: no reason to lose the steps
        return {"workers": LOADER_WORKERS, "unavailable": gate.reason(error)}
    return {
        "workers": LOADER_WORKERS,
        "ms": {source["source"]: significant(1e3 / source["images_per_s"]) for source in sources},
    }


if __name__ == "__main__":
    sys.exit(main())
