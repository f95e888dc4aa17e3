"""Attention on fixed maps: features, holes, contestants, and the work that is counted."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from msa_ops import hole_attention

from .attention_competitors import dense_hole_attention, flex_hole_attention, sdpa_hole_attention
from .attention_definition import hole_attention_at, sample_pixels
from .contest import BOTH, FORWARD, OURS, Call, Contest, Contestant, Settings, Truth, Work
from .generator_layers import brush_mask

HoleAttention = Callable[[Tensor, Tensor], Tensor]

DENSE, COMPILED, GATHERED = "N×N matrix", "N×N matrix, compiled", "gathered"
SDPA, FLEX = "SDPA + fold", "FlexAttention + fold"
CONTESTANTS = (OURS, DENSE, COMPILED, GATHERED, SDPA, FLEX)


def implementations() -> dict[str, HoleAttention]:
    """Functions of features and mask by contestant. What is compiled is compiled afresh and for one shape, as a network
    would have it."""
    torch.compiler.reset()
    flex = torch.compile(flex_attention, fullgraph=True, dynamic=False)
    return {
        OURS: hole_attention,
        DENSE: dense_hole_attention,
        COMPILED: torch.compile(dense_hole_attention, fullgraph=True, dynamic=False),
        GATHERED: functools.partial(hole_attention, backend="reference"),
        SDPA: sdpa_hole_attention,
        FLEX: functools.partial(flex_hole_attention, attend=flex),
    }


@dataclasses.dataclass(frozen=True)
class Map:
    """Feature maps with one irregular hole per sample."""

    shape: tuple[int, int, int, int]
    holes: tuple[float, ...]  # share of every sample
    enlarged: int = 1  # the hole is drawn smaller by this factor and enlarged

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


def attention_call(run: HoleAttention, features: Tensor, mask: Tensor) -> Call:
    return Call(functools.partial(run, features, mask), {"features": features})


def attention_truth(judge: HoleAttention, features: Tensor, mask: Tensor) -> Truth:
    exact = features.detach().double().requires_grad_()
    return Truth(attention_call(judge, features, mask), attention_call(judge, exact, mask))


def sampled_truth(features: Tensor, mask: Tensor) -> Truth:
    """The output at some of the pixels, by the definition: for maps of any size. No gradient."""
    pixels = sample_pixels(mask)
    plain, exact = (
        Call(functools.partial(hole_attention_at, pixels, x, mask)) for x in (features, features.detach().double())
    )
    return Truth(plain, exact, lambda output: output.flatten(2)[:, :, pixels])


def attention_contest(features: Tensor, mask: Tensor, runs: dict[str, HoleAttention], judge: HoleAttention) -> Contest:
    truth = attention_truth(judge, features, mask)
    return Contest(
        {name: Contestant(attention_call(run, features, mask), truth) for name, run in runs.items()},
        attention_work(features, mask),
        facts={"holes": [round(share, 3) for share in (~mask).flatten(1).double().mean(1).tolist()]},
        grad=torch.randn_like(features),
    )


def attention_work(features: Tensor, mask: Tensor) -> dict[str, Work]:
    """The two products Q Kᵀ and s' V over hole × background pairs, 2·2·F·B·C per sample; with the backward's five, 3.5
    times as many. Bytes: features, mask and output, then the output's gradient, features and their gradient."""
    valid = mask.flatten(1).sum(1)
    pairs = int((valid * (mask[0].numel() - valid)).sum())
    flop = 2 * 2 * pairs * features.shape[1]
    numbers = features.numel() * features.element_size()
    forward = 2 * numbers + mask.numel()
    return {FORWARD: Work(flop, forward), BOTH: Work(7 * flop // 2, forward + 3 * numbers)}
