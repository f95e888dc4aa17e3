"""Counts of floating-point operations."""

from __future__ import annotations

from collections.abc import Sequence


def convolution_flops(output_shape: Sequence[int], weight_shape: Sequence[int]) -> int:
    """Returns 2 × the multiply-adds of a direct convolution, also where minimal filtering needs fewer."""
    flops = 2
    for extent in weight_shape[1:]:
        flops *= extent
    for extent in output_shape:
        flops *= extent
    return flops
