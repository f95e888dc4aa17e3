"""The Triton partial convolution's host side: the operators' functions, and launches of partial_conv_kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from .partial_conv_kernels import conv_kernel, finish_kernel, phase_weight_kernel, upcat_kernel
from .partial_conv_tiles import Tiles, cdiv, power, step_for, tiles_for

#: Sources of fewer channels are summed by rows of taps.
NARROW = 16


def precision(dtype: torch.dtype) -> str:
    return "tf32" if dtype == torch.float32 and torch.backends.cudnn.allow_tf32 else "ieee"


def _results(like: Tensor, shape: tuple[int, ...], tiles: Tiles) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Output in channels_last, new mask, ratio, and the parts of a split sum."""
    n, c, h, w = shape
    output = torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)
    new_mask = torch.empty((n, 1, h, w), dtype=torch.bool, device=like.device)
    ratio = torch.empty((n, 1, h, w), dtype=torch.float32, device=like.device)
    parts = ratio if tiles.parts == 1 else torch.empty((tiles.parts, n * h * w, c), device=like.device)
    return output, new_mask, ratio, parts


def strides_of(name: str, x: Tensor, with_channels: bool = True) -> dict[str, int]:
    strides = {f"{name}_n": x.stride(0), f"{name}_h": x.stride(2), f"{name}_w": x.stride(3)}
    return strides | ({f"{name}_c": x.stride(1)} if with_channels else {})


def weight_arguments(weight: Tensor) -> dict:
    return {
        "weight": weight, "weight_o": weight.stride(0), "weight_h": weight.stride(2), "weight_w": weight.stride(3),
        "weight_c": weight.stride(1),
    }  # fmt: skip


def device_of(x: Tensor):
    return torch.cuda.device(x.device) if x.is_cuda else torch.no_grad()


def _finish(tiles: Tiles, parts: Tensor, ratio: Tensor, bias: Tensor | None, output: Tensor) -> None:
    pixels, channels = ratio.numel(), output.shape[1]
    block_n = min(128, power(channels))
    grid = cdiv(channels, block_n), cdiv(pixels, 16)
    finish_kernel[grid](
        parts, ratio, bias, output, pixels, channels, HAS_BIAS=bias is not None, PARTS=tiles.parts, BLOCK_M=16,
        BLOCK_N=block_n,
    )  # fmt: skip


def conv_forward(
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
    """As csrc's partial_conv2d_forward, for one plane of mask and one group. An input that is known to be masked is
    masked again, which costs nothing."""
    n, c, h, w = input.shape
    kernel = weight.shape[2:]
    out_h, out_w = (
        (size + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i, size in enumerate((h, w))
    )
    narrow = c < NARROW
    step = step_for(kernel[1] * c if narrow else c)
    steps = kernel[0] if narrow else kernel[0] * kernel[1] * cdiv(c, step)
    tiles = tiles_for(n, out_h, out_w, weight.shape[0], steps, step, rows_of_taps=narrow)
    output, new_mask, ratio, parts = _results(input, (n, weight.shape[0], out_h, out_w), tiles)
    if output.numel() == 0:
        return output, new_mask, ratio
    with device_of(input):
        conv_kernel[tiles.grid](
            input, **strides_of("image", input), mask=mask, **strides_of("mask", mask, False),
            **weight_arguments(weight), bias=bias, output=output, ratios=ratio, new_mask=new_mask.view(torch.uint8),
            parts=parts, height=h, width=w, out_height=out_h, out_width=out_w, pixels=n * out_h * out_w, channels=c,
            out_channels=weight.shape[0], stride_h=stride[0], stride_w=stride[1], padding_h=padding[0],
            padding_w=padding[1], dilation_h=dilation[0], dilation_w=dilation[1], numerator=numerator / c,
            KERNEL_H=kernel[0], KERNEL_W=kernel[1], HAS_BIAS=bias is not None, NARROW=narrow,
            PRECISION=precision(input.dtype), **tiles.arguments,
        )  # fmt: skip
        if tiles.parts > 1:
            _finish(tiles, parts, ratio, bias, output)
    return output, new_mask, ratio


def upcat_forward(
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
    """As csrc's partial_conv2d_upcat_forward, except that neither form builds the concatenation."""
    n, c2, h, w = skip.shape
    c1, out_channels = low.shape[1], weight.shape[0]
    narrow = c2 < NARROW
    step, skip_step = step_for(c1), step_for(3 * c2 if narrow else c2)
    if phases:
        tiles = tiles_for(n, h // 2, w // 2, out_channels, 0, step, phases=4, rows_of_taps=narrow)
    else:
        tiles = tiles_for(n, h, w, out_channels, 9 * cdiv(c1, step), step, rows_of_taps=narrow)
    output, new_mask, ratio, parts = _results(low, (n, out_channels, h, w), tiles)
    if output.numel() == 0:
        return output, new_mask, ratio
    phase_weight = weight
    with device_of(low):
        if phases:
            phase_weight = torch.empty(16, out_channels, c1, dtype=weight.dtype, device=weight.device)
            arguments = weight_arguments(weight) | dict(channels=c1, out_channels=out_channels)
            grid = cdiv(out_channels * c1, 1024), 16
            phase_weight_kernel[grid](phases=phase_weight, size=out_channels * c1, **arguments, BLOCK=1024)
        upcat_kernel[tiles.grid](
            low, **strides_of("low", low), low_mask=low_mask, **strides_of("low_mask", low_mask, False), skip=skip,
            **strides_of("skip", skip), skip_mask=skip_mask, **strides_of("skip_mask", skip_mask, False),
            **weight_arguments(weight), phase_weight=phase_weight, bias=bias, output=output, ratios=ratio,
            new_mask=new_mask.view(torch.uint8), parts=parts, height=h, width=w, pixels=n * h * w, low_channels=c1,
            skip_channels=c2, out_channels=out_channels, numerator=float(numerator), PHASES=phases, NARROW=narrow,
            HAS_BIAS=bias is not None, PRECISION=precision(low.dtype), SKIP_STEP=skip_step, **tiles.arguments,
        )  # fmt: skip
        if tiles.parts > 1:
            _finish(tiles, parts, ratio, bias, output)
    return output, new_mask, ratio


def upcat_backward(
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
    """As csrc's partial_conv2d_upcat_backward, which does all layers but the one that makes the image."""
    from . import image_layer  # which imports this module

    if image_layer.takes(low, skip, weight, needed):
        return image_layer.backward(grad_output, low, low_mask, skip, skip_mask, weight, ratio, low_is_masked, needed)
    return torch.ops.msa_ops.partial_conv2d_upcat_backward(
        grad_output, low, low_mask, skip, skip_mask, weight, ratio, low_is_masked, skip_is_masked, phases, needed
    )
