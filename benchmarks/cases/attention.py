"""hole_attention against what a user could run instead, on fixed maps.

The sizes are fixed, since targets belong to them: ``--size`` and ``--batch`` do not change them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from msa_ops import hole_attention

from ..measure import BOTH, FORWARD, OURS, Alternative, Case, Prepared, Reference, Settings, Work
from .attention_alternatives import dense_hole_attention, flex_hole_attention, sdpa_hole_attention
from .attention_definition import hole_attention_at, sample_pixels
from .generator_layers import brush_mask
from .suite import Suite

HoleAttention = Callable[[Tensor, Tensor], Tensor]

DENSE, COMPILED, GATHERED = "N×N matrix", "N×N matrix, compiled", "gathered"
SDPA, FLEX = "SDPA + fold", "FlexAttention + fold"
ALL = (OURS, DENSE, COMPILED, GATHERED, SDPA, FLEX)
#: What is not compiled, which on a GPU takes up to a minute per alternative, and needs no N×N matrix.
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
    }


@dataclasses.dataclass(frozen=True)
class Map:
    """Feature maps with one irregular hole per sample.

    Args:
        holes: the share of hole in every sample.
        enlarged: the hole is drawn smaller by this factor and enlarged.
    """

    shape: tuple[int, int, int, int]
    holes: tuple[float, ...]
    enlarged: int = 1

    def mask(self) -> Tensor:
        """(N,1,H,W) bool, True = valid."""
        height, width = (side // self.enlarged for side in self.shape[2:])
        drawn = [brush_mask(height, width, share, 7 + i) for i, share in enumerate(self.holes)]
        return torch.stack(drawn).repeat_interleave(self.enlarged, 2).repeat_interleave(self.enlarged, 3)

    def tensors(self, settings: Settings) -> tuple[Tensor, Tensor]:
        """Random features, which ask for a gradient, and the mask."""
        features = torch.randn(self.shape, device=settings.device).to(settings.dtype)
        return features.requires_grad_(), self.mask().to(settings.device)

    @property
    def text(self) -> str:
        shares = dict.fromkeys(f"{100 * share:.0f}" for share in self.holes)
        return f"{'×'.join(map(str, self.shape))}, {', '.join(shares)} %"


def alternative(run: HoleAttention, features: Tensor, mask: Tensor, reference: Reference | None = None) -> Alternative:
    return Alternative(functools.partial(run, features, mask), {"features": features}, reference)


def reference_of(run: HoleAttention, features: Tensor, mask: Tensor) -> Reference:
    exact = features.detach().double().requires_grad_()
    return Reference(alternative(run, features, mask), alternative(run, exact, mask))


def sampled_reference(features: Tensor, mask: Tensor) -> Reference:
    """Computes the output at some of the pixels, by the definition: for maps of any size. Forward only."""
    pixels = sample_pixels(mask)
    inputs = features, features.detach().double()
    plain, exact = (Alternative(functools.partial(hole_attention_at, pixels, x, mask)) for x in inputs)
    return Reference(plain, exact, lambda output: output.flatten(2)[:, :, pixels])


def work_of(features: Tensor, mask: Tensor) -> dict[str, Work]:
    """Counts the two products Q Kᵀ and s' V over hole × background pairs, 2·2·F·B·C per sample; with the backward's
    five, 3.5 times as many. Counts bytes of features, mask and output, and for the backward of the output's gradient,
    features and their gradient."""
    valid = mask.flatten(1).sum(1)
    pairs = int((valid * (mask[0].numel() - valid)).sum())
    flop = 2 * 2 * pairs * features.shape[1]
    numbers = features.numel() * features.element_size()
    forward = 2 * numbers + mask.numel()
    return {FORWARD: Work(flop, forward), BOTH: Work(7 * flop // 2, forward + 3 * numbers)}


def prepare(features: Tensor, mask: Tensor, runs: dict[str, HoleAttention], reference: HoleAttention) -> Prepared:
    expected = reference_of(reference, features, mask)
    return Prepared(
        {name: alternative(run, features, mask, expected) for name, run in runs.items()},
        work_of(features, mask),
        grad=torch.randn_like(features),
    )


SMALL, LARGE = "64×64", "128×128"
#: The network's attention stage, for one image and for the paper's batch: a single map keeps a GPU busy for less time
#: than the launch of a kernel takes.
STAGE, STAGE_BATCH = "64×64 30%", "64×64 30%, batch 6"
HALF, MIXED = "half holes", "mixed holes"
#: By case its map and its alternatives on a CPU and on CUDA, without those that would take too long. The large maps
#: have the small one's hole, enlarged, so that queries and keys grow by exactly four each.
CASES: dict[str, tuple[Map, tuple[str, ...], tuple[str, ...]]] = {
    SMALL: (Map((1, 128, 64, 64), (0.25,)), ALL, (OURS, DENSE, GATHERED, SDPA)),
    STAGE: (Map((1, 128, 64, 64), (0.30,)), EAGER, EAGER),
    STAGE_BATCH: (Map((6, 128, 64, 64), (0.30,) * 6), (), ALL),
    MIXED: (Map((6, 256, 32, 32), (0.05, 0.15, 0.25, 0.35, 0.45, 0.60)), ALL, ALL),
    LARGE: (Map((1, 128, 128, 128), (0.25,), enlarged=2), (OURS,), EAGER),
    "256×256": (Map((1, 128, 256, 256), (0.25,), enlarged=4), (), EAGER),
    HALF: (Map((6, 128, 64, 64), (0.5,) * 6), (), ALL),
}


def prepare_map(one: Map, names: tuple[str, ...], settings: Settings) -> Prepared:
    """A map that is too large for N×N matrices is compared with the gathered form; the other cases show that they are
    equal."""
    runs = implementations()
    reference = gathered_hole_attention if one.shape[2] > 64 else dense_hole_attention
    return prepare(*one.tensors(settings), {name: runs[name] for name in names}, reference)


def cases(settings: Settings) -> list[Case]:
    found = {name: (one, on_cuda if settings.on_cuda else on_cpu) for name, (one, on_cpu, on_cuda) in CASES.items()}
    return [
        Case(name, "hole_attention", one.text, names, functools.partial(prepare_map, one, names))
        for name, (one, names) in found.items()
        if names
    ]


SUITE = Suite(
    "hole attention",
    "k = 1, irregular holes, random features. *N×N matrix* is Eqs. 6-8 as they are written down in PyTorch, *compiled* "
    "the same under `torch.compile` (compile time does not count), *gathered* our plain reference on hole × background "
    "pixels; the *fold* forms let Eq. 8 act on unfolded values.",
    cases,
)
