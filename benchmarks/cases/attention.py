"""hole_attention on fixed maps: against what a user could run instead, with and without shift propagation, and on maps
that grow until memory or patience ends.

The sizes are fixed, since targets belong to them: ``--size`` and ``--batch`` do not change them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from msa_ops import hole_attention

from ..measure import BOTH, FORWARD, OURS, Alternative, Case, Prepared, Reference, Row, Settings, Work, free_memory
from .attention_alternatives import dense_hole_attention, flex_hole_attention, sdpa_hole_attention
from .attention_definition import hole_attention_at, sample_pixels
from .generator_layers import brush_mask
from .suite import Suite

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

    def tensors(self, settings: Settings) -> tuple[Tensor, Tensor]:
        """Returns random features, which ask for a gradient, and the mask."""
        features = torch.randn(self.shape, device=settings.device).to(settings.dtype)
        return features.requires_grad_(), self.mask().to(settings.device)

    def case(self, name: str, names: tuple[str, ...], **options: object) -> Case:
        """Makes the case of these alternatives. One without backward is compared with the definition at some pixels."""
        shares = dict.fromkeys(f"{100 * share:.0f}" for share in self.holes)
        shape = f"{'×'.join(map(str, self.shape))}, {', '.join(shares)} %"
        sampled = options.get("passes") == (FORWARD,)

        def prepare_map(settings: Settings) -> Prepared:
            runs = implementations()
            return prepare(*self.tensors(settings), {name: runs[name] for name in names}, sampled)

        return Case(name, "hole_attention", shape, names, prepare_map, **options)


def prepare(features: Tensor, mask: Tensor, runs: Mapping[str, HoleAttention], sampled: bool = False) -> Prepared:
    """Compares with the form with N×N matrices; on a map too large for those the gathered form, which the other
    cases show to be equal; or, `sampled`, the definition."""
    reference = gathered_hole_attention if features.shape[2] > 64 else dense_hole_attention
    expected = sampled_reference(features, mask) if sampled else reference_of(reference, features, mask)
    references = dict.fromkeys(runs, expected)
    if WITHOUT in runs:
        references[WITHOUT] = reference_of(functools.partial(dense_hole_attention, radius=0), features, mask)
    return Prepared(
        {name: alternative(run, features, mask, references[name]) for name, run in runs.items()},
        work_of(features, mask),
        grad=torch.randn_like(features),
    )


def alternative(run: HoleAttention, features: Tensor, mask: Tensor, reference: Reference | None = None) -> Alternative:
    return Alternative(functools.partial(run, features, mask), {"features": features}, reference)


def reference_of(run: HoleAttention, features: Tensor, mask: Tensor) -> Reference:
    exact = features.detach().double().requires_grad_()
    return Reference(alternative(run, features, mask), alternative(run, exact, mask))


def sampled_reference(features: Tensor, mask: Tensor) -> Reference:
    """Computes the output at some of the pixels, by the definition; for maps of any size, without gradients."""
    pixels, inputs = sample_pixels(mask), (features, features.detach().double())
    plain, exact = (Alternative(functools.partial(hole_attention_at, pixels, x, mask)) for x in inputs)
    return Reference(plain, exact, lambda output: output.flatten(2)[:, :, pixels])


def work_of(features: Tensor, mask: Tensor) -> dict[str, Work]:
    """Counts the two products Q Kᵀ and s' V over hole × background pairs, 2·2·F·B·C per sample; with the backward's
    five, 3.5 times as many. Counts bytes of features, mask and output, and for the backward of the output's gradient,
    features and their gradient. Without a hole nothing is multiplied, and there is no work to count."""
    valid = mask.flatten(1).sum(1)
    pairs = int((valid * (mask[0].numel() - valid)).sum())
    flop = 2 * 2 * pairs * features.shape[1]
    numbers = features.numel() * features.element_size()
    forward = 2 * numbers + mask.numel()
    return {FORWARD: Work(flop, forward), BOTH: Work(7 * flop // 2, forward + 3 * numbers)} if pairs else {}


# ---- against the others ----------------------------------------------------------------------------------------------

ONE, SIX = Map((1, 128, 64, 64), (0.30,)), Map((6, 128, 64, 64), (0.30,) * 6)
#: By case its map and its alternatives on a CPU and on CUDA, without those that would take too long. The network's
#: attention stage is there for one image and for the paper's batch: a single map keeps a GPU busy for less time than
#: the launch of a kernel takes. The large maps have the small one's hole, enlarged, so that queries and keys grow by
#: exactly four each.
CASES: dict[str, tuple[Map, tuple[str, ...], tuple[str, ...]]] = {
    "64×64": (Map((1, 128, 64, 64), (0.25,)), ALL, (OURS, DENSE, GATHERED, SDPA)),
    "64×64 30%": (ONE, EAGER, EAGER),
    "64×64 30%, batch 6": (SIX, (), ALL),
    "mixed holes": (Map((6, 256, 32, 32), (0.05, 0.15, 0.25, 0.35, 0.45, 0.60)), ALL, ALL),
    "128×128": (Map((1, 128, 128, 128), (0.25,), enlarged=2), (OURS,), EAGER),
    "256×256": (Map((1, 128, 256, 256), (0.25,), enlarged=4), (), EAGER),
    "half holes": (Map((6, 128, 64, 64), (0.5,) * 6), (), ALL),
}
SHIFTS = {
    "64×64": (ONE, (OURS, WITHOUT), (OURS, WITHOUT)),
    "64×64, batch 6": (SIX, (), (OURS, WITHOUT)),
    "32×32": (Map((6, 256, 32, 32), (0.30,) * 6), (OURS, WITHOUT), (OURS, WITHOUT)),
}


def cases(table: Mapping[str, tuple[Map, tuple[str, ...], tuple[str, ...]]], settings: Settings) -> list[Case]:
    found = {name: (one, on_cuda if settings.on_cuda else on_cpu) for name, (one, on_cpu, on_cuda) in table.items()}
    return [one.case(name, names) for name, (one, names) in found.items() if names]


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

# ---- growing maps ----------------------------------------------------------------------------------------------------

#: Seconds that a call may be expected to take.
PATIENCE = 20.0


def growing(settings: Settings) -> list[Case]:
    """Enlarges one hole, a quarter of the map. FlexAttention, which compiles anew for each size, runs on CUDA only."""
    names = (OURS, DENSE, GATHERED, SDPA, *((FLEX,) if settings.on_cuda else ()))
    maps = {side: Map((1, 128, side, side), (0.25,), enlarged=side // 32) for side in (32, 64, 128, 256)}
    return [one.case(f"{side}×{side}", names, passes=(FORWARD,), columns={"side": side}) for side, one in maps.items()]


def absent(rows: Sequence[Row], case: Case, settings: Settings) -> dict[str, str]:
    """Leaves out what was unavailable at the size before, and what would take too long at this one."""
    last = [row for row in rows if row["side"] == rows[-1]["side"]]
    growth = (case.columns["side"] / last[0]["side"]) ** 4 if last else 1.0
    return ended(last, growth, free_memory(settings.device))


def ended(last: Sequence[Row], growth: float, free: float) -> dict[str, str]:
    """Names the alternatives that do not go on to a map with `growth` times as many pairs of pixels, and why. One that
    is going to exceed the `free` bytes is let run, since that shows soon, however long it would take."""
    result = {}
    for row in last:
        if "unavailable" in row:
            result[row["alternative"]] = row["unavailable"]
        elif (seconds := growth * row["ms"] / 1e3) > PATIENCE and growth * row["extra_mib"] * 2**20 < free:
            result[row["alternative"]] = f"expected to take {seconds:.0f} s"
    return result


SCALING = Suite(
    "attention on growing maps",
    "Forward, 128 channels, a quarter of the map is hole.",
    growing,
    absent,
    limits={"limit": 3.0, "at_least": 1},
)
