# mypy: ignore-errors
# Kernels are written in Triton's language, which Python's types do not describe.
"""The Triton kernels of the decoder's convolution, which read the small map and the skip as two sources of one sum.

Where the weight is small beside the map, the four phases (`csrc/decoder_conv/`) run side by side, each with taps summed
beforehand; else the small map is read through y // 2, x // 2.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ...core.triton.convolution import add_rows_of_taps, add_taps, store_outputs, tile_pixels, valid_taps


@triton.jit
def upcat_kernel(
    low, low_n, low_h, low_w, low_c, low_mask, low_mask_n, low_mask_h, low_mask_w, skip, skip_n, skip_h, skip_w, skip_c,
    skip_mask, skip_mask_n, skip_mask_h, skip_mask_w, weight, weight_o, weight_h, weight_w, weight_c, phase_weight,
    bias, output, ratios, new_mask, parts, height, width, pixels, low_channels: tl.constexpr,
    skip_channels: tl.constexpr, out_channels, numerator, PHASES: tl.constexpr, NARROW: tl.constexpr,
    HAS_BIAS: tl.constexpr, PARTS: tl.constexpr, PRECISION: tl.constexpr, TILE_H: tl.constexpr, TILE_W: tl.constexpr,
    BLOCK_N: tl.constexpr, STEP: tl.constexpr, SKIP_STEP: tl.constexpr,
):  # fmt: skip
    """Computes one tile of the output, or one part of its sum; height and width are those of the output.

    The grid is that of the partial convolution's kernel. With PHASES a tile's pixels are those of the small map, and
    the second axis counts the four phases, of which (a, b) makes the outputs (2y + a, 2x + b). The weight of the phases
    has the layout [phase][tap][C_out][C_low]."""
    BLOCK_M: tl.constexpr = TILE_W if TILE_H == 0 else TILE_H * TILE_W
    across = tl.cdiv(out_channels, BLOCK_N)
    tile, column, part = tl.program_id(0) // across, tl.program_id(0) % across, tl.program_id(1)
    if PHASES:
        a, b = part // 2, part % 2
        n, low_y, low_x, present = tile_pixels(tile, height // 2, width // 2, pixels // 4, TILE_H, TILE_W, BLOCK_M)
        y, x = 2 * low_y + a, 2 * low_x + b
        is_first = column == 0
    else:
        n, y, x, present = tile_pixels(tile, height, width, pixels, TILE_H, TILE_W, BLOCK_M)
        is_first = (column == 0) & (part == 0)
    columns = column * BLOCK_N + tl.arange(0, BLOCK_N)
    has_column = columns < out_channels
    low_mask += n.to(tl.int64) * low_mask_n
    low += n.to(tl.int64) * low_n
    skip += n.to(tl.int64) * skip_n
    skip_bits, skip_count = valid_taps(
        skip_mask + n.to(tl.int64) * skip_mask_n, y - 1, x - 1, present, skip_mask_h, skip_mask_w, height, width, 1, 1,
        3, 3, 0, BLOCK_M,
    )  # fmt: skip
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    if PHASES:
        at_y, at_x = low_y - 1 + a, low_x - 1 + b
        phase_bits, _ = valid_taps(
            low_mask, at_y, at_x, present, low_mask_h, low_mask_w, height // 2, width // 2, 1, 1, 2, 2, 0, BLOCK_M
        )
        # Of the window's three rows two fall on the one of the small rows u = 0, 1 that is not a; columns likewise.
        low_count = tl.zeros([BLOCK_M], tl.int32)
        for tap in tl.static_range(4):
            times = tl.where(a != tap // 2, 2, 1) * tl.where(b != tap % 2, 2, 1)
            low_count += ((phase_bits >> tap) & 1).to(tl.int32) * times
        phase_weight += part.to(tl.int64) * 4 * out_channels * low_channels
        total = add_taps(
            total, low, low_h, low_w, low_c, at_y, at_x, phase_bits, 1, 1, phase_weight, columns * low_channels,
            has_column, 2 * out_channels * low_channels, out_channels * low_channels, 1, low_channels, 0, 2, 2, 0, STEP,
            1, PRECISION,
        )  # fmt: skip
    else:
        low_bits, low_count = valid_taps(
            low_mask, y - 1, x - 1, present, low_mask_h, low_mask_w, height // 2, width // 2, 1, 1, 3, 3, 1, BLOCK_M
        )
        total = add_taps(
            total, low, low_h, low_w, low_c, y - 1, x - 1, low_bits, 1, 1, weight, columns * weight_o, has_column,
            weight_h, weight_w, weight_c, low_channels, part, 3, 3, 1, STEP, PARTS, PRECISION,
        )  # fmt: skip
    weight += low_channels * weight_c
    if NARROW:
        total = add_rows_of_taps(
            total, skip, skip_h, skip_w, skip_c, y - 1, x - 1, skip_bits, 1, 1, weight, columns * weight_o, has_column,
            weight_h, weight_w, weight_c, skip_channels, 3, 3, SKIP_STEP, PRECISION,
        )  # fmt: skip
    else:
        total = add_taps(
            total, skip, skip_h, skip_w, skip_c, y - 1, x - 1, skip_bits, 1, 1, weight, columns * weight_o, has_column,
            weight_h, weight_w, weight_c, skip_channels, part, 3, 3, 0, SKIP_STEP, PARTS, PRECISION,
        )  # fmt: skip
    store_outputs(
        total, low_channels * low_count + skip_channels * skip_count, numerator, (n * height + y) * width + x, present,
        columns, has_column, out_channels, bias, output, ratios, new_mask, parts, part, pixels, is_first, HAS_BIAS,
        PARTS,
    )  # fmt: skip


@triton.jit
def phase_weight_kernel(
    weight, weight_o, weight_h, weight_w, weight_c, phases, size, channels, out_channels, BLOCK: tl.constexpr
):
    """Writes phases[2a + b][2u + v][o][c] = Σ of the 3×3 taps that fall on row u and column v of the small map. A
    program sums one tap of one phase, which consists of one, two or four of the nine."""
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
