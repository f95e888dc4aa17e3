# mypy: ignore-errors
# Kernels are written in Triton's language, which Python's types do not describe.
"""Triton kernels on tiles of scores in global memory: softmax, and the propagation of Eq. 8.

A scratch tile holds a row per query and, per row, `columns` pixels of the image of keys from first_column on. Values
that are to be propagated are stored *skewed*: row p is rotated by the place of p in the image, so that column c of row
p is the pair (p, q) with q - p = c, modulo `columns`. A shift by δ takes (p, q) to (p+δ, q+δ), which have the same
difference. So Eq. 8 is the sum of whole rows, column by column, and every access is aligned, whatever the shift:

    s'(p, c) = Σ_δ s*(p+δ, c)

Values that are to be multiplied are stored in plain order: column u of every row is pixel first_column + u of the
image."""

from __future__ import annotations

import triton
import triton.language as tl

from .layout_kernels import jit_step, locate, row_totals


@triton.jit
def _product(
    left, right, first_row, first_place, ROWS: tl.constexpr, BLOCK: tl.constexpr, DEPTH: tl.constexpr,
    PITCH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Returns A Bᵀ for ROWS compact rows and BLOCK pixels of an image."""
    c = tl.arange(0, DEPTH)
    left += (first_row + tl.arange(0, ROWS))[:, None] * PITCH + c[None, :]
    right += (first_place + tl.arange(0, BLOCK))[None, :] * PITCH + c[:, None]
    total = tl.zeros([ROWS, BLOCK], tl.float32)
    for first in range(0, PITCH, DEPTH):
        total = tl.dot(tl.load(left + first), tl.load(right + first), total, input_precision=PRECISION)
    return total


@triton.jit
def _store_rotated(scores, values, start, columns, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Writes values (ROWS, BLOCK) into rows of scores, from column `start` of each row on and around its end. It uses
    two stores of consecutive columns. With one store, whose columns a modulo computes, neighbouring threads would write
    to different rows."""
    k = tl.arange(0, BLOCK)
    wraps = start[:, None] + k[None, :] >= columns
    at = (tl.arange(0, ROWS) * columns + start)[:, None] + k[None, :]
    values = values.to(scores.dtype.element_ty)
    tl.store(scores + at, values, mask=~wraps)
    if tl.max(start, 0) + BLOCK > columns:
        tl.store(scores + (at - columns), values, mask=wraps)


@triton.jit
def _rotation(pixel, w, width, columns, SKEWED: tl.constexpr):
    """Returns by how much a row is rotated: not at all where there is no radius and so no propagation."""
    if SKEWED:
        return ((pixel // w) * width + pixel % w) % columns
    else:
        return pixel * 0


@triton.jit
def _plain(block, rotation, columns, BLOCK: tl.constexpr):
    """Returns, per row, where a block of skewed columns starts in the plain order, and its columns in that order."""
    start = block + rotation
    start = tl.where(start >= columns, start - columns, start)
    u = start[:, None] + tl.arange(0, BLOCK)[None, :]
    return start, tl.where(u >= columns, u - columns, u)


@triton.jit
def statistics_kernel(
    query, key, keys, counts, partial, scale, samples, size, length, span,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, SAMPLES: tl.constexpr, DEPTH: tl.constexpr, PITCH: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Writes T(p) = max_q S(p,q) and Σ_q exp(S(p,q) - T(p)) over one span of the image to partial (spans, N, H·W,
    2)."""
    tile = tl.program_id(0)
    sample, first, count = locate(counts, samples, tile, SAMPLES, ROWS)
    if sample >= samples:
        return
    sample, first_row = sample.to(tl.int64), tile.to(tl.int64) * ROWS
    top = tl.full([ROWS], -float("inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    begin = tl.program_id(1) * span
    c = tl.arange(0, DEPTH)
    queries = tl.load(query + (first_row + tl.arange(0, ROWS))[:, None] * PITCH + c[None, :])
    for place in range(begin, tl.minimum(begin + span, length), BLOCK):
        if DEPTH == PITCH:  # the queries are in registers, and the loop is one product per block of keys
            at = key + (sample * length + place + tl.arange(0, BLOCK))[None, :] * PITCH + c[:, None]
            scores = tl.dot(queries, tl.load(at), input_precision=PRECISION)
        else:
            scores = _product(query, key, first_row, sample * length + place, ROWS, BLOCK, DEPTH, PITCH, PRECISION)
        is_key = tl.load(keys + sample * length + place + tl.arange(0, BLOCK)) != 0
        scores = tl.where(is_key[None, :], scale * scores, -float("inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        # Scores that overflow to -inf add nothing; a difference of infinities would be NaN.
        finite_top = tl.where(new_top == -float("inf"), 0.0, new_top)
        total = total * tl.exp(top - finite_top) + tl.sum(tl.exp(scores - finite_top[:, None]), 1)
        top = new_top
    row = first + tl.arange(0, ROWS)
    at = partial + 2 * ((tl.program_id(1).to(tl.int64) * samples + sample) * size + row)
    tl.store(at, top, mask=row < count)
    tl.store(at + 1, total, mask=row < count)


@triton.jit
def combine_kernel(partial, counts, statistics, samples, size, spans, BLOCK: tl.constexpr):
    """Combines the spans into statistics (N, H·W, 3), ordered as the list of queries: T, log Σ exp(S - T), and room for
    the row sum of s'. T and the logarithm are kept apart because their sum would be rounded: at scores of 1000 a
    float32 has an error of up to 6e-5."""
    sample = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    present = row < tl.load(counts + sample)
    top = tl.full([BLOCK], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for span in range(0, spans):
        at = partial + 2 * ((span * samples + sample) * size + row)
        other = tl.load(at, mask=present, other=0.0)
        new_top = tl.maximum(top, other)
        finite_top = tl.where(new_top == -float("inf"), 0.0, new_top)
        total = total * tl.exp(top - finite_top)
        total += tl.load(at + 1, mask=present, other=0.0) * tl.exp(other - finite_top)
        top = new_top
    at = statistics + 3 * (sample * size + row)
    tl.store(at, top, mask=present)
    tl.store(at + 1, tl.log(total), mask=present)


@jit_step
def pair_kernel(
    left, right, keys, statistics, offsets, pixels, counts, scores, first_tile, first_column, columns, span, scale,
    samples, size, w, width, length, SOFTMAX: tl.constexpr, WITH_OFFSETS: tl.constexpr, SKEWED: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, SAMPLES: tl.constexpr, DEPTH: tl.constexpr, PITCH: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Computes, with SOFTMAX, s* = exp(scale · A Bᵀ - T - log Σ), and else ds' = A Bᵀ - offset; zero where q is no
    key."""
    tile = first_tile + tl.program_id(0)
    if tile < 0:
        return
    sample, first, count = locate(counts, samples, tile, SAMPLES, ROWS)
    if sample >= samples:
        return
    sample, first_row = sample.to(tl.int64), tile.to(tl.int64) * ROWS
    row = first + tl.arange(0, ROWS)
    present = row < count
    if SOFTMAX:
        of_rows = statistics + 3 * (sample * size + row)
        top = tl.load(of_rows, mask=present, other=0.0)
        log_sum = tl.load(of_rows + 1, mask=present, other=0.0)
    elif WITH_OFFSETS:
        offset = tl.load(offsets + sample * size + row, mask=present, other=0.0)
    pixel = tl.load(pixels + sample * size + row, mask=present, other=0)
    rotation = _rotation(pixel, w, width, columns, SKEWED)
    scores += tl.program_id(0).to(tl.int64) * ROWS * columns
    c = tl.arange(0, DEPTH)
    rows = tl.load(left + (first_row + tl.arange(0, ROWS))[:, None] * PITCH + c[None, :])
    begin = tl.program_id(1) * span
    for block in range(begin, tl.minimum(begin + span, columns), BLOCK):
        place = sample * length + first_column + block
        if DEPTH == PITCH:  # the rows stay where they are
            at = right + (place + tl.arange(0, BLOCK))[None, :] * PITCH + c[:, None]
            values = tl.dot(rows, tl.load(at), input_precision=PRECISION)
        else:
            values = _product(left, right, first_row, place, ROWS, BLOCK, DEPTH, PITCH, PRECISION)
        used = present[:, None] & (tl.load(keys + place + tl.arange(0, BLOCK)) != 0)[None, :]
        if SOFTMAX:
            # The maximum is subtracted first, since it cancels the large part; the sum of both would have been rounded.
            values = tl.exp((scale * values - top[:, None]) - log_sum[:, None])
        elif WITH_OFFSETS:
            values -= offset[:, None]
        values = tl.where(used, values, 0.0).to(scores.dtype.element_ty)
        if SKEWED:
            start = block - rotation
            _store_rotated(scores, values, tl.where(start < 0, start + columns, start), columns, ROWS, BLOCK)
        else:
            tl.store(scores + (tl.arange(0, ROWS)[:, None] * columns + block + tl.arange(0, BLOCK)[None, :]), values)


@triton.jit
def _shifted(source, rank, y, x, present, dy, dx, first_row, columns, c, h, w):
    """Returns the rows of the queries at one shift; zero where there are none."""
    there = present & (y + dy >= 0) & (y + dy < h) & (x + dx >= 0) & (x + dx < w)
    place = tl.load(rank + (y + dy) * w + x + dx, mask=there, other=-1)
    at = source + (first_row + place) * columns
    return tl.load(at[:, None] + c[None, :], mask=(place >= 0)[:, None], other=0.0).to(tl.float32)


@triton.jit
def _propagate(
    source, rank, y, x, present, first_row, columns, c, h, w,
    RADIUS_Y: tl.constexpr, RADIUS_X: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Returns the sum of Eq. 8 for one block of columns."""
    total = tl.zeros([ROWS, BLOCK], tl.float32)
    if RADIUS_Y <= 1 and RADIUS_X <= 1:  # unrolled, so that all loads are in flight at once
        for dy in tl.static_range(-RADIUS_Y, RADIUS_Y + 1):
            for dx in tl.static_range(-RADIUS_X, RADIUS_X + 1):
                total += _shifted(source, rank, y, x, present, dy, dx, first_row, columns, c, h, w)
    else:
        for dy in range(-RADIUS_Y, RADIUS_Y + 1):
            for dx in range(-RADIUS_X, RADIUS_X + 1):
                total += _shifted(source, rank, y, x, present, dy, dx, first_row, columns, c, h, w)
    return total


@jit_step
def propagate_kernel(
    source, weights, target, sums, keys, pixels, rank, counts, first_tile, halo_tiles, first_column, columns, span,
    begin, end, first_span, spans, samples, size, h, w, width, length, GRADIENT: tl.constexpr, SUMS: tl.constexpr,
    MASKED: tl.constexpr, SKEWED: tl.constexpr, RADIUS_Y: tl.constexpr, RADIUS_X: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr, SAMPLES: tl.constexpr,
):  # fmt: skip
    """Applies the propagation P of Eq. 8.

    Without GRADIENT it computes s' = P s*, stored in plain order, with zeros outside [begin, end) and, with MASKED,
    where q is no key. With GRADIENT it computes ds* = P ds', stored skewed. With SUMS it also writes to sums (rows,
    spans) the span's share of Σ_q s', or with GRADIENT of Σ_q s* ds*, where s* are the `weights`."""
    tile = first_tile + tl.program_id(0)
    sample, first, count = locate(counts, samples, tile, SAMPLES, ROWS)
    if sample >= samples:
        return
    sample = sample.to(tl.int64)
    row = first + tl.arange(0, ROWS)
    present = row < count
    pixel = tl.load(pixels + sample * size + row, mask=present, other=0)
    rotation = _rotation(pixel, w, width, columns, SKEWED)
    # Scratch starts halo_tiles before the tiles of this launch.
    first_row = (tl.program_id(0) + halo_tiles).to(tl.int64) * ROWS - first
    own = tl.program_id(0).to(tl.int64) * ROWS
    target += own * columns
    weights += (own + halo_tiles * ROWS) * columns
    keys += sample * length + first_column
    row_start = tl.arange(0, ROWS)[:, None] * columns
    part = tl.zeros([ROWS], tl.float32)
    first_block = tl.program_id(1) * span
    for block in range(first_block, tl.minimum(first_block + span, columns), BLOCK):
        c = block + tl.arange(0, BLOCK)
        total = _propagate(
            source, rank + sample * size, pixel // w, pixel % w, present, first_row, columns, c, h, w,
            RADIUS_Y, RADIUS_X, ROWS, BLOCK,
        )  # fmt: skip
        start, u = _plain(block, rotation, columns, BLOCK)
        used = present[:, None] & (u >= begin) & (u < end)
        if GRADIENT:
            weight = tl.load(weights + (row_start + c[None, :]), mask=present[:, None], other=0.0).to(tl.float32)
            tl.store(target + (row_start + c[None, :]), total.to(target.dtype.element_ty))
            part += tl.sum(tl.where(used, weight * total, 0.0), 1)
        else:
            if MASKED:
                used &= tl.load(keys + u, mask=used, other=0) != 0
            total = tl.where(used, total, 0.0)
            _store_rotated(target, total, start, columns, ROWS, BLOCK)
            part += tl.sum(total, 1)
    if SUMS:
        own += tl.arange(0, ROWS)
        tl.store(sums + own * spans + first_span + tl.program_id(1), part)


@jit_step
def score_gradient_kernel(
    weights, gradient, target, sums, pixels, counts, first_tile, halo_tiles, columns, span, begin, end, spans, scale,
    samples, size, w, width, SKEWED: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, SAMPLES: tl.constexpr,
):  # fmt: skip
    """Computes scale · dS = scale · s* (ds* - D), with D the totals of `sums`; stored in plain order, with zeros
    outside [begin, end)."""
    sample, first, count = locate(counts, samples, first_tile + tl.program_id(0), SAMPLES, ROWS)
    if sample >= samples:
        return
    sample = sample.to(tl.int64)
    row = first + tl.arange(0, ROWS)
    present = row < count
    pixel = tl.load(pixels + sample * size + row, mask=present, other=0)
    rotation = _rotation(pixel, w, width, columns, SKEWED)
    own = tl.program_id(0).to(tl.int64) * ROWS
    mean = row_totals(sums + own * spans, spans, ROWS)
    row_start = tl.arange(0, ROWS)[:, None] * columns
    weights += (own + halo_tiles * ROWS) * columns
    gradient += own * columns
    target += own * columns
    first_block = tl.program_id(1) * span
    for block in range(first_block, tl.minimum(first_block + span, columns), BLOCK):
        at = row_start + (block + tl.arange(0, BLOCK))[None, :]
        weight = tl.load(weights + at, mask=present[:, None], other=0.0).to(tl.float32)
        value = tl.load(gradient + at, mask=present[:, None], other=0.0).to(tl.float32)
        start, u = _plain(block, rotation, columns, BLOCK)
        used = present[:, None] & (u >= begin) & (u < end)
        value = tl.where(used, scale * weight * (value - mean[:, None]), 0.0)
        _store_rotated(target, value, start, columns, ROWS, BLOCK)


@jit_step
def argmax_kernel(
    scores, pixels, counts, largest, best, first_tile, first_column, columns, samples, size, w, width, halo,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, SAMPLES: tl.constexpr,
):  # fmt: skip
    """Updates, per query, the key with the largest s' so far, the first of equals; it is -1 while all are zero."""
    sample, first, count = locate(counts, samples, first_tile + tl.program_id(0), SAMPLES, ROWS)
    if sample >= samples:
        return
    sample = sample.to(tl.int64)
    row = first + tl.arange(0, ROWS)
    present = row < count
    pixel = tl.load(pixels + sample * size + row, mask=present, other=0)
    top = tl.load(largest + sample * size + pixel, mask=present, other=0.0)
    at = tl.full([ROWS], -1, tl.int32)
    scores += (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None] * columns
    for u in range(0, columns, BLOCK):
        values = tl.load(scores + u + tl.arange(0, BLOCK)[None, :]).to(tl.float32)
        block_top = tl.max(values, 1)
        # The image is in raster order, so the first of equals has the smallest place.
        places = tl.where(values == block_top[:, None], u + tl.arange(0, BLOCK)[None, :], columns)
        at = tl.where(block_top > top, tl.min(places, 1), at)
        top = tl.maximum(top, block_top)
    found = first_column + at - halo
    tl.store(largest + sample * size + pixel, top, mask=present & (at >= 0))
    key = ((found // width) * w + found % width).to(tl.int64)
    tl.store(best + sample * size + pixel, key, mask=present & (at >= 0))
