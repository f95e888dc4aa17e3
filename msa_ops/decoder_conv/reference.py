"""The decoder's partial convolution in plain PyTorch, with the upsampled map and the concatenation built in full."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.dtypes import statistics_dtype
from ..core.reference import count_valid, renormalise


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
    """Computes the partial convolution (Eqs. 1-5; 3×3, padding 1) of cat(nearest_up2(low), skip) with a mask of one
    channel per channel; returns the output and the new mask (N, 1, 2h, 2w), bool."""
    up = upsample(low if low_is_masked else torch.where(low_mask, low, 0.0))
    skip = skip if skip_is_masked else torch.where(skip_mask, skip, 0.0)
    up_mask = upsample(low_mask)
    mask = torch.cat([up_mask.expand(-1, low.shape[1], -1, -1), skip_mask.expand(-1, skip.shape[1], -1, -1)], dim=1)
    image = torch.cat([up, skip], dim=1)
    valid = count_valid(mask, weight.shape[2:], (1, 1), (1, 1), (1, 1), statistics_dtype(low.dtype))  # s(p)
    entries = 1 if sum_scale else 9 * mask.shape[1]  # E
    convolved = F.conv2d(image, weight, None, padding=1)  # Eq. 1
    return renormalise(convolved, valid, entries, bias, image.dtype)


def upsample(t: Tensor) -> Tensor:
    """Returns the map upsampled by 2, nearest, in any dtype."""
    return t.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
