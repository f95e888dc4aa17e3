"""The paper's hole attention in Triton, host side: one kernel each way around the general attention normalises the
features, computes the gradient of that, and passes the valid pixels."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from ...core.layout import empty_map
from .attend import attend, attend_backward
from .call import Call, pixels_last, strides
from .hole_kernels import hole_gradient_kernel, hole_image_kernel
from .planning import ROWS, pitch


def forward(
    features: Tensor, valid: Tensor, scale: float, radius: int, renormalize: bool, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Returns the output (N, C, H, W) and the statistics (N, H·W, 3) that the backward needs."""
    output = empty_map(features, features.shape).copy_(features)
    statistics = torch.zeros(features.shape[0], features.shape[2] * features.shape[3], 3, device=features.device)
    if features.numel() > 0:
        call, unit, value = _operands(features, valid, scale, radius, eps, dtype)
        channels = features.shape[1]
        query = call.rows(_map_of(unit, call))
        attend(call, query, unit, channels, value, channels, statistics, output, renormalize)
    return output, statistics


def backward(
    grad_output: Tensor,
    features: Tensor,
    valid: Tensor,
    output: Tensor,
    statistics: Tensor,
    scale: float,
    radius: int,
    renormalize: bool,
    eps: float,
    dtype: torch.dtype,
) -> Tensor:
    """Returns the gradient of the features."""
    result = empty_map(features, features.shape)
    if features.numel() == 0:
        return result
    call, unit, value = _operands(features, valid, scale, radius, eps, dtype)
    lay, channels = call.layout, features.shape[1]
    query = call.rows(_map_of(unit, call))
    grad, offsets = call.grad_rows(grad_output, output, statistics, renormalize)
    # Queries and keys are different pixels, so one image holds the gradients of both.
    unit_gradient, value_gradient = torch.zeros(2, *unit.shape, device=unit.device)
    attend_backward(
        call,
        query,
        unit,
        channels,
        value,
        channels,
        grad,
        statistics,
        offsets,
        _map_of(unit_gradient, call),
        unit_gradient,
        value_gradient,
    )
    call.launch(
        hole_gradient_kernel, (triton.cdiv(lay.size, ROWS), lay.samples), map_=features, **strides(features),
        grad=grad_output, **strides(grad_output, "grad_s"), result=result, **strides(result, "result_s"),
        valid=call.key_mask, **call.mask_strides, unit_gradient=unit_gradient, value_gradient=value_gradient, eps=eps,
        channels=channels, PIXELS_LAST=pixels_last(features), **_block(channels),
    )  # fmt: skip
    return result


def _operands(
    features: Tensor, valid: Tensor, scale: float, radius: int, eps: float, dtype: torch.dtype
) -> tuple[Call, Tensor, Tensor]:
    """Returns the call, and its images of unit features and of values."""
    call = Call(features, ~valid, valid, scale, radius, dtype)
    lay, channels = call.layout, features.shape[1]
    unit, value = (call.empty(lay.samples, lay.length, pitch(channels), dtype=dtype) for _ in range(2))
    call.launch(
        hole_image_kernel, (lay.length // ROWS, lay.samples), map_=features, **strides(features), valid=call.key_mask,
        **call.mask_strides, unit=unit, value=value, eps=eps, channels=channels, PIXELS_LAST=pixels_last(features),
        **_block(channels),
    )  # fmt: skip
    return call, unit, value


def _map_of(image: Tensor, call: Call) -> Tensor:
    """Returns an image (N, length, PITCH) as a map (N, PITCH, H, W), without a copy."""
    lay = call.layout
    pixels = image[:, lay.halo : lay.halo + lay.h * lay.width].unflatten(1, (lay.h, lay.width))
    return pixels[:, :, : lay.w].permute(0, 3, 1, 2)


def _block(channels: int) -> dict[str, int]:
    return {"DEPTH": min(64, pitch(channels)), "PITCH": pitch(channels), "num_warps": 4}
