"""Partial convolution as Eqs. 1-5 of the paper state it, with one mask channel per input channel."""

from __future__ import annotations

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor


def partial_conv2d(
    input: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    sum_scale: bool,
    input_is_masked: bool = False,
) -> tuple[Tensor, Tensor]:
    """Eqs. 1-5 for a bool mask (N,1,H,W) or (N,C,H,W); returns the output and mask' (N,1,H',W') bool.

    Holes are selected away rather than multiplied away, so that NaN or inf under a hole does not leak. The counts stay
    exact under autocast, which would make them bfloat16.
    """
    statistics = torch.float64 if input.dtype == torch.float64 else torch.float32
    kernel = torch.ones(1, mask.shape[1], *weight.shape[2:], dtype=statistics, device=input.device)
    device_type = input.device.type
    with torch.autocast(device_type, enabled=False) if torch.amp.is_autocast_available(device_type) else nullcontext():
        valid = F.conv2d(mask.to(statistics), kernel, None, stride, padding, dilation)  # s(p)
    new_mask = valid > 0  # Eq. 5
    entries = 1 if sum_scale else kernel.numel()  # E
    ratio = torch.where(new_mask, entries / valid.clamp_min(1), 0.0)  # Eq. 4

    masked = input if input_is_masked else torch.where(mask, input, 0.0)
    convolved = F.conv2d(masked, weight, None, stride, padding, dilation, groups)  # Eq. 1
    output = convolved * ratio  # Eq. 2, in the dtype of the statistics
    if bias is not None:
        output = output + bias.to(statistics).view(1, -1, 1, 1)
    return torch.where(new_mask, output, 0.0).to(input.dtype), new_mask


def partial_conv2d_upcat(
    low: Tensor,
    low_mask: Tensor,
    skip: Tensor,
    skip_mask: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    sum_scale: bool,
    low_is_masked: bool = False,
    skip_is_masked: bool = False,
) -> tuple[Tensor, Tensor]:
    """Partial convolution (3×3, padding 1) of the concatenation that the decoder describes, built in full."""
    up = upsample(low if low_is_masked else torch.where(low_mask, low, 0.0))
    skip = skip if skip_is_masked else torch.where(skip_mask, skip, 0.0)
    up_mask = upsample(low_mask)
    mask = torch.cat([up_mask.expand(-1, low.shape[1], -1, -1), skip_mask.expand(-1, skip.shape[1], -1, -1)], dim=1)
    image = torch.cat([up, skip], dim=1)
    return partial_conv2d(image, mask, weight, bias, (1, 1), (1, 1), (1, 1), 1, sum_scale, input_is_masked=True)


def upsample(t: Tensor) -> Tensor:
    """Nearest ×2, any dtype."""
    return t.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
