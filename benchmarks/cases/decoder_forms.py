"""Where the decoder's four phases start to win against a concatenation: the evidence for the rule of form="auto"."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from msa_ops import partial_conv2d_upcat

from ..measure import FORWARD, Alternative, Case, Prepared, Settings, Suite

PHASES, CONCATENATION, AUTO = "phases", "concatenation", "auto"
WIDTHS, SIDES = (64, 256, 512), (1, 2, 4, 6, 8, 12, 16, 32)


def prepare(channels: int, side: int, settings: Settings) -> Prepared:
    def draw(*shape: int) -> Tensor:
        return torch.randn(shape).to(settings.device, settings.dtype, memory_format=torch.channels_last)

    def all_valid(x: Tensor) -> Tensor:
        return torch.ones_like(x[:, :1], dtype=torch.bool)

    low, skip = (draw(settings.batch, channels, size, size) for size in (side, 2 * side))
    bias = torch.randn(channels).to(settings.device, settings.dtype)
    inputs = {"low": low, "low mask": all_valid(low), "skip": skip, "skip mask": all_valid(skip)}
    inputs |= {"weight": draw(channels, 2 * channels, 3, 3), "bias": bias}

    def run(*tensors: Tensor, form: str, backend: str = "auto") -> Tensor:
        return partial_conv2d_upcat(*tensors, form=form, backend=backend)[0]

    reference = Alternative(functools.partial(run, form=CONCATENATION, backend="reference"), inputs)
    forms = (PHASES, CONCATENATION, AUTO)
    alternatives = {form: Alternative(functools.partial(run, form=form), inputs, reference) for form in forms}
    return Prepared(alternatives, baseline=PHASES)


def cases(settings: Settings) -> list[Case]:
    """Leaves out the largest on a CPU, which are the slowest and whose winner is known."""
    return [
        Case(
            f"{channels}×{side}×{side}",
            "partial_conv2d_upcat",
            f"{settings.batch}×{channels}×{side}×{side}, ×2",
            (PHASES, CONCATENATION, AUTO),
            functools.partial(prepare, channels, side),
            passes=(FORWARD,),
            columns={"channels": channels, "small_pixels": settings.batch * side**2},
        )
        for channels in WIDTHS
        for side in SIDES
        if settings.on_cuda or channels * side <= 8192
    ]


SUITE = Suite(
    "the decoder's form",
    "Four phases of the small map against a concatenation with the upsampled map, forward: the more small pixels "
    "(batch × height × width), the more the phases gain. Ratios are to the phases.",
    cases,
)
