"""The upcat-rule suite: where the decoder's four-phase form starts to win against a concatenation. It is the evidence
for partial_conv_upcat.phases_win."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from msa_ops import partial_conv2d_upcat, partial_conv_upcat

from .contest import FORWARD, Call, Contest, Contestant, Settings, Truth
from .suites import Case, Suite

PHASES, CONCAT = "phases", "concat"
#: The number of small pixels from which on the phases are used, for the two forms.
THRESHOLDS = {PHASES: 0, CONCAT: 2**62}
WIDTHS, SIDES = (64, 256, 512), (1, 2, 4, 6, 8, 12, 16, 32)


def prepare(channels: int, side: int, settings: Settings) -> Contest:
    layout = dict(device=settings.device, dtype=settings.dtype, memory_format=torch.channels_last)
    low = torch.randn(settings.batch, channels, side, side).to(**layout)
    skip = torch.randn(settings.batch, channels, 2 * side, 2 * side).to(**layout)
    weight = torch.randn(channels, 2 * channels, 3, 3).to(**layout)
    bias = torch.randn(channels).to(settings.device, settings.dtype)
    low_mask, skip_mask = (torch.ones_like(x[:, :1], dtype=torch.bool) for x in (low, skip))

    def run(threshold: int) -> Tensor:
        before = partial_conv_upcat.MIN_SMALL_PIXELS
        partial_conv_upcat.MIN_SMALL_PIXELS = dict.fromkeys(before, threshold)
        try:
            return partial_conv2d_upcat(low, low_mask, skip, skip_mask, weight, bias)[0]
        finally:
            partial_conv_upcat.MIN_SMALL_PIXELS = before

    def reference(dtype: torch.dtype) -> Call:
        maps = low.to(dtype), low_mask, skip.to(dtype), skip_mask, weight.to(dtype), bias.to(dtype)
        return Call(lambda: partial_conv2d_upcat(*maps, backend="reference")[0])

    truth = Truth(reference(settings.dtype), reference(torch.float64))
    return Contest(
        {name: Contestant(Call(functools.partial(run, pixels)), truth) for name, pixels in THRESHOLDS.items()},
        {FORWARD: None},
        unit=PHASES,
    )


def rule_picks(batch: int, channels: int, side: int, backend: str = "cpu") -> str:
    low = torch.empty(batch, channels, side, side, device="meta")
    return PHASES if partial_conv_upcat.phases_win(low, backend) else CONCAT


def backend_of(settings: Settings) -> str:
    """The one that `auto` picks for the suite's maps."""
    if not settings.on_cuda:
        return "cpu"
    return "triton" if settings.dtype in (torch.float16, torch.bfloat16) else "cuda"


def cases(settings: Settings) -> list[Case]:
    """On a CPU without the largest, which are the slowest and whose winner is known."""
    return [
        Case(
            f"{channels}×{side}×{side}",
            "partial_conv2d_upcat",
            f"{settings.batch}×{channels}×{side}×{side}, ×2",
            tuple(THRESHOLDS),
            functools.partial(prepare, channels, side),
            str(channels),
            {
                "channels": channels,
                "small_pixels": settings.batch * side**2,
                "rule_picks": rule_picks(settings.batch, channels, side, backend_of(settings)),
            },
        )
        for channels in WIDTHS
        for side in SIDES
        if settings.on_cuda or channels * side <= 8192
    ]


SUITE = Suite("where the decoder's four-phase form starts to win against a concatenation, forward", cases)
