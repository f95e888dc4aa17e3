# mypy: ignore-errors
# Kernels are written in Triton's language, which Python's types do not describe.
"""What the Triton kernels of the partial convolutions (Eqs. 1-5) consist of: device functions, and the kernel that adds
the parts of a split sum.

A kernel of a partial convolution is an implicit matrix product: rows are output pixels, columns are output channels,
and the sum runs over the window's taps and, within a tap, over chunks of channels. What makes the convolution partial
costs next to nothing in that form:

* a program first looks at the mask under the windows of its pixels and packs what is valid into the bits of one integer
  per pixel. The bits are the predicate of the loads, so x ⊙ m is never built; their sum is s(p) of Eq. 4; and a tap at
  which no pixel of the tile is valid is left out, loads and products;
* E/s, the bias and the zeros of Eq. 2 are applied to the float32 sums before they are rounded, once.

Where there are too few tiles to fill the device, which is so deep in a U-Net, the sum is split among programs,
and `finish_kernel` adds the parts in a fixed order.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _or(a, b):
    return a | b


@triton.jit
def tile_pixels(tile, height, width, pixels, TILE_H: tl.constexpr, TILE_W: tl.constexpr, BLOCK_M: tl.constexpr):
    """Returns sample, row and column of a tile's pixels, and which of them exist. Where tiles have TILE_H rows, a map
    is a whole number of tiles."""
    i = tl.arange(0, BLOCK_M)
    if TILE_H == 0:
        pixel = tile * BLOCK_M + i
        n, y, x, present = pixel // (height * width), pixel // width % height, pixel % width, pixel < pixels
    else:
        across, down = width // TILE_W, height // TILE_H
        n = tile // (across * down) + tl.zeros_like(i)
        y = tile // across % down * TILE_H + i // TILE_W
        x = tile % across * TILE_W + i % TILE_W
        present = i < BLOCK_M
    return n, y, x, present


@triton.jit
def valid_taps(
    mask, at_y, at_x, present, stride_h, stride_w, height, width, dilation_h, dilation_w, KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr, SHIFT: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Returns an integer per pixel, and how many of its bits are set. Bit t of pixel i tells whether tap t of its
    window, which starts at (at_y, at_x), falls on a valid pixel of the map, which is upsampled by 2^SHIFT. `mask`
    points at the pixel's sample."""
    bits = tl.zeros([BLOCK_M], tl.int64)
    count = tl.zeros([BLOCK_M], tl.int32)
    for tap_y in range(KERNEL_H):
        y = at_y + tap_y * dilation_h
        in_row = present & (y >= 0) & (y < (height << SHIFT))
        row = mask + (y >> SHIFT) * stride_h
        for tap_x in tl.static_range(KERNEL_W):  # unrolled, so that a row's loads are in flight together
            x = at_x + tap_x * dilation_w
            inside = in_row & (x >= 0) & (x < (width << SHIFT))
            valid = tl.load(row + (x >> SHIFT) * stride_w, mask=inside, other=0) != 0
            bits |= valid.to(tl.int64) << (tap_y * KERNEL_W + tap_x)
            count += valid.to(tl.int32)
    return bits, count


@triton.jit
def _count(bits, TAPS: tl.constexpr):
    count = 0
    for tap in range(TAPS):
        count += ((bits >> tap) & 1).to(tl.int32)
    return count


@triton.jit
def _lowest(bits):
    """Returns the number of the lowest set bit, which is the exponent of its value as a float."""
    value = (bits & -bits).to(tl.float32)
    return (value.to(tl.int32, bitcast=True) >> 23) - 127


@triton.jit
def add_taps(
    total, image, stride_h, stride_w, stride_c, at_y, at_x, bits, dilation_h, dilation_w, weight, columns, has_column,
    weight_h, weight_w, weight_c, channels: tl.constexpr, part, KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr,
    SHIFT: tl.constexpr, STEP: tl.constexpr, PARTS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Adds the products of one source to `total`, over the taps that any pixel has and over chunks of STEP channels;
    where the sum has PARTS parts, only those of `part`. `image` points at the pixel's sample, `columns` are the
    weight's output channels."""
    chunks = tl.cdiv(channels, STEP)
    if PARTS == 1:
        rest = tl.reduce(bits, 0, _or)
        first, last = 0, _count(rest, KERNEL_H * KERNEL_W) * chunks
    else:
        rest = tl.full([], 0, tl.int64)
        steps = tl.cdiv(KERNEL_H * KERNEL_W * chunks, PARTS)
        first = part * steps
        last = tl.minimum(first + steps, KERNEL_H * KERNEL_W * chunks)
    for step in range(first, last):
        chunk = step % chunks
        tap = _lowest(rest) if PARTS == 1 else step // chunks
        y = at_y + (tap // KERNEL_W) * dilation_h
        x = at_x + (tap % KERNEL_W) * dilation_w
        valid = ((bits >> tap) & 1) != 0
        c = chunk * STEP + tl.arange(0, STEP)
        has_left, has_right = valid[:, None], has_column[None, :]
        if channels % STEP != 0:
            has_left, has_right = has_left & (c < channels)[None, :], has_right & (c < channels)[:, None]
        at = image + ((y >> SHIFT) * stride_h + (x >> SHIFT) * stride_w)
        left = tl.load(at[:, None] + c[None, :] * stride_c, mask=has_left, other=0.0)
        at = weight + ((tap // KERNEL_W) * weight_h + (tap % KERNEL_W) * weight_w)
        right = tl.load(at + columns[None, :] + c[:, None] * weight_c, mask=has_right, other=0.0)
        total = tl.dot(left, right, total, input_precision=PRECISION)
        if PARTS == 1:
            rest = tl.where(chunk == chunks - 1, rest & (rest - 1), rest)
    return total


@triton.jit
def add_rows_of_taps(
    total, image, stride_h, stride_w, stride_c, at_y, at_x, bits, dilation_h, dilation_w, weight, columns, has_column,
    weight_h, weight_w, weight_c, channels: tl.constexpr, KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr,
    STEP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Does the same for a source of few channels: all taps and channels of a row of the window are one chunk, and rows
    that are empty for all pixels are left out."""
    e = tl.arange(0, STEP)
    tap_x, c = e // channels, e % channels
    in_row = tap_x < KERNEL_W
    any_pixel = tl.reduce(bits, 0, _or)
    for tap_y in range(KERNEL_H):
        if (any_pixel >> (tap_y * KERNEL_W)) & ((1 << KERNEL_W) - 1) != 0:
            y = at_y + tap_y * dilation_h
            valid = (bits[:, None] >> (tap_y * KERNEL_W + tap_x)[None, :]) & 1
            at = image + y * stride_h + at_x * stride_w
            left = tl.load(
                at[:, None] + (tap_x * dilation_w * stride_w + c * stride_c)[None, :],
                mask=(valid != 0) & in_row[None, :], other=0.0,
            )  # fmt: skip
            at = weight + tap_y * weight_h + columns[None, :] + (tap_x * weight_w + c * weight_c)[:, None]
            right = tl.load(at, mask=in_row[:, None] & has_column[None, :], other=0.0)
            total = tl.dot(left, right, total, input_precision=PRECISION)
    return total


@triton.jit
def renormalise(total, ratio, bias, columns, has_column, HAS_BIAS: tl.constexpr):
    """Applies Eq. 2 to float32 sums."""
    total = total * ratio[:, None]
    if HAS_BIAS:
        total += tl.load(bias + columns, mask=has_column, other=0.0).to(tl.float32)[None, :]
    return tl.where(ratio[:, None] > 0, total, 0.0)


@triton.jit
def store_outputs(
    total, entries, numerator, pixel, present, columns, has_column, out_channels, bias, output, ratios, new_mask, parts,
    part, pixels, is_first, HAS_BIAS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Stores the results of Eqs. 2-5: the ratio E/s and mask' (only in the programs that are the first of their
    pixels), and the output or, where the sum is split, this part of it."""
    ratio = tl.where(entries > 0, numerator / tl.maximum(entries, 1).to(tl.float32), 0.0)
    if is_first:
        tl.store(ratios + pixel, ratio, mask=present)
        tl.store(new_mask + pixel, (entries > 0).to(tl.uint8), mask=present)
    at = pixel.to(tl.int64)[:, None] * out_channels + columns[None, :]
    there = present[:, None] & has_column[None, :]
    if PARTS == 1:
        total = renormalise(total, ratio, bias, columns, has_column, HAS_BIAS)
        tl.store(output + at, total.to(output.dtype.element_ty), mask=there)
    else:
        tl.store(parts + part.to(tl.int64) * pixels * out_channels + at, total, mask=there)


@triton.jit
def finish_kernel(
    parts, ratios, bias, output, pixels, out_channels, HAS_BIAS: tl.constexpr, PARTS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Adds the parts of a split sum, from the first to the last, and applies Eq. 2."""
    pixel = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    present = pixel < pixels
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    has_column = columns < out_channels
    at = pixel.to(tl.int64)[:, None] * out_channels + columns[None, :]
    there = present[:, None] & has_column[None, :]
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for _ in range(PARTS):
        total += tl.load(parts + at, mask=there, other=0.0)
        parts += pixels * out_channels
    ratio = tl.load(ratios + pixel, mask=present, other=0.0)
    total = renormalise(total, ratio, bias, columns, has_column, HAS_BIAS)
    tl.store(output + at, total.to(output.dtype.element_ty), mask=there)
