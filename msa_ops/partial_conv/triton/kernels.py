# mypy: ignore-errors
# Kernels are written in Triton's language, which Python's types do not describe.
"""The Triton kernel of the partial convolution: it reads the mask, multiplies, renormalises and stores."""

from __future__ import annotations

import triton
import triton.language as tl

from ...core.triton.convolution import add_rows_of_taps, add_taps, store_outputs, tile_pixels, valid_taps


@triton.jit
def conv_kernel(
    image, image_n, image_h, image_w, image_c, mask, mask_n, mask_h, mask_w, weight, weight_o, weight_h, weight_w,
    weight_c, bias, output, ratios, new_mask, parts, height, width, out_height, out_width, pixels,
    channels: tl.constexpr, out_channels, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w, numerator,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr, HAS_BIAS: tl.constexpr, NARROW: tl.constexpr, PARTS: tl.constexpr,
    PRECISION: tl.constexpr, TILE_H: tl.constexpr, TILE_W: tl.constexpr, BLOCK_N: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Computes one tile of the output, or one part of its sum.

    The grid has two axes: tiles of TILE_H × TILE_W pixels times tiles of output channels, of which the latter run
    faster; and parts. With TILE_H = 0 a tile is TILE_W pixels in raster order, across rows and samples. `numerator` is
    E divided by the number of channels that the mask's plane covers."""
    BLOCK_M: tl.constexpr = TILE_W if TILE_H == 0 else TILE_H * TILE_W
    across = tl.cdiv(out_channels, BLOCK_N)
    tile, column, part = tl.program_id(0) // across, tl.program_id(0) % across, tl.program_id(1)
    n, y, x, present = tile_pixels(tile, out_height, out_width, pixels, TILE_H, TILE_W, BLOCK_M)
    at_y, at_x = y * stride_h - padding_h, x * stride_w - padding_w
    columns = column * BLOCK_N + tl.arange(0, BLOCK_N)
    has_column = columns < out_channels
    bits, entries = valid_taps(
        mask + n.to(tl.int64) * mask_n, at_y, at_x, present, mask_h, mask_w, height, width, dilation_h, dilation_w,
        KERNEL_H, KERNEL_W, 0, BLOCK_M,
    )  # fmt: skip
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    image += n.to(tl.int64) * image_n
    if NARROW:
        total = add_rows_of_taps(
            total, image, image_h, image_w, image_c, at_y, at_x, bits, dilation_h, dilation_w, weight,
            columns * weight_o, has_column, weight_h, weight_w, weight_c, channels, KERNEL_H, KERNEL_W, STEP, PRECISION,
        )  # fmt: skip
    else:
        total = add_taps(
            total, image, image_h, image_w, image_c, at_y, at_x, bits, dilation_h, dilation_w, weight,
            columns * weight_o, has_column, weight_h, weight_w, weight_c, channels, part, KERNEL_H,
            KERNEL_W, 0, STEP, PARTS, PRECISION,
        )  # fmt: skip
    is_first = (column == 0) & (part == 0)
    store_outputs(
        total, entries, numerator, (n * out_height + y) * out_width + x, present, columns, has_column, out_channels,
        bias, output, ratios, new_mask, parts, part, pixels, is_first, HAS_BIAS, PARTS,
    )  # fmt: skip
