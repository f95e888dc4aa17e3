"""``python -m benchmarks.operators``: the operators against what a user could run instead.

Suites: ``layers`` (the generator's 16 partial convolutions), ``attention`` (hole_attention on fixed cases, whatever
``--size`` and ``--batch`` are), ``generator`` (the whole network's forward), ``training`` (a training step),
``upcat-rule`` (where the decoder's four-phase form starts to win).
Results go to benchmarks/results/, and ``python -m benchmarks.report`` puts them into the README.
"""

from __future__ import annotations

import argparse
import functools
import sys

import torch
from tqdm import tqdm

from msa_model import Generator
from msa_model.masks import free_form_mask
from msa_ops import partial_conv2d_upcat, partial_conv_upcat

from . import harness
from .attention import attention
from .layers import layer_cases
from .report import TABLES
from .training import training

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
HOLE = (0.2, 0.3)


def layers(device: torch.device, dtype: torch.dtype, size: int, batch: int, rounds: int) -> dict:
    """Every layer, forward and forward+backward: bare F.conv2d on a ready concatenation, ours, C-channel masks."""
    rows = []
    for case in tqdm(layer_cases(size, batch, device, dtype, HOLE), total=16, desc="layers", file=sys.stderr):
        with torch.no_grad():
            exact, plain = case.exact(), case.plain()
            passed = {
                name: harness.agrees(case.contestants[name](), plain, exact) for name in ("ours", "channel masks")
            }
            forward = harness.interleave(case.contestants, device, rounds)
            memory = {name: harness.peak_extra_bytes(run, device) for name, run in case.contestants.items()}
        grad = torch.randn(exact.shape).to(device, dtype, memory_format=torch.channels_last)

        def step(name: str, case=case, grad=grad):
            return lambda: torch.autograd.grad(case.contestants[name](), case.leaves[name], grad)

        both = harness.interleave({name: step(name) for name in case.contestants}, device, rounds)
        rows.append(
            {
                "layer": case.name,
                "shape": case.shape,
                "passed": passed,
                "forward_ms": {name: round(t.median, 3) for name, t in forward.items()},
                "forward_backward_ms": {name: round(t.median, 3) for name, t in both.items()},
                "input_bytes": case.concat.numel() * case.concat.element_size(),
                "extra_bytes": memory,
            }
        )
    return {"size": size, "batch": batch, "hole": HOLE, "rows": rows, "sum": _sums(rows)}


def _sums(rows: list[dict]) -> dict:
    """Ratios of the sums over layers, or why they are not given."""
    failed = [row["layer"] for row in rows if not row["passed"]["ours"]]
    if failed:
        return {"failed": failed}
    result = {}
    for direction in ("forward_ms", "forward_backward_ms"):
        total = {name: sum(row[direction][name] for row in rows) for name in rows[0][direction]}
        result[direction.removesuffix("_ms")] = {
            "ours / bare conv": round(total["ours"] / total["bare conv"], 3),
            "channel masks / ours": round(total["channel masks"] / total["ours"], 3),
            **{f"{name} ms": round(value, 1) for name, value in total.items()},
        }
    return result


def generator(device: torch.device, dtype: torch.dtype, size: int, batch: int, rounds: int) -> dict:
    """The network's forward on fused and on reference operators, whole and without its attention stages."""
    result = {}
    for name, levels in (("whole", (4, 3)), ("without attention", ())):
        torch.manual_seed(0)
        networks = {}
        for backend in ("auto", "reference"):
            network = Generator(attention_levels=levels, backend=backend).eval()
            if networks:
                network.load_state_dict(networks["auto"].state_dict())
            networks[backend] = network.to(device, dtype, memory_format=torch.channels_last)
        image = torch.rand(batch, 3, size, size).to(device, dtype, memory_format=torch.channels_last)
        mask = torch.stack([free_form_mask(size, size, HOLE, 7 + i) for i in range(batch)]).to(device)
        with torch.inference_mode():
            fused, plain = (networks[backend](image, mask) for backend in ("auto", "reference"))
            exact = networks["reference"].double()(image.double(), mask)
            networks["reference"].to(dtype)
            passed = harness.agrees(fused, plain, exact)
            contestants = {backend: functools.partial(network, image, mask) for backend, network in networks.items()}
            timing = harness.interleave(contestants, device, rounds)
        result[name] = {
            "passed": passed,
            "fused ms": round(timing["auto"].median, 1),
            "reference ms": round(timing["reference"].median, 1),
            "reference / fused": round(timing["reference"].median / timing["auto"].median, 3),
        }
    return {"size": size, "batch": batch, "hole": HOLE, "rows": result}


def upcat_rule(device: torch.device, dtype: torch.dtype, size: int, batch: int, rounds: int) -> dict:
    """Four-phase form against concatenation, over map sizes and widths: the evidence for phases_win."""
    rows = []
    for channels in (64, 256, 512):
        for side in (1, 2, 4, 6, 8, 12, 16, 32):
            if device.type == "cpu" and channels * side > 8192:
                continue
            layout = dict(device=device, dtype=dtype, memory_format=torch.channels_last)
            low = torch.randn(batch, channels, side, side).to(**layout)
            skip = torch.randn(batch, channels, 2 * side, 2 * side).to(**layout)
            weight = torch.randn(channels, 2 * channels, 3, 3).to(**layout)
            bias = torch.randn(channels).to(device, dtype)
            low_mask = torch.ones(batch, 1, side, side, dtype=torch.bool, device=device)
            skip_mask = torch.ones(batch, 1, 2 * side, 2 * side, dtype=torch.bool, device=device)

            def run(threshold: int, arguments=(low, low_mask, skip, skip_mask, weight, bias)):
                def once():
                    previous = partial_conv_upcat.MIN_SMALL_PIXELS
                    partial_conv_upcat.MIN_SMALL_PIXELS = threshold
                    try:
                        return partial_conv2d_upcat(*arguments)[0]
                    finally:
                        partial_conv_upcat.MIN_SMALL_PIXELS = previous

                return once

            with torch.inference_mode():
                timing = harness.interleave({"phases": run(0), "concat": run(2**62)}, device, rounds)
            rows.append(
                {
                    "channels": channels,
                    "small pixels": batch * side * side,
                    "concat / phases": round(timing["concat"].median / timing["phases"].median, 3),
                    "rule picks": "phases" if partial_conv_upcat.phases_win(low) else "concat",
                }
            )
    return {"batch": batch, "rows": rows}


SUITES = {
    "layers": layers,
    "attention": attention,
    "generator": generator,
    "training": training,
    "upcat-rule": upcat_rule,
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.operators", description=__doc__.split("\n\n")[0])
    parser.add_argument("--suite", choices=SUITES, action="append", help="one or more; default: all")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--size", type=int, default=256, help="image side")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--name", default="operators", help="of the result file; the dtype and the device are added")
    parser.add_argument("--no-save", action="store_true", help="print only")
    arguments = parser.parse_args(argv)
    device, dtype = torch.device(arguments.device), DTYPES[arguments.dtype]
    torch.manual_seed(0)
    content = {"dtype": arguments.dtype, "roofs": harness.roofs(device, dtype)}
    for suite in arguments.suite or SUITES:
        content[suite] = SUITES[suite](device, dtype, arguments.size, arguments.batch, arguments.rounds)
        sizes = "" if suite == "attention" else f", batch {arguments.batch}, {arguments.size}x{arguments.size}"
        print(f"\n{suite}, {arguments.dtype}{sizes}")
        print(TABLES[suite](content[suite]))
    if not arguments.no_save:
        name = arguments.name if arguments.dtype == "float32" else f"{arguments.name}-{arguments.dtype}"
        print("\nwritten:", harness.save(name, device, content).relative_to(harness.RESULTS.parent.parent))
    return 0


if __name__ == "__main__":
    sys.exit(main())
