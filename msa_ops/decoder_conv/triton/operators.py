"""The decoder's convolution in Triton, host side."""

from __future__ import annotations

import torch
from torch import Tensor

from ...core import registration
from ...core.triton.arguments import convolution_precision, map_strides, mask_strides, weight_strides
from ...core.triton.launch import launch
from ...core.triton.split_sum import allocate, finish
from ...core.triton.tiles import NARROW, cdiv, step_for, tiles_for
from . import image_layer
from .kernels import phase_weight_kernel, upcat_kernel


def forward(
    low: Tensor,
    low_mask: Tensor,
    skip: Tensor,
    skip_mask: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    numerator: int,
    low_is_masked: bool,
    skip_is_masked: bool,
    phases: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Does what the compiled partial_conv2d_upcat_forward does, except that neither form builds the concatenation."""
    n, c2, h, w = skip.shape
    c1, out_channels = low.shape[1], weight.shape[0]
    narrow = c2 < NARROW
    step, skip_step = step_for(c1), step_for(3 * c2 if narrow else c2)
    if phases:
        tiles = tiles_for(n, h // 2, w // 2, out_channels, 0, step, phases=4, rows_of_taps=narrow)
    else:
        tiles = tiles_for(n, h, w, out_channels, 9 * cdiv(c1, step), step, rows_of_taps=narrow)
    output, new_mask, ratio, parts = allocate(low, (n, out_channels, h, w), tiles)
    if output.numel() == 0:
        return output, new_mask, ratio
    launch(
        upcat_kernel, tiles.grid, low.device, low=low, **map_strides("low", low), low_mask=low_mask,
        **mask_strides("low_mask", low_mask), skip=skip, **map_strides("skip", skip), skip_mask=skip_mask,
        **mask_strides("skip_mask", skip_mask), weight=weight, **weight_strides(weight),
        phase_weight=_phase_weight(weight, c1) if phases else weight, bias=bias, output=output, ratios=ratio,
        new_mask=new_mask.view(torch.uint8), parts=parts, height=h, width=w, pixels=n * h * w, low_channels=c1,
        skip_channels=c2, out_channels=out_channels, numerator=float(numerator), PHASES=phases, NARROW=narrow,
        HAS_BIAS=bias is not None, PRECISION=convolution_precision(low.dtype), SKIP_STEP=skip_step, **tiles.arguments,
    )  # fmt: skip
    finish(tiles, parts, ratio, bias, output)
    return output, new_mask, ratio


def _phase_weight(weight: Tensor, channels: int) -> Tensor:
    """Returns the summed taps of the four phases for the first `channels` channels, (16, C_out, channels)."""
    out_channels = weight.shape[0]
    size = out_channels * channels
    phases = torch.empty(16, out_channels, channels, dtype=weight.dtype, device=weight.device)
    launch(
        phase_weight_kernel, (cdiv(size, 1024), 16), weight.device, weight=weight, **weight_strides(weight),
        phases=phases, size=size, channels=channels, out_channels=out_channels, BLOCK=1024,
    )  # fmt: skip
    return phases


def backward(
    grad_output: Tensor,
    low: Tensor,
    low_mask: Tensor,
    skip: Tensor,
    skip_mask: Tensor,
    weight: Tensor,
    ratio: Tensor,
    low_is_masked: bool,
    skip_is_masked: bool,
    phases: bool,
    needed: list[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Does what the compiled partial_conv2d_upcat_backward does, which it calls for all layers but the one that makes
    the image."""
    if image_layer.takes(low, skip, weight, needed):
        return image_layer.backward(grad_output, low, low_mask, skip, skip_mask, weight, ratio, low_is_masked, needed)
    return registration.operator("partial_conv2d_upcat_backward")(
        grad_output, low, low_mask, skip, skip_mask, weight, ratio, low_is_masked, skip_is_masked, phases, needed
    )
