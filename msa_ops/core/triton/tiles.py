"""How the Triton kernels of the partial convolutions cut their work into programs.

The table was measured on an H100 in bfloat16, on the generator's layers at batch 6 (the performance log in docs/ has
the figures).
"""

from __future__ import annotations

import dataclasses
import functools

#: Sources of fewer channels are summed by rows of taps.
NARROW = 16
#: Programs that fill a large device (the 132 multiprocessors of an H100).
FILL = 132
#: A part of a split sum has at least so many steps, else adding the parts costs more than it saves.
LEAST_STEPS = 4


@dataclasses.dataclass(frozen=True)
class Block:
    """A tile of an output: its pixels, at most so many of its channels, and the warps and pipeline stages of the
    program that computes it."""

    pixels: int
    channels: int
    warps: int
    stages: int


#: The largest number of pixels -> the tile for maps of at most so many. Deep in a U-Net most of a layer is its weight;
#: with narrow tiles more programs read it. Elsewhere large tiles read everything less often.
BLOCKS = {128: Block(64, 32, 4, 5), 512: Block(64, 128, 4, 4)}
WIDE, NARROW_OUTPUT = Block(128, 128, 8, 3), Block(128, 128, 4, 3)
#: Where a row of taps is one step, there are too few of them for a deep pipeline.
ROWS_OF_TAPS = Block(128, 64, 4, 2)


@dataclasses.dataclass(frozen=True)
class Tiles:
    """A grid, the number of programs among which each sum is split, and the kernel's compile-time arguments."""

    grid: tuple[int, int]
    parts: int
    arguments: dict[str, int]


def cdiv(a: int, b: int) -> int:
    """Returns a / b, rounded up. Triton's own function takes microseconds, since it also works in kernels."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """Returns the smallest power of two that is at least n."""
    return 1 << (n - 1).bit_length()


def step_for(channels: int) -> int:
    """Returns the channels per step of the sum; tensor cores take 16 or more."""
    return min(64, max(16, next_power_of_2(channels)))


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
    """Chooses tiles and grid of a convolution.

    Args:
        n: samples of the map whose pixels are the rows of the matrix product.
        height: its height.
        width: its width.
        out_channels: the columns of the product.
        steps: number of steps of the sum.
        step: elements of a step.
        phases: how often the kernel goes through the pixels; with more than one pass the sum is not split.
        rows_of_taps: whether a source of few channels is summed by rows of taps; the sum is not split then either.
    """
    pixels = n * height * width
    if rows_of_taps:
        block = ROWS_OF_TAPS
    else:
        largest = WIDE if out_channels > 128 else NARROW_OUTPUT
        block = next((block for most, block in BLOCKS.items() if pixels <= most), largest)
    channels = min(block.channels, max(16, next_power_of_2(out_channels)))
    rows, columns = cdiv(pixels, block.pixels), cdiv(out_channels, channels)
    parts = 1
    if phases == 1 and not rows_of_taps:
        parts = max(1, min(FILL // max(1, rows * columns), steps // LEAST_STEPS))
    # A square piece of the map has fewer windows at its border than a strip, so more of it is in cache; and where a tap
    # is empty for one of its pixels, it is more often empty for all of them.
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
