# mypy: ignore-errors
# Kernels are written in Triton's language, which Python's types do not describe.
"""Triton kernels of `image_layer`, which has the equations."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def gradients_kernel(
    grad, grad_n, grad_h, grad_w, grad_c, ratios, low, low_n, low_h, low_w, low_c, low_mask, low_mask_n, low_mask_h,
    low_mask_w, skip, skip_n, skip_h, skip_w, skip_c, skip_mask, skip_mask_n, skip_mask_h, skip_mask_w, weight,
    weight_o, weight_h, weight_w, weight_c, grad_low, sums, height, width, pixels,
    low_channels: tl.constexpr, skip_channels: tl.constexpr, out_channels: tl.constexpr, NEEDS_LOW: tl.constexpr,
    CLEARS_LOW: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Writes the gradient of the small map, contiguous in channels_last, and every program's sums: its dE (64,
    BLOCK_C), dX (64, 64) and bias gradient (64). height, width and pixels are those of the small map."""
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
    """Writes the gradient of one tap and output channel for all input channels; the programs of the first tap also
    write the bias's."""
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
