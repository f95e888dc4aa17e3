"""What the Triton kernels of the decoder's convolution cannot do. This module does not need triton."""

from __future__ import annotations

from torch import Tensor

from ...core.triton.conditions import channels_last_map_reasons


def reasons(low: Tensor, low_mask: Tensor | None = None, skip: Tensor | None = None, *options: object) -> list[str]:
    """Explains why the kernels cannot take these arguments of partial_conv2d_upcat; an empty list if they can."""
    return channels_last_map_reasons(low, *([] if skip is None else [skip]))
