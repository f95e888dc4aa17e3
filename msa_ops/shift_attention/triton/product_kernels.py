# mypy: ignore-errors
# Kernels are written in Triton's language, which Python's types do not describe.
"""Triton kernels that multiply scratch tiles of scores (rows, columns) in plain order with features.

Both add up in float32 and without atomics, so that results do not depend on the order in which programs run.
"""

from __future__ import annotations

import triton.language as tl

from .layout_kernels import jit_step, locate


@jit_step
def rows_product_kernel(
    scores, image, counts, parts, first_tile, first_column, columns, span, part_rows, samples, length,
    ADDS: tl.constexpr, ROWS: tl.constexpr, SAMPLES: tl.constexpr, DEPTH: tl.constexpr, CHANNELS: tl.constexpr,
    PITCH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Writes to parts (slots, part_rows, PITCH), for every query, the sum of scores · features over a span of columns;
    with ADDS adds it to what earlier tiles of keys left there."""
    sample, _, _ = locate(counts, samples, first_tile + tl.program_id(0), SAMPLES, ROWS)
    if sample >= samples:
        return
    own = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    c, k = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS), tl.arange(0, DEPTH)
    begin = tl.program_id(2) * span
    left = scores + own[:, None] * columns + begin + k[None, :]
    right = image + (sample.to(tl.int64) * length + first_column + begin + k)[:, None] * PITCH + c[None, :]
    total = tl.zeros([ROWS, CHANNELS], tl.float32)
    for _ in range(begin, tl.minimum(begin + span, columns), DEPTH):
        a = tl.load(left)
        b = tl.load(right).to(a.dtype)
        total = tl.dot(a, b, total, input_precision=PRECISION)
        left += DEPTH
        right += DEPTH * PITCH
    to = parts + (tl.program_id(2).to(tl.int64) * part_rows + own)[:, None] * PITCH + c[None, :]
    if ADDS:
        total += tl.load(to)
    tl.store(to, total)


@jit_step
def columns_product_kernel(
    scores, rows, counts, image, first_tile, tiles, first_column, columns, samples, length,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, SAMPLES: tl.constexpr, DEPTH: tl.constexpr, CHANNELS: tl.constexpr,
    PITCH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Adds scoresᵀ · rows to the image, over the queries of a sample that lie in this launch's tiles."""
    sample = tl.program_id(2)
    n = tl.arange(0, SAMPLES)
    of_samples = (tl.load(counts + n, mask=n < samples, other=0) + ROWS - 1) // ROWS
    own_first = tl.sum(tl.where(n < sample, of_samples, 0), 0)
    own_end = own_first + tl.sum(tl.where(n == sample, of_samples, 0), 0)
    begin, end = tl.maximum(own_first, first_tile), tl.minimum(own_end, first_tile + tiles)
    if begin >= end:
        return
    u = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    c, k = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS), tl.arange(0, DEPTH).to(tl.int64)
    left = scores + ((begin - first_tile) * ROWS + k)[:, None] * columns + u[None, :]
    right = rows + (begin * ROWS + k)[:, None] * PITCH + c[None, :]
    total = tl.zeros([BLOCK, CHANNELS], tl.float32)
    for _ in range(0, (end - begin) * ROWS, DEPTH):
        a = tl.load(left)
        b = tl.load(right).to(a.dtype)
        total = tl.dot(tl.trans(a), b, total, input_precision=PRECISION)
        left += DEPTH * columns
        right += DEPTH * PITCH
    at = image + (sample.to(tl.int64) * length + first_column + u)[:, None] * PITCH + c[None, :]
    tl.store(at, tl.load(at) + total)
