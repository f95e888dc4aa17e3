"""hole_attention on fixed maps: against what a user could run instead, with and without shift propagation, and on maps
that grow until memory or patience ends.

The sizes are fixed, since targets belong to them: ``--size`` and ``--batch`` do not change them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from msa_ops import hole_attention, shift_attention

from ..measure import BOTH, FORWARD, OURS, Alternative, Case, Prepared, Settings, Suite
from .attention_alternatives import dense_hole_attention, flex_hole_attention, sdpa_hole_attention
from .generator_layers import brush_mask

HoleAttention = Callable[[Tensor, Tensor], Tensor]

DENSE, COMPILED, GATHERED = "N×N matrix", "N×N matrix, compiled", "gathered"
SDPA, FLEX, WITHOUT = "SDPA + fold", "FlexAttention + fold", "ours, k = 0"
ALL = (OURS, DENSE, COMPILED, GATHERED, SDPA, FLEX)
#: Those that are not compiled, which on a GPU takes up to a minute per alternative, and need no N×N matrix.
EAGER = (OURS, GATHERED, SDPA)

gathered_hole_attention = functools.partial(hole_attention, backend="reference")


def implementations() -> dict[str, HoleAttention]:
    """Returns functions of features and mask. They are compiled afresh and for one shape, as for a network."""
    torch.compiler.reset()
    flex = torch.compile(flex_attention, fullgraph=True, dynamic=False)
    return {
        OURS: hole_attention,
        DENSE: dense_hole_attention,
        COMPILED: torch.compile(dense_hole_attention, fullgraph=True, dynamic=False),
        GATHERED: gathered_hole_attention,
        SDPA: sdpa_hole_attention,
        FLEX: functools.partial(flex_hole_attention, attend=flex),
        WITHOUT: functools.partial(hole_attention, radius=0),
    }


@dataclasses.dataclass(frozen=True)
class Map:
    """Feature maps with one irregular hole per sample. `holes`: the share of hole in every sample; `enlarged`: the hole
    is drawn smaller by this factor and enlarged."""

    shape: tuple[int, int, int, int]
    holes: tuple[float, ...]
    enlarged: int = 1

    def mask(self) -> Tensor:
        """Draws (N,1,H,W) bool, True = valid."""
        height, width = (side // self.enlarged for side in self.shape[2:])
        drawn = [brush_mask(height, width, share, 7 + i) for i, share in enumerate(self.holes)]
        return torch.stack(drawn).repeat_interleave(self.enlarged, 2).repeat_interleave(self.enlarged, 3)

    def inputs(self, settings: Settings) -> dict[str, Tensor]:
        """Returns random features, which ask for a gradient, and the mask."""
        features = torch.randn(self.shape, device=settings.device).to(settings.dtype).requires_grad_()
        return {"features": features, "mask": self.mask().to(settings.device)}

    def case(self, name: str, names: tuple[str, ...], **options: object) -> Case:
        """Makes the case of these alternatives. One without backward is compared at some pixels."""
        shares = dict.fromkeys(f"{100 * share:.0f}" for share in self.holes)
        shape = f"{'×'.join(map(str, self.shape))}, {', '.join(shares)} %"

        def prepare_map(settings: Settings) -> Prepared:
            runs = implementations()
            sampled = options.get("passes") == (FORWARD,)
            return prepare(self.inputs(settings), {name: runs[name] for name in names}, sampled)

        return Case(name, "hole_attention", shape, names, prepare_map, **options)


def prepare(inputs: dict[str, Tensor], runs: Mapping[str, HoleAttention], sampled: bool = False) -> Prepared:
    """Compares with the form with N×N matrices; on a map too large for those the gathered form, which the other
    cases show to be equal; or, `sampled`, the gathered form at some pixels."""
    features, mask = inputs.values()
    if sampled:
        pixels = sample_pixels(mask)
        at_pixels = functools.partial(hole_attention_at, pixels)
        reference = Alternative(at_pixels, inputs, part=lambda output: output.flatten(2)[:, :, pixels])
    else:
        reference = Alternative(gathered_hole_attention if features.shape[2] > 64 else dense_hole_attention, inputs)
    without = Alternative(functools.partial(dense_hole_attention, radius=0), inputs)
    alternatives = {
        name: Alternative(run, inputs, without if name == WITHOUT else reference) for name, run in runs.items()
    }
    return Prepared(alternatives, flop_of(features, mask), grad=torch.randn_like(features))


def sample_pixels(mask: Tensor, count: int = 128) -> Tensor:
    """Returns at most `count` flat indices, half spread evenly over the holes of the first sample, half over the
    background; on the device of mask."""
    flat = mask[0].flatten()
    parts = [(flat == value).nonzero()[:, 0] for value in (False, True)]
    return torch.cat([part[:: max(1, -(-len(part) // (count // 2)))] for part in parts])


def hole_attention_at(pixels: Tensor, x: Tensor, mask: Tensor) -> Tensor:
    """Returns (N,C,P): hole attention at these flat indices, for which the pixels and those around them are the only
    queries. So the reference also suffices for large maps."""
    chosen = torch.zeros_like(mask, dtype=x.dtype)
    chosen.flatten(2)[:, :, pixels] = 1
    queries = ~mask & (F.max_pool2d(chosen, 3, stride=1, padding=1) > 0)
    unit = F.normalize(x, dim=1, eps=1e-6)
    attended = shift_attention(unit, unit, x, queries, mask, scale=10.0, radius=1, backend="reference")
    return torch.where(mask, x, attended).flatten(2)[:, :, pixels]


def flop_of(features: Tensor, mask: Tensor) -> dict[str, int]:
    """Counts the two products Q Kᵀ and s' V over hole × background pairs, 2·2·F·B·C per sample; with the backward's
    five, 3.5 times as many. Without a hole nothing is multiplied, and there is no work to count."""
    valid = mask.flatten(1).sum(1)
    flop = 2 * 2 * int((valid * (mask[0].numel() - valid)).sum()) * features.shape[1]
    return {FORWARD: flop, BOTH: 7 * flop // 2} if flop else {}


# ---- suites ----------------------------------------------------------------------------------------------------------

#: By case a map and its alternatives on a CPU and on CUDA, without those that would take too long.
Table = dict[str, tuple[Map, tuple[str, ...], tuple[str, ...]]]

ONE, SIX = Map((1, 128, 64, 64), (0.30,)), Map((6, 128, 64, 64), (0.30,) * 6)
#: The network's attention stage is there for one image and for the paper's batch: a single map keeps a GPU busy for
#: less time than the launch of a kernel takes. The large maps have the small one's hole, enlarged, so that queries and
#: keys grow by exactly four each.
CASES: Table = {
    "64×64": (Map((1, 128, 64, 64), (0.25,)), ALL, (OURS, DENSE, GATHERED, SDPA)),
    "64×64 30%": (ONE, EAGER, EAGER),
    "64×64 30%, batch 6": (SIX, (), ALL),
    "mixed holes": (Map((6, 256, 32, 32), (0.05, 0.15, 0.25, 0.35, 0.45, 0.60)), ALL, ALL),
    "128×128": (Map((1, 128, 128, 128), (0.25,), enlarged=2), (OURS,), EAGER),
    "256×256": (Map((1, 128, 256, 256), (0.25,), enlarged=4), (), EAGER),
    "half holes": (Map((6, 128, 64, 64), (0.5,) * 6), (), ALL),
}
SHIFTS: Table = {
    "64×64": (ONE, (OURS, WITHOUT), (OURS, WITHOUT)),
    "64×64, batch 6": (SIX, (), (OURS, WITHOUT)),
    "32×32": (Map((6, 256, 32, 32), (0.30,) * 6), (OURS, WITHOUT), (OURS, WITHOUT)),
}


def cases(table: Table, settings: Settings) -> list[Case]:
    found = {name: (one, on_cuda if settings.on_cuda else on_cpu) for name, (one, on_cpu, on_cuda) in table.items()}
    return [one.case(name, names) for name, (one, names) in found.items() if names]


def growing(settings: Settings) -> list[Case]:
    """Enlarges one hole, a quarter of the map. What finds no memory, or is not ready in time, ends there.
    FlexAttention, which compiles anew for each size, runs on CUDA only."""
    names = (OURS, DENSE, GATHERED, SDPA, *((FLEX,) if settings.on_cuda else ()))
    maps = {side: Map((1, 128, side, side), (0.25,), enlarged=side // 32) for side in (32, 64, 128, 256)}
    return [one.case(f"{side}×{side}", names, passes=(FORWARD,), columns={"side": side}) for side, one in maps.items()]


SUITE = Suite(
    "hole attention",
    "k = 1, irregular holes, random features. *N×N matrix* is Eqs. 6-8 as they are written down in PyTorch, *compiled* "
    "the same under `torch.compile` (compile time does not count), *gathered* our plain reference on hole × background "
    "pixels; the *fold* forms let Eq. 8 act on unfolded values.",
    functools.partial(cases, CASES),
)
SHIFT_PROPAGATION = Suite(
    "shift propagation",
    "Our own attention with shift propagation (k = 1) against the same without (k = 0).",
    functools.partial(cases, SHIFTS),
)
SCALING = Suite(
    "attention on growing maps",
    "Forward, 128 channels, a quarter of the map is hole.",
    growing,
)
