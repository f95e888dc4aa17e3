"""Where the decoder's four phases start to win against a concatenation: the evidence for the rule of form="auto"."""

from __future__ import annotations

import functools

import torch

from msa_ops import partial_conv2d_upcat

from ..measure import FORWARD, Alternative, Case, Prepared, Reference, Settings
from .suite import Suite

PHASES, CONCATENATION, AUTO = "phases", "concatenation", "auto"
WIDTHS, SIDES = (64, 256, 512), (1, 2, 4, 6, 8, 12, 16, 32)


def prepare(channels: int, side: int, settings: Settings) -> Prepared:
    layout = dict(device=settings.device, dtype=settings.dtype, memory_format=torch.channels_last)
    low = torch.randn(settings.batch, channels, side, side).to(**layout)
    skip = torch.randn(settings.batch, channels, 2 * side, 2 * side).to(**layout)
    weight = torch.randn(channels, 2 * channels, 3, 3).to(**layout)
    bias = torch.randn(channels).to(settings.device, settings.dtype)
    low_mask, skip_mask = (torch.ones_like(x[:, :1], dtype=torch.bool) for x in (low, skip))

    def alternative(form: str, dtype: torch.dtype, backend: str, reference: Reference | None = None) -> Alternative:
        maps = low.to(dtype), low_mask, skip.to(dtype), skip_mask, weight.to(dtype), bias.to(dtype)
        return Alternative(lambda: partial_conv2d_upcat(*maps, form=form, backend=backend)[0], reference=reference)

    plain, exact = (alternative(CONCATENATION, dtype, "reference") for dtype in (settings.dtype, torch.float64))
    forms = {
        form: alternative(form, settings.dtype, "auto", Reference(plain, exact))
        for form in (PHASES, CONCATENATION, AUTO)
    }
    return Prepared(forms, baseline=PHASES)


def cases(settings: Settings) -> list[Case]:
    """Leaves out the largest on a CPU, which are the slowest and whose winner is known."""
    return [
        Case(
            f"{channels}×{side}×{side}",
            "partial_conv2d_upcat",
            f"{settings.batch}×{channels}×{side}×{side}, ×2",
            (PHASES, CONCATENATION, AUTO),
            functools.partial(prepare, channels, side),
            (FORWARD,),
            family=str(channels),
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
