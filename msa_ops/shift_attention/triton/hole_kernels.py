# mypy: ignore-errors
# Kernels are written in Triton's language, which Python's types do not describe.
"""Triton kernels of the hole attention: the features' normalisation and its gradient, and the valid pixels, which pass
unchanged."""

from __future__ import annotations

import triton
import triton.language as tl

from .layout_kernels import pixel_of, store_tile, tile_of_map


@triton.jit
def _norm(map_, stride_channel, row_offset, present, channels, PIXELS_LAST: tl.constexpr, ROWS: tl.constexpr,
          DEPTH: tl.constexpr, PITCH: tl.constexpr):  # fmt: skip
    """Returns ‖φ‖ over channels, per pixel."""
    squares = tl.zeros([ROWS], tl.float32)
    for first in range(0, PITCH, DEPTH):
        c = first + tl.arange(0, DEPTH)
        x = tile_of_map(map_, stride_channel, row_offset, present, c, channels, PIXELS_LAST).to(tl.float32)
        squares += tl.sum(x * x, 1)
    return tl.sqrt(squares)


@triton.jit
def hole_image_kernel(
    map_, sn, sc, sh, sw, valid, mask_sn, mask_sh, mask_sw, unit, value, keys, eps, h, w, width, halo, length, channels,
    PIXELS_LAST: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr, PITCH: tl.constexpr,
):  # fmt: skip
    """Writes the images of n = φ/max(‖φ‖, eps), and of φ at the valid pixels."""
    sample = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    y, x, present = pixel_of(at, h, w, width, halo)
    y, x = y.to(tl.int64), x.to(tl.int64)
    is_key = tl.load(valid + sample * mask_sn + y * mask_sh + x * mask_sw, mask=present, other=0) != 0
    tl.store(keys + sample * length + at, is_key.to(tl.uint8))
    map_ += sample * sn
    offset = y * sh + x * sw
    norm = tl.maximum(_norm(map_, sc, offset, present, channels, PIXELS_LAST, ROWS, DEPTH, PITCH), eps)
    to = (sample * length + at)[:, None] * PITCH
    for first in range(0, PITCH, DEPTH):
        c = first + tl.arange(0, DEPTH)
        features = tile_of_map(map_, sc, offset, present, c, channels, PIXELS_LAST)
        tl.store(unit + to + c[None, :], (features.to(tl.float32) / norm[:, None]).to(unit.dtype.element_ty))
        features = tl.where(is_key[:, None], features, 0.0)
        tl.store(value + to + c[None, :], features.to(value.dtype.element_ty))


@triton.jit
def hole_gradient_kernel(
    map_, sn, sc, sh, sw, grad, grad_sn, grad_sc, grad_sh, grad_sw, result, result_sn, result_sc, result_sh, result_sw,
    valid, mask_sn, mask_sh, mask_sw, unit_gradient, value_gradient, counts, eps, h, w, width, halo, length, channels,
    PIXELS_LAST: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr, PITCH: tl.constexpr,
):  # fmt: skip
    """Computes dφ, the sum of dO where φ passed unchanged, of dV, and of (g - n (n·g)) / ‖φ‖, with g the gradient of n.
    Where ‖φ‖ is below eps, n is linear in φ, and the last term is g / eps."""
    sample = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    present = pixel < h * w
    y, x = (pixel // w).to(tl.int64), (pixel % w).to(tl.int64)
    is_valid = tl.load(valid + sample * mask_sn + y * mask_sh + x * mask_sw, mask=present, other=0) != 0
    queries = tl.load(counts + sample + tl.zeros([ROWS], tl.int32))
    passed = present & (is_valid | (queries == 0))
    image = (sample * length + halo + y * width + x)[:, None] * PITCH
    map_ += sample * sn
    offset = y * sh + x * sw
    squares = tl.zeros([ROWS], tl.float32)
    product = tl.zeros([ROWS], tl.float32)
    for first in range(0, PITCH, DEPTH):
        c = first + tl.arange(0, DEPTH)
        features = tile_of_map(map_, sc, offset, present, c, channels, PIXELS_LAST).to(tl.float32)
        g = tl.load(unit_gradient + image + c[None, :], mask=present[:, None], other=0.0)
        squares += tl.sum(features * features, 1)
        product += tl.sum(features * g, 1)
    norm = tl.sqrt(squares)
    clamped = tl.maximum(norm, eps)
    # (n·g)/‖φ‖, one division after the other: the square of a norm may leave the range of float32.
    along = tl.where((norm >= eps) & (norm > 0), product / clamped / clamped, 0.0)
    for first in range(0, PITCH, DEPTH):
        c = first + tl.arange(0, DEPTH)
        features = tile_of_map(map_, sc, offset, present, c, channels, PIXELS_LAST).to(tl.float32)
        g = tl.load(unit_gradient + image + c[None, :], mask=present[:, None], other=0.0)
        total = tl.load(value_gradient + image + c[None, :], mask=is_valid[:, None], other=0.0)
        total += g / clamped[:, None] - features / clamped[:, None] * along[:, None]
        total += tile_of_map(
            grad + sample * grad_sn, grad_sc, y * grad_sh + x * grad_sw, passed, c, channels, PIXELS_LAST
        ).to(tl.float32)
        store_tile(
            result + sample * result_sn, result_sc, y * result_sh + x * result_sw, present, c, channels, total,
            PIXELS_LAST,
        )  # fmt: skip
