"""Conditions that several operators' Triton kernels put on their maps. This module does not need triton."""

from __future__ import annotations

from torch import Tensor

from ..layout import wants_channels_last


def channels_last_map_reasons(*maps: Tensor) -> list[str]:
    """Explains why the Triton kernels of the convolutions cannot read these maps; an empty list if they can."""
    reasons = []
    if not all(map_.dim() == 4 and wants_channels_last(map_) for map_ in maps):
        reasons.append("it reads and writes maps in channels_last only")
    if any(map_.dim() == 4 and max(map_[:1].numel(), map_[:, :1].numel()) >= 2**31 for map_ in maps):
        reasons.append("it counts the elements of a sample, and the pixels of a batch, in 32 bits")
    return reasons
