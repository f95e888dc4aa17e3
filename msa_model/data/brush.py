"""Irregular masks drawn with a free-form brush."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw


def free_form_mask(
    height: int, width: int, ratio: tuple[float, float] = (0.2, 0.3), seed: int | np.random.Generator = 0
) -> Tensor:
    """Draws a mask with a brush that wanders freely.

    Strokes with random start, width and turning angles are added until the share of hole pixels lies in ``ratio``.

    Args:
        height, width: size of the mask in pixels.
        ratio: (low, high), the wanted share of hole pixels, 0 ≤ low < high ≤ 1.
        seed: an integer, or a generator to draw from.

    Returns:
        (1, height, width) bool, True = valid, False = hole.

    Raises:
        ValueError: an empty or impossible range, or one too narrow for the size.
    """
    low, high = ratio
    if not 0 <= low < high <= 1:
        raise ValueError(f"msa_model.free_form_mask: ratio must be 0 <= low < high <= 1, got {ratio}")
    rng = np.random.default_rng(seed)
    for _ in range(1000):
        hole = _brush(height, width, low, high, rng)
        if hole is not None:
            return torch.from_numpy(~hole)[None]
    raise ValueError(f"msa_model.free_form_mask: no mask of {height}x{width} with a hole ratio in {ratio} was found")


def spread_mask(height: int, width: int, ratio: tuple[float, float], rng: np.random.Generator) -> Tensor:
    """Draws a mask as `free_form_mask` does, but spreads the hole ratios of many masks evenly over (low, high].

    `free_form_mask` stops as soon as the ratio exceeds ``low``, so its masks lie just above it. Here every mask draws
    the ratio at which it stops. No mask is all hole or all valid.

    Args:
        height, width: size of the mask in pixels.
        ratio: (low, high), as above.
        rng: the generator to draw from.

    Returns:
        (1, height, width) bool, True = valid.

    Raises:
        ValueError: as `free_form_mask`.
    """
    low, high = ratio
    for _ in range(50):
        goal = low + (high - low) * (1 - rng.random())
        hole = _brush(height, width, goal, high, rng)
        if hole is not None and not hole.all():
            return torch.from_numpy(~hole)[None]
    mask = free_form_mask(height, width, ratio, rng)  # few pixels or a narrow range: a ratio just above low fits best
    if not mask.any():
        raise ValueError(f"msa_model.spread_mask: no mask of {height}x{width} has a hole ratio in {ratio} below 1")
    return mask


def _brush(height: int, width: int, goal: float, high: float, rng: np.random.Generator) -> np.ndarray | None:
    """Draws strokes until the hole's share reaches ``goal``; returns (height, width) bool, None above ``high``."""
    from PIL import Image, ImageDraw  # here, so that importing the package needs no Pillow

    canvas = Image.new("L", (width, height), 0)
    draw = ImageDraw.Draw(canvas)
    pixels = height * width
    covered = 0
    while covered < goal * pixels or not covered:
        # The brush shrinks near the goal, so that narrow ranges are reached too.
        brush = max(1.0, min(height, width) * rng.uniform(0.04, 0.12) * min(1.0, 3 * (high - covered / pixels)))
        _stroke(draw, rng, width, height, brush)
        covered = pixels - canvas.histogram()[0]
    return np.asarray(canvas) != 0 if covered / pixels <= high else None


def _stroke(draw: ImageDraw, rng: np.random.Generator, width: int, height: int, brush: float) -> None:
    x, y = rng.uniform(0, width), rng.uniform(0, height)
    angle = rng.uniform(0, 2 * math.pi)
    for _ in range(rng.integers(2, 7)):
        angle += rng.normal(0, 0.7)
        length = rng.uniform(0.05, 0.2) * min(width, height)
        end_x, end_y = x + length * math.cos(angle), y + length * math.sin(angle)
        draw.line((x, y, end_x, end_y), fill=255, width=max(1, round(brush)))
        radius = brush / 2
        draw.ellipse((end_x - radius, end_y - radius, end_x + radius, end_y + radius), fill=255)
        x, y = end_x, end_y
