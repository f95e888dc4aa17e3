"""Gradients of a decoder layer of up to four output channels, the one that makes the image, in one pass over the maps.

Its 3×3 windows over the upsampled map give a library's convolution three columns of a product whose tiles have sixteen
or more, and the gradient, the map and the skip are read again and again. Here a row of the products is a *small* pixel
(i, j). The outputs that read it lie at (2i - 1 + r, 2j - 1 + s) with r, s in 0..3, so that with the scaled gradient
G = ratio ⊙ dY of those 16 outputs as one row of 16·C_out elements

    d low = G E        E[r, s, o][c] = Σ of the taps (ky, kx) of the kernel with r in {2 - ky, 3 - ky}, s likewise
    dE    = Gᵀ low     and the gradient of tap (ky, kx) is the sum of the four dE that it went into
    dX    = Gᵀ X       with X the 16 pixels (2i - 1 + a, 2j - 1 + b) of the skip: tap (ky, kx) of output (r, s), for the
                       four outputs that the small pixel owns (r, s in {1, 2}), reads a = r - 1 + ky, b = s - 1 + kx

Programs keep dE and dX in registers while they walk over their pixels; what they leave is added up in a fixed order,
and a second kernel makes the taps of it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .partial_conv import device_of, precision, strides_of, weight_arguments
from .partial_conv_tiles import cdiv, power

#: Output channels, and channels of the skip: 16 positions of each are one block.
MOST_CHANNELS = 4
#: Channels of the small map, which are one block.
MOST_LOW_CHANNELS = 128
PROGRAMS, BLOCK = 132, 64


@triton.jit
def gradients_kernel(
    grad, grad_n, grad_h, grad_w, grad_c, ratios, low, low_n, low_h, low_w, low_c, low_mask, low_mask_n, low_mask_h,
    low_mask_w, skip, skip_n, skip_h, skip_w, skip_c, skip_mask, skip_mask_n, skip_mask_h, skip_mask_w, weight,
    weight_o, weight_h, weight_w, weight_c, grad_low, sums, height, width, pixels,
    low_channels: tl.constexpr, skip_channels: tl.constexpr, out_channels: tl.constexpr, NEEDS_LOW: tl.constexpr,
    CLEARS_LOW: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """height, width, pixels: of the small map. Every program leaves in `sums` its dE (64, BLOCK_C), dX (64, 64) and
    bias gradient (64). grad_low is contiguous in channels_last."""
    dtype = low.dtype.element_ty
    e = tl.arange(0, 64)
    r, s, o = e // out_channels // 4, e // out_channels % 4, e % out_channels
    a, b, skip_channel = e // skip_channels // 4, e // skip_channels % 4, e % skip_channels
    is_own = ((r == 1) | (r == 2)) & ((s == 1) | (s == 2))
    c = tl.arange(0, BLOCK_C)
    effective = tl.zeros([64, BLOCK_C], tl.float32)
    if NEEDS_LOW:
        for tap in range(9):
            ky, kx = tap // 3, tap % 3
            adds = ((r == 2 - ky) | (r == 3 - ky)) & ((s == 2 - kx) | (s == 3 - kx))
            at = weight + ky * weight_h + kx * weight_w + o[:, None] * weight_o + c[None, :] * weight_c
            effective += tl.load(at, mask=adds[:, None] & (c < low_channels)[None, :], other=0.0).to(tl.float32)
    low_sum = tl.zeros([64, BLOCK_C], tl.float32)
    skip_sum = tl.zeros([64, 64], tl.float32)
    bias_sum = tl.zeros([64], tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(pixels, BLOCK_M), tl.num_programs(0)):
        pixel = tile * BLOCK_M + tl.arange(0, BLOCK_M)
        present = pixel < pixels
        i, j = pixel // width % height, pixel % width
        n = (pixel // (height * width)).to(tl.int64)  # within a sample 32 bits do
        y, x = 2 * i[:, None] - 1 + r[None, :], 2 * j[:, None] - 1 + s[None, :]
        inside = present[:, None] & (r < 4)[None, :] & (y >= 0) & (y < 2 * height) & (x >= 0) & (x < 2 * width)
        at = (ratios + n * 4 * height * width)[:, None] + (y * 2 * width + x)
        ratio = tl.load(at, mask=inside, other=0.0)
        at = (grad + n * grad_n)[:, None] + (y * grad_h + x * grad_w + o[None, :] * grad_c)
        raw = tl.load(at, mask=ratio > 0, other=0.0).to(tl.float32)  # what lies where no entry was valid may be NaN
        bias_sum += tl.sum(tl.where(is_own[None, :], raw, 0.0), 0)
        scaled = (raw * ratio).to(dtype)
        valid = tl.load(low_mask + n * low_mask_n + i * low_mask_h + j * low_mask_w, mask=present, other=0) != 0
        at = (low + n * low_n + i * low_h + j * low_w)[:, None] + c[None, :] * low_c
        small = tl.load(at, mask=valid[:, None] & (c < low_channels)[None, :], other=0.0)
        low_sum = tl.dot(tl.trans(scaled), small, low_sum, input_precision=PRECISION)
        if NEEDS_LOW:
            result = tl.dot(scaled, effective.to(dtype), input_precision=PRECISION)
            at = grad_low + pixel.to(tl.int64)[:, None] * low_channels + c[None, :]
            if CLEARS_LOW:
                result = tl.where(valid[:, None], result, 0.0)
            tl.store(at, result.to(dtype), mask=present[:, None] & (c < low_channels)[None, :])
        y, x = 2 * i[:, None] - 1 + a[None, :], 2 * j[:, None] - 1 + b[None, :]
        inside = present[:, None] & (a < 4)[None, :] & (y >= 0) & (y < 2 * height) & (x >= 0) & (x < 2 * width)
        at = (skip_mask + n * skip_mask_n)[:, None] + (y * skip_mask_h + x * skip_mask_w)
        valid_skip = tl.load(at, mask=inside, other=0) != 0
        at = (skip + n * skip_n)[:, None] + (y * skip_h + x * skip_w + skip_channel[None, :] * skip_c)
        patch = tl.load(at, mask=valid_skip, other=0.0)
        skip_sum = tl.dot(tl.trans(scaled), patch, skip_sum, input_precision=PRECISION)
    sums += tl.program_id(0) * 64 * (BLOCK_C + 64 + 1)
    tl.store(sums + e[:, None] * BLOCK_C + c[None, :], low_sum)
    tl.store(sums + 64 * BLOCK_C + e[:, None] * 64 + e[None, :], skip_sum)
    tl.store(sums + 64 * (BLOCK_C + 64) + e, bias_sum)


@triton.jit
def fold_kernel(
    low_sum, skip_sum, bias_sum, grad_weight, weight_o, weight_h, weight_w, weight_c, grad_bias,
    low_channels: tl.constexpr, skip_channels: tl.constexpr, out_channels: tl.constexpr, HAS_BIAS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One program per tap and output channel: its gradient for all input channels; those of the first tap also the
    bias's."""
    ky, kx, o = tl.program_id(0) // 3, tl.program_id(0) % 3, tl.program_id(1)
    c, skip_channel = tl.arange(0, BLOCK_C), tl.arange(0, 4)
    low, skip, bias = tl.zeros([BLOCK_C], tl.float32), tl.zeros([4], tl.float32), 0.0
    for u in range(2):
        for v in range(2):
            e = ((2 - ky + u) * 4 + 2 - kx + v) * out_channels + o
            low += tl.load(low_sum + e * BLOCK_C + c)
            own = ((1 + u) * 4 + 1 + v) * out_channels + o
            position = (u + ky) * 4 + v + kx
            at = skip_sum + own * 64 + position * skip_channels + skip_channel
            skip += tl.load(at, mask=skip_channel < skip_channels, other=0.0)
            bias += tl.load(bias_sum + own)
    at = grad_weight + o * weight_o + ky * weight_h + kx * weight_w
    dtype = grad_weight.dtype.element_ty
    tl.store(at + c * weight_c, low.to(dtype), mask=c < low_channels)
    at += low_channels * weight_c
    tl.store(at + skip_channel * weight_c, skip.to(dtype), mask=skip_channel < skip_channels)
    if HAS_BIAS and (ky + kx == 0):
        tl.store(grad_bias + o, bias.to(dtype))


def takes(low: Tensor, skip: Tensor, weight: Tensor, needed: list[bool]) -> bool:
    """Whether `backward` computes these gradients: not that of the skip, as an image asks for none."""
    small = weight.shape[0] <= MOST_CHANNELS and skip.shape[1] <= MOST_CHANNELS
    return small and low.shape[1] <= MOST_LOW_CHANNELS and low.numel() > 0 and not needed[1]


def backward(
    grad_output: Tensor,
    low: Tensor,
    low_mask: Tensor,
    skip: Tensor,
    skip_mask: Tensor,
    weight: Tensor,
    ratio: Tensor,
    low_is_masked: bool,
    needed: list[bool],
) -> tuple[Tensor | None, None, Tensor | None, Tensor | None]:
    """Gradients of low, skip (never asked for), weight and bias."""
    n, c1, h, w = low.shape
    c2, out_channels = skip.shape[1], weight.shape[0]
    block_c = max(16, power(c1))
    pixels = n * h * w
    programs = min(PROGRAMS, cdiv(pixels, BLOCK))
    grad_low = torch.empty_like(low, memory_format=torch.channels_last) if needed[0] else None
    grad_weight = torch.empty_like(weight, memory_format=torch.channels_last)
    grad_bias = weight.new_empty(out_channels) if needed[3] else None
    sums = low.new_empty((programs, 64 * (block_c + 64 + 1)), dtype=torch.float32)
    channels = {"low_channels": c1, "skip_channels": c2, "out_channels": out_channels, "BLOCK_C": block_c}
    with device_of(low):
        gradients_kernel[(programs,)](
            grad_output, **strides_of("grad", grad_output), ratios=ratio, low=low, **strides_of("low", low),
            low_mask=low_mask, **strides_of("low_mask", low_mask, False), skip=skip, **strides_of("skip", skip),
            skip_mask=skip_mask, **strides_of("skip_mask", skip_mask, False), **weight_arguments(weight),
            grad_low=grad_low, sums=sums, height=h, width=w, pixels=pixels, **channels, NEEDS_LOW=needed[0],
            CLEARS_LOW=not low_is_masked, BLOCK_M=BLOCK, PRECISION=precision(low.dtype), num_warps=8, num_stages=1,
        )  # fmt: skip
        arguments = weight_arguments(grad_weight)
        arguments["grad_weight"] = arguments.pop("weight")
        low_sum, skip_sum, bias_sum = sums.sum(0).split([64 * block_c, 64 * 64, 64])
        fold_kernel[(9, out_channels)](
            low_sum, skip_sum, bias_sum, **arguments, grad_bias=grad_bias, **channels, HAS_BIAS=needed[3]
        )
    return grad_low, None, grad_weight if needed[2] else None, grad_bias
