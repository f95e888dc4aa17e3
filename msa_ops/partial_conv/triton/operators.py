"""The partial convolution in Triton, host side."""

from __future__ import annotations

import torch
from torch import Tensor

from ...core.triton.arguments import convolution_precision, map_strides, mask_strides, weight_strides
from ...core.triton.launch import launch
from ...core.triton.split_sum import allocate, finish
from ...core.triton.tiles import NARROW, cdiv, step_for, tiles_for
from .kernels import conv_kernel


def forward(
    input: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    plane_channels: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    numerator: int,
    input_is_masked: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Does what the compiled partial_conv2d_forward does, for one plane of mask and one group. An input that is known
    to be masked is masked again, which costs nothing."""
    n, c, h, w = input.shape
    kernel = weight.shape[2:]
    out_h, out_w = (
        (size + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i, size in enumerate((h, w))
    )
    narrow = c < NARROW
    step = step_for(kernel[1] * c if narrow else c)
    steps = kernel[0] if narrow else kernel[0] * kernel[1] * cdiv(c, step)
    tiles = tiles_for(n, out_h, out_w, weight.shape[0], steps, step, rows_of_taps=narrow)
    output, new_mask, ratio, parts = allocate(input, (n, weight.shape[0], out_h, out_w), tiles)
    if output.numel() == 0:
        return output, new_mask, ratio
    launch(
        conv_kernel, tiles.grid, input.device, image=input, **map_strides("image", input), mask=mask,
        **mask_strides("mask", mask), weight=weight, **weight_strides(weight), bias=bias, output=output, ratios=ratio,
        new_mask=new_mask.view(torch.uint8), parts=parts, height=h, width=w, out_height=out_h, out_width=out_w,
        pixels=n * out_h * out_w, channels=c, out_channels=weight.shape[0], stride_h=stride[0], stride_w=stride[1],
        padding_h=padding[0], padding_w=padding[1], dilation_h=dilation[0], dilation_w=dilation[1],
        numerator=numerator / c, KERNEL_H=kernel[0], KERNEL_W=kernel[1], HAS_BIAS=bias is not None, NARROW=narrow,
        PRECISION=convolution_precision(input.dtype), **tiles.arguments,
    )  # fmt: skip
    finish(tiles, parts, ratio, bias, output)
    return output, new_mask, ratio
