"""Partial convolution (Eqs. 1-5) in Triton: one kernel that reads the mask, multiplies, renormalises and stores.

An implicit matrix product: rows are output pixels, columns output channels, and the sum runs over the window's taps
and, within a tap, over chunks of channels. What makes it partial costs next to nothing in that form:

* a program first looks at the mask under the windows of its pixels and packs what is valid into the bits of one integer
  per pixel. The bits are the predicate of the loads, so x ⊙ m is never built; their sum is s(p) of Eq. 4; and a tap at
  which no pixel of the tile is valid is left out, loads and products;
* E/s, the bias and the zeros of Eq. 2 are applied to the float32 sums before they are rounded, once.

Where there are too few tiles to fill the device, which is so deep in a U-Net, the sum is split among programs, and a
second kernel adds the parts in a fixed order.

The decoder's form reads the small map and the skip as two sources of one sum. Where the weight is small beside the
map, the four phases of `csrc/partial_conv/params.h` run side by side, each with taps summed beforehand; else the small
map is read through y // 2, x // 2.
"""

from __future__ import annotations

import triton
import triton.language as tl

# ---- pieces of the kernels -----------------------------------------------------------------------------------------


@triton.jit
def _or(a, b):
    return a | b


@triton.jit
def _pixels(tile, height, width, pixels, TILE_H: tl.constexpr, TILE_W: tl.constexpr, BLOCK_M: tl.constexpr):
    """Sample, row and column of a tile's pixels, and which of them there are. A map is a whole number of tiles where
    they have TILE_H rows."""
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
def _valid_taps(
    mask, at_y, at_x, present, stride_h, stride_w, height, width, dilation_h, dilation_w, KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr, SHIFT: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Bit t of pixel i: whether tap t of its window, which starts at (at_y, at_x), falls on a valid pixel of the map,
    which is upsampled by 2^SHIFT. Also how many do. `mask` points at the pixel's sample."""
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
    """The number of the lowest set bit: the exponent of its value as a float."""
    value = (bits & -bits).to(tl.float32)
    return (value.to(tl.int32, bitcast=True) >> 23) - 127


@triton.jit
def _add_taps(
    total, image, stride_h, stride_w, stride_c, at_y, at_x, bits, dilation_h, dilation_w, weight, columns, has_column,
    weight_h, weight_w, weight_c, channels: tl.constexpr, part, KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr,
    SHIFT: tl.constexpr, STEP: tl.constexpr, PARTS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """total + the products of one source: over the taps that any pixel has, and chunks of STEP channels. Of PARTS parts
    of the sum only `part`. `image` points at the pixel's sample, `columns` are the weight's output channels."""
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
def _add_rows_of_taps(
    total, image, stride_h, stride_w, stride_c, at_y, at_x, bits, dilation_h, dilation_w, weight, columns, has_column,
    weight_h, weight_w, weight_c, channels: tl.constexpr, KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr,
    STEP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The same for a source of few channels: all taps and channels of a row of the window are one chunk; rows that are
    empty for all pixels are left out."""
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
def _renormalise(total, ratio, bias, columns, has_column, HAS_BIAS: tl.constexpr):
    """Eq. 2 on float32 sums."""
    total = total * ratio[:, None]
    if HAS_BIAS:
        total += tl.load(bias + columns, mask=has_column, other=0.0).to(tl.float32)[None, :]
    return tl.where(ratio[:, None] > 0, total, 0.0)


@triton.jit
def _store(
    total, entries, numerator, pixel, present, columns, has_column, out_channels, bias, output, ratios, new_mask, parts,
    part, pixels, is_first, HAS_BIAS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Eqs. 2-5: the ratio E/s and mask' (by the programs that are the first of their pixels), and the output; or, where
    the sum is split, this part of it."""
    ratio = tl.where(entries > 0, numerator / tl.maximum(entries, 1).to(tl.float32), 0.0)
    if is_first:
        tl.store(ratios + pixel, ratio, mask=present)
        tl.store(new_mask + pixel, (entries > 0).to(tl.uint8), mask=present)
    at = pixel.to(tl.int64)[:, None] * out_channels + columns[None, :]
    there = present[:, None] & has_column[None, :]
    if PARTS == 1:
        total = _renormalise(total, ratio, bias, columns, has_column, HAS_BIAS)
        tl.store(output + at, total.to(output.dtype.element_ty), mask=there)
    else:
        tl.store(parts + part.to(tl.int64) * pixels * out_channels + at, total, mask=there)


# ---- kernels -------------------------------------------------------------------------------------------------------


@triton.jit
def conv_kernel(
    image, image_n, image_h, image_w, image_c, mask, mask_n, mask_h, mask_w, weight, weight_o, weight_h, weight_w,
    weight_c, bias, output, ratios, new_mask, parts, height, width, out_height, out_width, pixels,
    channels: tl.constexpr, out_channels, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w, numerator,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr, HAS_BIAS: tl.constexpr, NARROW: tl.constexpr, PARTS: tl.constexpr,
    PRECISION: tl.constexpr, TILE_H: tl.constexpr, TILE_W: tl.constexpr, BLOCK_N: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Grid: tiles of TILE_H × TILE_W pixels times tiles of output channels, the latter running faster; parts.
    TILE_H = 0: TILE_W pixels in raster order, across rows and samples. `numerator` is E over the channels that the
    mask's plane stands for."""
    BLOCK_M: tl.constexpr = TILE_W if TILE_H == 0 else TILE_H * TILE_W
    across = tl.cdiv(out_channels, BLOCK_N)
    tile, column, part = tl.program_id(0) // across, tl.program_id(0) % across, tl.program_id(1)
    n, y, x, present = _pixels(tile, out_height, out_width, pixels, TILE_H, TILE_W, BLOCK_M)
    at_y, at_x = y * stride_h - padding_h, x * stride_w - padding_w
    columns = column * BLOCK_N + tl.arange(0, BLOCK_N)
    has_column = columns < out_channels
    bits, entries = _valid_taps(
        mask + n.to(tl.int64) * mask_n, at_y, at_x, present, mask_h, mask_w, height, width, dilation_h, dilation_w,
        KERNEL_H, KERNEL_W, 0, BLOCK_M,
    )  # fmt: skip
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    image += n.to(tl.int64) * image_n
    if NARROW:
        total = _add_rows_of_taps(
            total, image, image_h, image_w, image_c, at_y, at_x, bits, dilation_h, dilation_w, weight,
            columns * weight_o, has_column, weight_h, weight_w, weight_c, channels, KERNEL_H, KERNEL_W, STEP, PRECISION,
        )  # fmt: skip
    else:
        total = _add_taps(
            total, image, image_h, image_w, image_c, at_y, at_x, bits, dilation_h, dilation_w, weight,
            columns * weight_o, has_column, weight_h, weight_w, weight_c, channels, part, KERNEL_H,
            KERNEL_W, 0, STEP, PARTS, PRECISION,
        )  # fmt: skip
    is_first = (column == 0) & (part == 0)
    _store(
        total, entries, numerator, (n * out_height + y) * out_width + x, present, columns, has_column, out_channels,
        bias, output, ratios, new_mask, parts, part, pixels, is_first, HAS_BIAS, PARTS,
    )  # fmt: skip


@triton.jit
def upcat_kernel(
    low, low_n, low_h, low_w, low_c, low_mask, low_mask_n, low_mask_h, low_mask_w, skip, skip_n, skip_h, skip_w, skip_c,
    skip_mask, skip_mask_n, skip_mask_h, skip_mask_w, weight, weight_o, weight_h, weight_w, weight_c, phase_weight,
    bias, output, ratios, new_mask, parts, height, width, pixels, low_channels: tl.constexpr,
    skip_channels: tl.constexpr, out_channels, numerator, PHASES: tl.constexpr, NARROW: tl.constexpr,
    HAS_BIAS: tl.constexpr, PARTS: tl.constexpr, PRECISION: tl.constexpr, TILE_H: tl.constexpr, TILE_W: tl.constexpr,
    BLOCK_N: tl.constexpr, STEP: tl.constexpr, SKIP_STEP: tl.constexpr,
):  # fmt: skip
    """The decoder's form; height, width: of the output. Grid as above. With PHASES a tile's pixels are those of the
    small map, and the last index counts the four phases: it makes the outputs (2y + a, 2x + b). The phases' weight lies
    as [phase][tap][C_out][C_low]."""
    BLOCK_M: tl.constexpr = TILE_W if TILE_H == 0 else TILE_H * TILE_W
    across = tl.cdiv(out_channels, BLOCK_N)
    tile, column, part = tl.program_id(0) // across, tl.program_id(0) % across, tl.program_id(1)
    if PHASES:
        a, b = part // 2, part % 2
        n, low_y, low_x, present = _pixels(tile, height // 2, width // 2, pixels // 4, TILE_H, TILE_W, BLOCK_M)
        y, x = 2 * low_y + a, 2 * low_x + b
        is_first = column == 0
    else:
        n, y, x, present = _pixels(tile, height, width, pixels, TILE_H, TILE_W, BLOCK_M)
        is_first = (column == 0) & (part == 0)
    columns = column * BLOCK_N + tl.arange(0, BLOCK_N)
    has_column = columns < out_channels
    low_mask += n.to(tl.int64) * low_mask_n
    low += n.to(tl.int64) * low_n
    skip += n.to(tl.int64) * skip_n
    skip_bits, skip_count = _valid_taps(
        skip_mask + n.to(tl.int64) * skip_mask_n, y - 1, x - 1, present, skip_mask_h, skip_mask_w, height, width, 1, 1,
        3, 3, 0, BLOCK_M,
    )  # fmt: skip
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    if PHASES:
        at_y, at_x = low_y - 1 + a, low_x - 1 + b
        phase_bits, _ = _valid_taps(
            low_mask, at_y, at_x, present, low_mask_h, low_mask_w, height // 2, width // 2, 1, 1, 2, 2, 0, BLOCK_M
        )
        # Of the window's three rows two fall on the one of the small rows u = 0, 1 that is not a; columns likewise.
        low_count = tl.zeros([BLOCK_M], tl.int32)
        for tap in tl.static_range(4):
            times = tl.where(a != tap // 2, 2, 1) * tl.where(b != tap % 2, 2, 1)
            low_count += ((phase_bits >> tap) & 1).to(tl.int32) * times
        phase_weight += part.to(tl.int64) * 4 * out_channels * low_channels
        total = _add_taps(
            total, low, low_h, low_w, low_c, at_y, at_x, phase_bits, 1, 1, phase_weight, columns * low_channels,
            has_column, 2 * out_channels * low_channels, out_channels * low_channels, 1, low_channels, 0, 2, 2, 0, STEP,
            1, PRECISION,
        )  # fmt: skip
    else:
        low_bits, low_count = _valid_taps(
            low_mask, y - 1, x - 1, present, low_mask_h, low_mask_w, height // 2, width // 2, 1, 1, 3, 3, 1, BLOCK_M
        )
        total = _add_taps(
            total, low, low_h, low_w, low_c, y - 1, x - 1, low_bits, 1, 1, weight, columns * weight_o, has_column,
            weight_h, weight_w, weight_c, low_channels, part, 3, 3, 1, STEP, PARTS, PRECISION,
        )  # fmt: skip
    weight += low_channels * weight_c
    if NARROW:
        total = _add_rows_of_taps(
            total, skip, skip_h, skip_w, skip_c, y - 1, x - 1, skip_bits, 1, 1, weight, columns * weight_o, has_column,
            weight_h, weight_w, weight_c, skip_channels, 3, 3, SKIP_STEP, PRECISION,
        )  # fmt: skip
    else:
        total = _add_taps(
            total, skip, skip_h, skip_w, skip_c, y - 1, x - 1, skip_bits, 1, 1, weight, columns * weight_o, has_column,
            weight_h, weight_w, weight_c, skip_channels, part, 3, 3, 0, SKIP_STEP, PARTS, PRECISION,
        )  # fmt: skip
    _store(
        total, low_channels * low_count + skip_channels * skip_count, numerator, (n * height + y) * width + x, present,
        columns, has_column, out_channels, bias, output, ratios, new_mask, parts, part, pixels, is_first, HAS_BIAS,
        PARTS,
    )  # fmt: skip


@triton.jit
def finish_kernel(
    parts, ratios, bias, output, pixels, out_channels, HAS_BIAS: tl.constexpr, PARTS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Adds the parts of a split sum, first to last, and applies Eq. 2."""
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
    total = _renormalise(total, ratio, bias, columns, has_column, HAS_BIAS)
    tl.store(output + at, total.to(output.dtype.element_ty), mask=there)


@triton.jit
def phase_weight_kernel(
    weight, weight_o, weight_h, weight_w, weight_c, phases, size, channels, out_channels, BLOCK: tl.constexpr
):
    """phases[2a + b][2u + v][o][c] = Σ of the 3×3 taps that fall on row u and column v of the small map. A program sums
    one tap of one phase; each has one, two or four of the nine."""
    phase, tap = tl.program_id(1) // 4, tl.program_id(1) % 4
    a, b, u, v = phase // 2, phase % 2, tap // 2, tap % 2
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < size
    at = weight + (i // channels) * weight_o + (i % channels) * weight_c
    # Rows k of the kernel with (k + 1 - a) // 2 = u: 2u + a - 1 and 2u + a, where there are such.
    first_y, last_y = tl.maximum(2 * u + a - 1, 0), tl.minimum(2 * u + a, 2)
    first_x, last_x = tl.maximum(2 * v + b - 1, 0), tl.minimum(2 * v + b, 2)
    total = tl.zeros([BLOCK], tl.float32)
    for y in range(first_y, last_y + 1):
        for x in range(first_x, last_x + 1):
            total += tl.load(at + y * weight_h + x * weight_w, mask=inside, other=0.0).to(tl.float32)
    at = phases + tl.program_id(1).to(tl.int64) * size + i
    tl.store(at, total.to(phases.dtype.element_ty), mask=inside)
