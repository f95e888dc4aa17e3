"""Parts of the plain PyTorch references that more than one operator needs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor


def count_valid(
    mask: Tensor,
    kernel_size: Sequence[int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    dtype: torch.dtype,
) -> Tensor:
    """Returns s(p) of Eq. 4, the number of valid entries per window of a bool mask (N, C, H, W), as (N, 1, H', W').

    The counts stay exact under autocast, which would make them bfloat16.
    """
    kernel = torch.ones(1, mask.shape[1], *kernel_size, dtype=dtype, device=mask.device)
    device_type = mask.device.type
    with torch.autocast(device_type, enabled=False) if torch.amp.is_autocast_available(device_type) else nullcontext():
        return F.conv2d(mask.to(dtype), kernel, None, stride, padding, dilation)


def renormalise(
    convolved: Tensor, valid: Tensor, entries: int, bias: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Applies Eqs. 2, 4 and 5 to the convolution of the masked input.

    Args:
        convolved: conv(input ⊙ mask), (N, C_out, H', W').
        valid: s(p), (N, 1, H', W'), in the dtype in which the result is computed.
        entries: E, the numerator of the ratio.
        bias: (C_out,) or None.
        dtype: that of the output.

    Returns:
        The output in `dtype` and the new mask (N, 1, H', W'), bool.
    """
    new_mask = valid > 0  # Eq. 5
    ratio = torch.where(new_mask, entries / valid.clamp_min(1), 0.0)  # Eq. 4
    output = convolved * ratio  # Eq. 2
    if bias is not None:
        output = output + bias.to(valid.dtype).view(1, -1, 1, 1)
    return torch.where(new_mask, output, 0.0).to(dtype), new_mask
