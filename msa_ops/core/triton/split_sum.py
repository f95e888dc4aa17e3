"""Results of a Triton convolution whose sums may be split among programs, and the sum of the parts."""

from __future__ import annotations

import torch
from torch import Tensor

from .convolution import finish_kernel
from .launch import launch
from .tiles import Tiles, cdiv, next_power_of_2


def allocate(like: Tensor, shape: tuple[int, ...], tiles: Tiles) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns an output of this shape in channels_last, its new mask, its ratio, and room for the parts of a split sum
    (where the sum is not split, that is the ratio again, which the kernel then does not touch)."""
    n, c, h, w = shape
    output = torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)
    new_mask = torch.empty((n, 1, h, w), dtype=torch.bool, device=like.device)
    ratio = torch.empty((n, 1, h, w), dtype=torch.float32, device=like.device)
    parts = ratio if tiles.parts == 1 else torch.empty((tiles.parts, n * h * w, c), device=like.device)
    return output, new_mask, ratio, parts


def finish(tiles: Tiles, parts: Tensor, ratio: Tensor, bias: Tensor | None, output: Tensor) -> None:
    """Adds the parts, if the sum was split, and writes the output."""
    if tiles.parts == 1:
        return
    pixels, channels = ratio.numel(), output.shape[1]
    block_n = min(128, next_power_of_2(channels))
    launch(
        finish_kernel, (cdiv(channels, block_n), cdiv(pixels, 16)), output.device, parts=parts, ratios=ratio, bias=bias,
        output=output, pixels=pixels, out_channels=channels, HAS_BIAS=bias is not None, PARTS=tiles.parts, BLOCK_M=16,
        BLOCK_N=block_n,
    )  # fmt: skip
