"""Sizes of the attention's kernels: how samples are laid out, how tiles are cut from them, and launch parameters.

Everything here depends on shapes and dtypes only, so that no call waits for the device.
"""

from __future__ import annotations

import dataclasses
import functools

import torch

ROWS = 64  # queries of a tile; every sample's rows start a tile
COLUMNS = 256  # scratch rows are multiples of this

MIB = 2**20

#: Scratch of the forward, in bytes: the larger of the first, which depends on the bytes of an operand, and the second.
#: The first is about what a GPU keeps in its second-level cache. Other tensors of float32 are larger, so its scratch is
#: smaller, and both need at most 64 MiB for a map of 128 × 128 × 128. For batches, fewer and larger steps gain more
#: than that cache (the performance log in docs/ has the figures).
SCRATCH_BYTES, SCRATCH_BYTES_PER_SAMPLE = {2: 37 * MIB, 4: 24 * MIB}, 24 * MIB

#: The backward holds twice as many tiles, and may take as much more.
BACKWARD_SCRATCH = 1.75

#: Parts of sums over keys, in bytes: the larger of the two.
PARTS_BYTES, PARTS_BYTES_PER_SAMPLE = 6 * MIB, 4 * MIB

#: The cost of launching one step's kernels, in elements of scratch that are computed in the same time, and the assumed
#: share of pixels that are queries, which the host does not know.
STEP_ELEMENTS, QUERY_SHARE = 2**21, 0.3

#: Launch parameters by width of the operands: 2 bytes (tensor cores) and 4 bytes. `rows` and `columns` are the products
#: that sum over keys and over queries. DEPTH is the length of one step of a product's sum.
LAUNCH: dict[int, dict[str, dict[str, int]]] = {
    2: {
        "statistics": {"BLOCK": 128, "DEPTH": 128, "num_warps": 4, "num_stages": 3},
        "pair": {"BLOCK": 64, "DEPTH": 128, "num_warps": 4, "num_stages": 3},
        "propagate": {"BLOCK": 64, "num_warps": 16, "num_stages": 1},
        "rows": {"DEPTH": 64, "CHANNELS": 128, "num_warps": 4, "num_stages": 4},
        "columns": {"BLOCK": 64, "DEPTH": 64, "CHANNELS": 128, "num_warps": 4, "num_stages": 3},
    },
    4: {
        "statistics": {"BLOCK": 64, "DEPTH": 32, "num_warps": 8, "num_stages": 2},
        "pair": {"BLOCK": 64, "DEPTH": 32, "num_warps": 8, "num_stages": 2},
        "propagate": {"BLOCK": 32, "num_warps": 8, "num_stages": 1},
        "rows": {"DEPTH": 32, "CHANNELS": 64, "num_warps": 8, "num_stages": 2},
        "columns": {"BLOCK": 64, "DEPTH": 32, "CHANNELS": 64, "num_warps": 8, "num_stages": 2},
    },
}

#: Programs that keep a large GPU busy, at QUERY_SHARE: sums over keys are split until there are as many.
PROGRAMS, MOST_SPLITS = 264, 16
#: The same for spans of columns, which need no sum of parts; but a program with a single block would spend most of its
#: time on finding out what it has to do.
SPAN_PROGRAMS = 1056


def up(value: int, multiple: int) -> int:
    """Returns the value rounded up to a multiple."""
    return -(-value // multiple) * multiple


def pitch(channels: int) -> int:
    """Returns the channels of a row in memory, a multiple of every block of channels; tensor cores take 16 or more."""
    return up(channels, 128) if channels > 128 else max(16, 1 << (channels - 1).bit_length())


@dataclasses.dataclass(frozen=True)
class Layout:
    """The layout of the samples' pixels.

    Queries are compact rows in raster order, and every sample starts a new tile of ROWS. Keys lie in an image: map rows
    one after another with gaps of radius_x, and a margin of `halo` before the first and after the last. So a shift
    (dy, dx) is the flat offset dy·width + dx, nothing wraps around row ends, and no shift of a pixel leaves the image.
    """

    samples: int
    h: int
    w: int
    radius_y: int
    radius_x: int

    @classmethod
    def of(cls, shape: torch.Size, radius: int) -> Layout:
        """Returns the layout for maps of this shape."""
        n, _, h, w = shape
        # A shift of the map's size or more leaves the map.
        return cls(n, h, w, min(radius, h - 1), min(radius, w - 1))

    @property
    def size(self) -> int:
        """The pixels of a map."""
        return self.h * self.w

    @property
    def width(self) -> int:
        """The pixels of an image from one map row to the next."""
        return self.w + self.radius_x

    @property
    def halo(self) -> int:
        """The largest flat offset of a shift."""
        return self.radius_y * self.width + self.radius_x

    @property
    def length(self) -> int:
        """The number of pixels of an image."""
        return up(self.h * self.width + 2 * self.halo, COLUMNS)

    @property
    def tiles(self) -> int:
        """The number of tiles of queries, if all pixels are queries."""
        return self.samples * -(-self.size // ROWS)

    @property
    def halo_tiles(self) -> int:
        """The number of tiles before, and after, a tile of queries that its shifts reach. In raster order there are at
        most as many queries between p and p+δ as there are pixels."""
        reach = min(self.radius_y * self.w + self.radius_x, self.size)
        return min(-(-reach // ROWS), self.tiles - 1)


@dataclasses.dataclass(frozen=True)
class Step:
    """One tile of scratch: its first tile of queries, the number of these tiles, its first pixel of the image, and the
    range, among the `pitch` pixels that follow, of those whose shifts all lie within the tile."""

    first_tile: int
    tiles: int
    first_column: int
    begin: int
    end: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """How the scores are cut into tiles of scratch, each of at most `tiles` tiles of queries (and halo_tiles more on
    both sides) by `pitch` pixels of the image. The bands cut the queries; each holds the steps that cut the keys."""

    tiles: int
    halo_tiles: int
    pitch: int
    bands: tuple[tuple[Step, ...], ...]

    @property
    def scratch_rows(self) -> int:
        """The rows of a tile of scratch with its halo."""
        return (self.tiles + 2 * self.halo_tiles) * ROWS


def scratch_bytes(samples: int, size: int, backward: bool = False) -> int:
    """Returns the bytes that scratch may take, for operands of `size` bytes each."""
    forward = max(SCRATCH_BYTES[size], SCRATCH_BYTES_PER_SAMPLE * samples)
    return int(BACKWARD_SCRATCH * forward) if backward else forward


@functools.lru_cache(maxsize=256)
def plan(layout: Layout, row_bytes: int, halo_row_bytes: int, budget: int, cut_cost: float = 1.0) -> Plan:
    """Returns the cut of least work whose scratch fits the budget, or the smallest tile where the radius is so large
    that none fits.

    Args:
        layout: of the samples.
        row_bytes: scratch of a query per pixel of the image.
        halo_row_bytes: scratch of a query of the halo per pixel of the image.
        budget: bytes of scratch.
        cut_cost: the factor of the work where keys are cut.
    """
    best, least = (0, 0, 0, 0, 0), float("inf")
    most_cuts = max(1, -(-(layout.length - 2 * layout.halo) // COLUMNS))
    for cuts in range(1, most_cuts + 1):
        inner = columns = layout.length
        if cuts > 1:
            inner = up(-(-(layout.length - 2 * layout.halo) // cuts), COLUMNS)
            columns = up(inner + 2 * layout.halo, COLUMNS)
        halo_tiles = layout.halo_tiles
        if columns > layout.length:
            continue
        everything = layout.tiles * ROWS * columns * row_bytes <= budget
        fixed = 2 * halo_tiles * ROWS * columns * halo_row_bytes
        tiles = min(layout.tiles, max(1, (budget - fixed) // (ROWS * columns * row_bytes)))
        if everything:
            tiles, halo_tiles = layout.tiles, 0
        bands = -(-layout.tiles // tiles)
        tiles = -(-layout.tiles // bands)  # of equal size
        elements = (tiles + 2 * halo_tiles) * ROWS * columns
        cost = bands * cuts * (QUERY_SHARE * elements + STEP_ELEMENTS) * (cut_cost if cuts > 1 else 1.0)
        if fixed + tiles * ROWS * columns * row_bytes > budget and not everything:
            cost = 1e30 * elements  # the smallest, if nothing fits
        if cost < least:
            best, least = (tiles, halo_tiles, columns, inner, cuts), cost
    tiles, halo_tiles, columns, inner, cuts = best
    cut_columns = []
    for cut in range(cuts):
        if cuts == 1:
            cut_columns.append((0, 0, layout.length))
            continue
        begin = layout.halo + cut * inner
        end = min(begin + inner, layout.length - layout.halo)
        if begin < end:
            first = min(begin - layout.halo, layout.length - columns)  # the last one must not leave the image
            cut_columns.append((first, begin - first, end - first))
    steps = tuple(
        tuple(Step(first, min(tiles, layout.tiles - first), *columns_) for columns_ in cut_columns)
        for first in range(0, layout.tiles, tiles)
    )
    return Plan(tiles, halo_tiles, columns, steps)


def splits(tiles: int, blocks: int) -> int:
    """Returns how many programs share a sum of so many blocks, for each of so many tiles of queries."""
    return max(1, min(MOST_SPLITS, blocks, round(PROGRAMS / max(1, tiles))))


def parts_of_sums(samples: int, bytes_each: int) -> int:
    """Returns how many parts of sums there is room for."""
    return max(PARTS_BYTES, PARTS_BYTES_PER_SAMPLE * samples) // bytes_each


def spans(plan: Plan, block: int) -> tuple[int, int]:
    """Returns the length and the number of the spans of a step's columns; each program goes through one span, block by
    block."""
    # Of several bands the first are full.
    tiles = plan.tiles if len(plan.bands) > 1 else round(QUERY_SHARE * plan.tiles)
    blocks = plan.pitch // block
    programs = max(1, min(blocks, round(SPAN_PROGRAMS / max(1, tiles))))
    each = -(-blocks // programs)
    return each * block, -(-blocks // each)
