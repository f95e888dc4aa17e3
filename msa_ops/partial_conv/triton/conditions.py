"""What the Triton kernel of the partial convolution cannot do. This module does not need triton."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ...core.triton.conditions import channels_last_map_reasons

MOST_TAPS = 63  # of a window, since its valid taps are the bits of one integer


def reasons(
    input: Tensor,
    mask: Tensor | Sequence | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    stride: object = 1,
    padding: object = 0,
    dilation: object = 1,
    groups: int = 1,
    *options: object,
) -> list[str]:
    """Explains why the kernel cannot take these arguments of partial_conv2d; an empty list if it can."""
    found = channels_last_map_reasons(input)
    if groups != 1:
        found.append("it has no groups")
    if mask is not None and (not isinstance(mask, Tensor) or (mask.shape[1] != 1 and mask.stride(1) != 0)):
        found.append("it takes masks of one plane")
    if weight is not None and weight[0, 0].numel() > MOST_TAPS:
        found.append(f"it has no windows of more than {MOST_TAPS} taps")
    return found
