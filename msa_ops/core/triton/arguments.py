"""Arguments that many Triton kernels take in the same form: strides by name, and the precision of products."""

from __future__ import annotations

import torch
from torch import Tensor


def map_strides(name: str, x: Tensor) -> dict[str, int]:
    """Returns the strides of a map (N, C, H, W) as the arguments name_n, name_h, name_w and name_c."""
    return mask_strides(name, x) | {f"{name}_c": x.stride(1)}


def mask_strides(name: str, x: Tensor) -> dict[str, int]:
    """Returns the strides of a mask (N, 1, H, W) as the arguments name_n, name_h and name_w."""
    return {f"{name}_n": x.stride(0), f"{name}_h": x.stride(2), f"{name}_w": x.stride(3)}


def weight_strides(weight: Tensor) -> dict[str, int]:
    """Returns the strides of a weight (C_out, C, kH, kW) as the arguments weight_o, weight_h, weight_w and weight_c."""
    return {
        "weight_o": weight.stride(0),
        "weight_h": weight.stride(2),
        "weight_w": weight.stride(3),
        "weight_c": weight.stride(1),
    }


def convolution_precision(dtype: torch.dtype) -> str:
    """Returns the precision of a convolution's products: TF32 where torch's switch for convolutions allows it."""
    return "tf32" if dtype == torch.float32 and torch.backends.cudnn.allow_tf32 else "ieee"
