"""Irregular masks drawn with a free-form brush."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor


def free_form_mask(
    height: int, width: int, ratio: tuple[float, float] = (0.2, 0.3), seed: int | np.random.Generator = 0
) -> Tensor:
    """A mask with the holes of a wandering brush.

    Strokes with random start, width and turning angles are drawn until the share of hole pixels lies in ``ratio``.

    Args:
        height, width: size of the mask in pixels.
        ratio: (low, high), the wanted share of hole pixels, 0 ≤ low < high ≤ 1.
        seed: an integer, or a generator to draw from.

    Returns:
        (1, height, width) bool, True = valid, False = hole.

    Raises:
        ValueError: an empty or impossible range, or one too narrow for the size.
    """
    from PIL import Image, ImageDraw

    low, high = ratio
    if not 0 <= low < high <= 1:
        raise ValueError(f"msa_model.free_form_mask: ratio must be 0 <= low < high <= 1, got {ratio}")
    rng = np.random.default_rng(seed)
    size = min(height, width)
    for _ in range(1000):
        canvas = Image.new("L", (width, height), 0)
        draw = ImageDraw.Draw(canvas)
        share = 0.0
        while share < low:
            # A brush that shrinks as the goal comes near, so that narrow ranges are hit too.
            brush = max(1.0, size * rng.uniform(0.04, 0.12) * min(1.0, 3 * (high - share)))
            _stroke(draw, rng, width, height, brush)
            share = float(np.count_nonzero(canvas)) / (height * width)
        if share <= high:
            return torch.from_numpy(np.array(canvas) == 0)[None]
    raise ValueError(f"msa_model.free_form_mask: no mask of {height}x{width} with a hole ratio in {ratio} was found")


def _stroke(draw, rng: np.random.Generator, width: int, height: int, brush: float) -> None:
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
