"""Partial convolution in plain PyTorch, as Eqs. 1-5 of the paper state it, with one mask channel per input channel."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.dtypes import statistics_dtype
from ..core.reference import count_valid, renormalise


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
    """Computes Eqs. 1-5 for a bool mask (N,1,H,W) or (N,C,H,W); returns the output and mask' (N,1,H',W') bool.

    Values in holes are replaced rather than multiplied by zero, so that NaN or inf under a hole does not leak.
    """
    valid = count_valid(mask, weight.shape[2:], stride, padding, dilation, statistics_dtype(input.dtype))  # s(p)
    entries = 1 if sum_scale else mask.shape[1] * weight.shape[2] * weight.shape[3]  # E
    masked = input if input_is_masked else torch.where(mask, input, 0.0)
    convolved = F.conv2d(masked, weight, None, stride, padding, dilation, groups)  # Eq. 1
    return renormalise(convolved, valid, entries, bias, input.dtype)
