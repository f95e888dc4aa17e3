"""The attention suite: hole_attention against what a user could run instead, on the cases of issue 3, with its targets.

Per case and contestant: forward and forward + backward as a ratio to ours, and peak extra memory. Then how ours grows
with the map. The sizes are fixed, since targets belong to them: `--size` and `--batch` do not scale them.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention
from tqdm import tqdm

from msa_model.masks import free_form_mask
from msa_ops import hole_attention

from . import harness
from .attention_competitors import dense_hole_attention, flex_hole_attention, sdpa_hole_attention

Contestant = Callable[[Tensor, Tensor], Tensor]

OURS, DENSE, COMPILED, GATHERED = "ours", "N×N matrix", "N×N matrix, compiled", "gathered"
SDPA, FLEX, BEST = "SDPA + fold", "FlexAttention + fold", "best but the N×N matrix"
DIRECTIONS = FORWARD, BOTH = "forward", "forward_backward"
#: Error allowed against float64, in units of plain PyTorch's: outputs, gradients.
FACTORS = {FORWARD: 2.0, BOTH: 3.0}
#: Seconds that a contestant's first forward, and its first gradient, may take; compiling is most of it.
FIRST_CALL_LIMIT = 60.0
#: Seconds after which a case's rounds in one direction end early.
ROUNDS_LIMIT = 20.0


@dataclasses.dataclass(frozen=True)
class Case:
    """Feature maps with one irregular hole per sample."""

    shape: tuple[int, int, int, int]
    holes: tuple[float, ...]  # share of every sample
    enlarged: int = 1  # the hole is drawn smaller by this factor and enlarged
    needs_cuda: bool = False
    fits_dense: bool = True  # whether to make N×N matrices

    def mask(self) -> Tensor:
        """(N,1,H,W) bool, True = valid."""
        height, width = (side // self.enlarged for side in self.shape[2:])
        drawn = [
            free_form_mask(height, width, (hole - 0.006, hole + 0.006), 7 + i) for i, hole in enumerate(self.holes)
        ]
        return torch.stack(drawn).repeat_interleave(self.enlarged, 2).repeat_interleave(self.enlarged, 3)

    def contestants(self, device: torch.device) -> list[str]:
        """A map too large for N×N matrices is for growth: ours alone on a CPU, where the others would take too long."""
        if self.fits_dense:
            return [OURS, DENSE, COMPILED, GATHERED, SDPA, FLEX]
        return [OURS, GATHERED, SDPA, FLEX] if device.type == "cuda" else [OURS]


#: The large case has the small one's hole, enlarged, so that queries and keys both grow by exactly four.
CASES = {
    "64×64": Case((1, 128, 64, 64), (0.25,)),
    "mixed holes": Case((6, 256, 32, 32), (0.05, 0.15, 0.25, 0.35, 0.45, 0.60)),
    "128×128": Case((1, 128, 128, 128), (0.25,), enlarged=2, fits_dense=False),
    "half holes": Case((6, 128, 64, 64), (0.5,) * 6, needs_cuda=True),
}
SMALL, LARGE = "64×64", "128×128"

#: Issue 3, per dtype: (case or growth, contestant or quantity) -> what is bounded; bounds forward, forward + backward.
#: Ratios are to be at least this, memory and growth at most.
TARGETS: dict[str, dict[tuple[str, str], tuple[str, float | None, float | None]]] = {
    "float32": {
        ("64×64", DENSE): ("ratio", 10, 6),
        ("64×64", GATHERED): ("ratio", 2, 1.5),
        ("mixed holes", DENSE): ("ratio", None, 4),
        ("128×128", OURS): ("extra_mib", 64, 128),
        ("growth", "time"): ("growth", 18, 18),
        ("growth", "extra memory"): ("growth", 4.5, 4.5),
    },
    "bfloat16": {
        ("half holes", DENSE): ("ratio", 15, 10),
        ("half holes", BEST): ("ratio", 3, 2),
    },
}


def contestants() -> dict[str, Contestant]:
    """Fresh functions of features and mask; what is compiled is compiled for one shape, as a network would have it."""
    torch.compiler.reset()
    return {
        OURS: hole_attention,
        DENSE: dense_hole_attention,
        COMPILED: torch.compile(dense_hole_attention, fullgraph=True, dynamic=False),
        GATHERED: functools.partial(hole_attention, backend="reference"),
        SDPA: sdpa_hole_attention,
        FLEX: functools.partial(
            flex_hole_attention, attend=torch.compile(flex_attention, fullgraph=True, dynamic=False)
        ),
    }


def attention(device: torch.device, dtype: torch.dtype, size: int, batch: int, rounds: int) -> dict:
    """Issue 3's table. `size` and `batch` are the other suites'."""
    cases = {name: case for name, case in CASES.items() if device.type == "cuda" or not case.needs_cuda}
    rows = {}
    for name, case in tqdm(cases.items(), desc="attention", file=sys.stderr):
        runs = contestants()
        runs = {contestant: runs[contestant] for contestant in case.contestants(device)}
        rows[name] = measure(case, runs, device, dtype, rounds)
    return with_targets({"cases": rows, "growth": growth(rows[SMALL], rows[LARGE])}, str(dtype).removeprefix("torch."))


def measure(case: Case, runs: dict[str, Contestant], device: torch.device, dtype: torch.dtype, rounds: int) -> dict:
    """One case: what every contestant takes, or why it is not available."""
    mask = case.mask().to(device)
    x, grad = (torch.randn(case.shape, device=device).to(dtype) for _ in range(2))
    leaf = x.clone().requires_grad_()

    def gradient(run: Contestant, at: Tensor) -> Tensor:
        return torch.autograd.grad(run(at, mask), at, grad.to(at.dtype))[0]

    steps = {
        FORWARD: {name: torch.no_grad()(functools.partial(run, x, mask)) for name, run in runs.items()},
        BOTH: {name: functools.partial(gradient, run, leaf) for name, run in runs.items()},
    }
    # Where N×N matrices would not fit, the gathered form, whose equality with them the other cases show, is the judge.
    judge = dense_hole_attention if case.fits_dense else functools.partial(hole_attention, backend="reference")
    exact_at = x.double().requires_grad_()
    with torch.no_grad():
        results = {FORWARD: (judge(x, mask), judge(x.double(), mask))}
    results[BOTH] = gradient(judge, leaf), gradient(judge, exact_at)
    barred = {name: _barred({way: steps[way][name] for way in DIRECTIONS}, results) for name in runs}
    return {
        "shape": list(case.shape),
        "holes": [round(share, 3) for share in (~mask).flatten(1).double().mean(1).tolist()],
        "contestants": _timed(steps, barred, device, rounds),
    }


def _barred(steps: dict[str, Callable], results: dict[str, tuple[Tensor, Tensor]]) -> dict[str, str]:
    """Per direction the reason why it is not reported. Numbers of a wrong function are worth nothing, so a difference
    in one direction bars the other too, and so does a forward that fails."""
    reasons = {
        way: reason
        for way, step in steps.items()
        if (reason := harness.refusal(step, *results[way], FACTORS[way], FIRST_CALL_LIMIT))
    }
    if FORWARD in reasons or harness.DIFFERS in reasons.values():
        return dict.fromkeys(DIRECTIONS, reasons.get(FORWARD, harness.DIFFERS))
    return reasons


def _timed(
    steps: dict[str, dict[str, Callable]], barred: dict[str, dict[str, str]], device: torch.device, rounds: int
) -> dict[str, dict]:
    entries: dict[str, dict] = {name: {} for name in barred}
    for way in DIRECTIONS:
        running = {name: step for name, step in steps[way].items() if way not in barred[name]}
        timing = harness.interleave(running, device, rounds, warmup=1, limit=ROUNDS_LIMIT)
        for name in entries:
            if name not in running:
                entries[name][way] = {"unavailable": barred[name][way]}
                continue
            entry = {"ms": round(timing[name].median, 3)}
            if OURS in running:
                entry["ratio"] = round(timing[name].median / timing[OURS].median, 3)
            entry["extra_mib"] = round(harness.peak_extra_bytes(running[name], device, warm=True) / 2**20, 1)
            entries[name][way] = entry
    return entries


def growth(small: dict, large: dict) -> dict[str, dict]:
    """How often ours at the small case goes into ours at the large one, where both are available."""
    result: dict[str, dict] = {}
    for quantity, key in (("time", "ms"), ("extra memory", "extra_mib")):
        result[quantity] = {}
        for way in DIRECTIONS:
            before, after = (row["contestants"][OURS][way] for row in (small, large))
            available = key in before and key in after
            result[quantity][way] = {"growth": round(after[key] / before[key], 2)} if available else {}
    return result


def with_targets(suite: dict, dtype: str) -> dict:
    """The suite with every target of the dtype beside the value it is for, under "target"."""
    for (place, row), (quantity, *bounds) in TARGETS.get(dtype, {}).items():
        if place == "growth":
            entries = suite["growth"][row]
        elif place not in suite["cases"]:
            continue
        else:
            contestants = suite["cases"][place]["contestants"]
            if row == BEST:
                contestants[BEST] = best_of_the_rest(contestants)
            entries = contestants[row]
        for way, bound in zip(DIRECTIONS, bounds, strict=True):
            if bound is not None:
                entries[way]["target"] = {quantity: bound}
    return suite


def best_of_the_rest(contestants: dict[str, dict]) -> dict[str, dict]:
    """The smallest ratio of all but ours and the eager N×N matrix, and whose it is."""
    result = {}
    for way in DIRECTIONS:
        ratios = {
            name: entry[way]["ratio"]
            for name, entry in contestants.items()
            if name not in (OURS, DENSE) and "ratio" in entry[way]
        }
        best = min(ratios, key=ratios.get, default=None)
        result[way] = {"of": best, "ratio": ratios[best]} if best else {"unavailable": "no other is"}
    return result
