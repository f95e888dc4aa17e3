"""How the Triton kernels of the partial convolution cut their work into programs.

The table is measured on an H100 in bfloat16, on the generator's layers at batch 6 (docs/performance.md).
"""

from __future__ import annotations

import dataclasses
import functools

#: Programs that fill a large device (the 132 multiprocessors of an H100).
FILL = 132
#: A part of a split sum has at least so many steps, else adding the parts costs more than it saves.
LEAST_STEPS = 4


@dataclasses.dataclass(frozen=True)
class Block:
    """Pixels and at most so many output channels of a tile; warps and pipeline stages of its program."""

    pixels: int
    channels: int
    warps: int
    stages: int


#: Up to so many pixels in all -> tile. Deep in a U-Net a layer is its weight: narrow tiles have more programs read it.
#: Elsewhere large tiles read everything less often.
BLOCKS = {128: Block(64, 32, 4, 5), 512: Block(64, 128, 4, 4)}
WIDE, NARROW_OUTPUT = Block(128, 128, 8, 3), Block(128, 128, 4, 3)
#: Where a row of taps is one step, there are too few of them for a deep pipeline.
ROWS_OF_TAPS = Block(128, 64, 4, 2)


@dataclasses.dataclass(frozen=True)
class Tiles:
    """A grid, among how many programs each sum is split, and the kernel's compile-time arguments."""

    grid: tuple[int, int]
    parts: int
    arguments: dict[str, int]


def cdiv(a: int, b: int) -> int:
    """Triton's own costs microseconds, since it also serves kernels."""
    return -(-a // b)


def power(n: int) -> int:
    """The next power of two."""
    return 1 << (n - 1).bit_length()


def step_for(channels: int) -> int:
    """Channels per step of the sum; tensor cores take 16 or more."""
    return min(64, max(16, power(channels)))


@functools.lru_cache(maxsize=1024)
def tiles_for(
    n: int,
    height: int,
    width: int,
    out_channels: int,
    steps: int,
    step: int,
    phases: int = 1,
    rows_of_taps: bool = False,
) -> Tiles:
    """
    Args:
        n, height, width: of the map whose pixels are a product's rows.
        steps: of the sum, each of `step` elements.
        phases: how often the pixels are gone through; with more than one the sum is not split.
        rows_of_taps: a source of few channels is summed by rows of taps; nor then.
    """
    pixels = n * height * width
    if rows_of_taps:
        block = ROWS_OF_TAPS
    else:
        largest = WIDE if out_channels > 128 else NARROW_OUTPUT
        block = next((block for most, block in BLOCKS.items() if pixels <= most), largest)
    channels = min(block.channels, max(16, power(out_channels)))
    rows, columns = cdiv(pixels, block.pixels), cdiv(out_channels, channels)
    parts = 1
    if phases == 1 and not rows_of_taps:
        parts = max(1, min(FILL // max(1, rows * columns), steps // LEAST_STEPS))
    # A square piece of the map has fewer windows at its border than a strip, so more of it is in cache, and where a tap
    # is empty for one pixel it more often is for all.
    square = height % 8 == 0 and width % (block.pixels // 8) == 0
    return Tiles(
        (rows * columns, phases * parts),
        parts,
        {
            "TILE_H": 8 if square else 0,
            "TILE_W": block.pixels // 8 if square else block.pixels,
            "BLOCK_N": channels,
            "STEP": step,
            "PARTS": parts,
            "num_warps": block.warps,
            "num_stages": block.stages,
        },
    )
