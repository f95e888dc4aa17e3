# mypy: ignore-errors
# Kernels are written in Triton's language, which Python's types do not describe.
"""Triton kernels that copy maps into the attention's layout (`planning.Layout`) and back.

The device finds out which pixels are queries: `pixels` (N, H·W) lists them per sample in raster order, `rank` (N, H·W)
holds a pixel's place in that list, or -1, and `counts` (N) holds how many there are. The tiles of all samples have
consecutive numbers. Grids are large enough for all pixels, and programs beyond the last tile return at once.
"""

from __future__ import annotations

import triton
import triton.language as tl

# For kernels that are launched once per step of a plan: arguments that differ between steps must not make Triton
# compile them again.
jit_step = triton.jit(
    do_not_specialize=("first_tile", "tiles", "halo_tiles", "first_column", "begin", "end", "first_span")
)


@triton.jit
def locate(counts, samples, tile, SAMPLES: tl.constexpr, ROWS: tl.constexpr):
    """Returns the sample of a tile (`samples` beyond the last tile), the number of its queries before the tile, and the
    number of its queries in all."""
    n = tl.arange(0, SAMPLES)
    count = tl.load(counts + n, mask=n < samples, other=0)
    tiles = (count + ROWS - 1) // ROWS
    # A sample without tiles ends where it starts, and is skipped.
    before = tl.cumsum(tiles, 0) <= tile
    sample = tl.sum((before & (n < samples)).to(tl.int32), 0)
    first = (tile - tl.sum(tl.where(before, tiles, 0), 0)) * ROWS
    return sample, first, tl.sum(tl.where(n == sample, count, 0), 0)


@triton.jit
def pixel_of(at, h, w, width, halo):
    """Returns the pixel at a place of the image, and whether there is one."""
    y, x = (at - halo) // width, (at - halo) % width
    present = (at >= halo) & (y < h) & (x < w)
    return tl.where(present, y, 0), tl.where(present, x, 0), present


@triton.jit
def row_totals(sums, blocks, ROWS: tl.constexpr):
    """Returns the sums over the rows of `sums` (ROWS, blocks)."""
    total = tl.zeros([ROWS], tl.float32)
    for first in range(0, blocks, 32):
        block = first + tl.arange(0, 32)
        at = sums + (tl.arange(0, ROWS)[:, None] * blocks + block[None, :])
        total += tl.sum(tl.load(at, mask=(block < blocks)[None, :], other=0.0), 1)
    return total


@triton.jit
def index_kernel(
    query_mask, key_mask, pixels, rank, counts, query_sn, query_sh, query_sw, key_sn, key_sh, key_sw, size, w,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Lists the queries of a sample; a sample without keys gets none."""
    sample = tl.program_id(0).to(tl.int64)
    query_mask += sample * query_sn
    key_mask += sample * key_sn
    pixels += sample * size
    rank += sample * size
    before = 0
    keys = 0
    for first in range(0, size, BLOCK):
        at = first + tl.arange(0, BLOCK)
        y, x, inside = (at // w).to(tl.int64), (at % w).to(tl.int64), at < size
        keys += tl.sum((tl.load(key_mask + y * key_sh + x * key_sw, mask=inside, other=0) != 0).to(tl.int32), 0)
        set_ = (tl.load(query_mask + y * query_sh + x * query_sw, mask=inside, other=0) != 0).to(tl.int32)
        place = before + tl.cumsum(set_, 0) - 1
        tl.store(pixels + place, at, mask=set_ != 0)
        tl.store(rank + at, tl.where(set_ != 0, place, -1), mask=inside)
        before += tl.sum(set_, 0)
    tl.store(counts + sample, tl.where(keys > 0, before, 0))


@triton.jit
def tile_of_map(map_, stride_channel, row_offset, present, c, channels, PIXELS_LAST: tl.constexpr):
    """Loads features (pixels, channels). The dimension whose neighbours lie closer in memory is the fast one of the
    load."""
    if PIXELS_LAST:
        at = map_ + row_offset[None, :] + (c.to(tl.int64) * stride_channel)[:, None]
        tile = tl.load(at, mask=present[None, :] & (c < channels)[:, None], other=0.0)
        return tl.trans(tile)
    else:
        at = map_ + row_offset[:, None] + (c.to(tl.int64) * stride_channel)[None, :]
        return tl.load(at, mask=present[:, None] & (c < channels)[None, :], other=0.0)


@triton.jit
def store_tile(map_, stride_channel, row_offset, present, c, channels, tile, PIXELS_LAST: tl.constexpr):
    """Stores features (pixels, channels) as `tile_of_map` loads them."""
    tile = tile.to(map_.dtype.element_ty)
    if PIXELS_LAST:
        at = map_ + row_offset[None, :] + (c.to(tl.int64) * stride_channel)[:, None]
        tl.store(at, tl.trans(tile), mask=present[None, :] & (c < channels)[:, None])
    else:
        at = map_ + row_offset[:, None] + (c.to(tl.int64) * stride_channel)[None, :]
        tl.store(at, tile, mask=present[:, None] & (c < channels)[None, :])


@triton.jit
def image_kernel(
    map_, sn, sc, sh, sw, key_mask, mask_sn, mask_sh, mask_sw, image, keys, h, w, width, halo, length, channels,
    MASKED: tl.constexpr, WRITES_KEYS: tl.constexpr, PIXELS_LAST: tl.constexpr, ROWS: tl.constexpr,
    DEPTH: tl.constexpr, PITCH: tl.constexpr,
):  # fmt: skip
    """Writes the image (N, length, PITCH) of a map, with zeros in gaps, beyond the channels and, with MASKED, at pixels
    that are no keys. With WRITES_KEYS also writes keys (N, length), which are 1 at keys."""
    sample = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    y, x, present = pixel_of(at, h, w, width, halo)
    y, x = y.to(tl.int64), x.to(tl.int64)
    if MASKED or WRITES_KEYS:
        is_key = tl.load(key_mask + sample * mask_sn + y * mask_sh + x * mask_sw, mask=present, other=0) != 0
        if WRITES_KEYS:
            tl.store(keys + sample * length + at, is_key.to(tl.uint8))
        if MASKED:
            present = is_key
    image += (sample * length + at)[:, None] * PITCH
    for first in range(0, PITCH, DEPTH):
        c = first + tl.arange(0, DEPTH)
        tile = tile_of_map(map_ + sample * sn, sc, y * sh + x * sw, present, c, channels, PIXELS_LAST)
        tl.store(image + c[None, :], tile.to(image.dtype.element_ty))


@triton.jit
def rows_kernel(
    map_, sn, sc, sh, sw, other, other_sn, other_sc, other_sh, other_sw, statistics, offsets, pixels, counts, rows,
    samples, size, w, channels, RENORMALIZED: tl.constexpr, PIXELS_LAST: tl.constexpr, ROWS: tl.constexpr,
    SAMPLES: tl.constexpr, DEPTH: tl.constexpr, PITCH: tl.constexpr,
):  # fmt: skip
    """Writes rows (tiles · ROWS, PITCH), the features of the queries, with zeros where a tile has fewer. With
    RENORMALIZED the rows are divided by the row sums of s', and `offsets` gets their products with the rows of the
    other map."""
    tile = tl.program_id(0)
    sample, first, count = locate(counts, samples, tile, SAMPLES, ROWS)
    if sample >= samples:
        return
    sample = sample.to(tl.int64)
    row = first + tl.arange(0, ROWS)
    present = row < count
    pixel = tl.load(pixels + sample * size + row, mask=present, other=0)
    y, x = (pixel // w).to(tl.int64), (pixel % w).to(tl.int64)
    to = rows + (tile.to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None] * PITCH
    if RENORMALIZED:
        factor = 1.0 / tl.load(statistics + 3 * (sample * size + row) + 2, mask=present, other=1.0)
        offset = tl.zeros([ROWS], tl.float32)
    for first_channel in range(0, PITCH, DEPTH):
        c = first_channel + tl.arange(0, DEPTH)
        values = tile_of_map(map_ + sample * sn, sc, y * sh + x * sw, present, c, channels, PIXELS_LAST)
        if RENORMALIZED:
            values = values.to(tl.float32) * factor[:, None]
            others = tile_of_map(
                other + sample * other_sn, other_sc, y * other_sh + x * other_sw, present, c, channels, PIXELS_LAST
            )
            offset += tl.sum(values * others.to(tl.float32), 1)
        tl.store(to + c[None, :], values.to(rows.dtype.element_ty))
    if RENORMALIZED:
        tl.store(offsets + sample * size + row, offset, mask=present)


@jit_step
def finish_kernel(
    parts, sums, statistics, map_, sn, sc, sh, sw, pixels, counts, first_tile, part_rows, slots, blocks, samples, size,
    w, channels, WITH_SUMS: tl.constexpr, RENORMALIZE: tl.constexpr, PIXELS_LAST: tl.constexpr, ROWS: tl.constexpr,
    SAMPLES: tl.constexpr, DEPTH: tl.constexpr, PITCH: tl.constexpr,
):  # fmt: skip
    """Adds up the parts of a sum over keys and writes it to the queries' pixels. With WITH_SUMS also adds up the row
    sums of s' and writes them to the statistics; with RENORMALIZE divides by them."""
    sample, first, count = locate(counts, samples, first_tile + tl.program_id(0), SAMPLES, ROWS)
    if sample >= samples:
        return
    sample = sample.to(tl.int64)
    row = first + tl.arange(0, ROWS)
    present = row < count
    pixel = tl.load(pixels + sample * size + row, mask=present, other=0)
    y, x = (pixel // w).to(tl.int64), (pixel % w).to(tl.int64)
    own = tl.program_id(0).to(tl.int64) * ROWS
    factor = tl.full([ROWS], 1.0, tl.float32)
    if WITH_SUMS:
        total = row_totals(sums + own * blocks, blocks, ROWS)
        if tl.program_id(1) == 0:
            tl.store(statistics + 3 * (sample * size + row) + 2, total, mask=present)
        if RENORMALIZE:
            factor = 1.0 / tl.where(total > 0, total, 1.0)
    c = tl.program_id(1) * DEPTH + tl.arange(0, DEPTH)
    value = tl.zeros([ROWS, DEPTH], tl.float32)
    parts += own * PITCH
    for _ in range(0, slots):
        value += tl.load(parts + (tl.arange(0, ROWS)[:, None] * PITCH + c[None, :]))
        parts += part_rows.to(tl.int64) * PITCH
    value = value * factor[:, None]
    store_tile(map_ + sample * sn, sc, y * sh + x * sw, present, c, channels, value, PIXELS_LAST)


@triton.jit
def spread_kernel(
    image, keys, map_, sn, sc, sh, sw, h, w, width, halo, length, channels, PIXELS_LAST: tl.constexpr,
    ROWS: tl.constexpr, DEPTH: tl.constexpr, PITCH: tl.constexpr,
):  # fmt: skip
    """Writes the map of an image, with zeros where there is no key."""
    sample = tl.program_id(2).to(tl.int64)
    pixel = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    y, x, present = pixel // w, pixel % w, pixel < h * w
    c = tl.program_id(1) * DEPTH + tl.arange(0, DEPTH)
    place = sample * length + halo + y * width + x
    is_key = tl.load(keys + place, mask=present, other=0) != 0
    value = tl.load(image + place[:, None] * PITCH + c[None, :], mask=is_key[:, None], other=0.0)
    y, x = y.to(tl.int64), x.to(tl.int64)
    store_tile(map_ + sample * sn, sc, y * sh + x * sw, present, c, channels, value, PIXELS_LAST)
