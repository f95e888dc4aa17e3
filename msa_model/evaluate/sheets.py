"""Draws columns of pictures side by side, under their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_TITLE = 28  # pixels: the line of names


def columns_sheet(
    columns: Mapping[str, Sequence[np.ndarray]], *, enlarge: int = 1, gap: int = 4, margin: int = 0, font_size: int = 14
) -> Image.Image:
    """Draws the columns' images side by side under their names.

    Args:
        columns: name -> images of equal size, (H, W, 3) uint8.
        enlarge: every pixel becomes a square of this side.
        gap: pixels right of a column and below an image.
        margin: pixels left of the first column.
        font_size: largest size of the names in pixels; a long name is written smaller, to fit its column.
    """
    height, width = (enlarge * side for side in next(iter(columns.values()))[0].shape[:2])
    rows = max(map(len, columns.values()))
    canvas = Image.new("RGB", (margin + len(columns) * (width + gap), rows * (height + gap) + _TITLE), "white")
    draw = ImageDraw.Draw(canvas)
    for number, (name, images) in enumerate(columns.items()):
        left = margin + number * (width + gap)
        fitting = max(8, min(font_size, 2 * width // max(8, len(name))))
        place = (left + width // 2, _TITLE // 2)
        draw.text(place, name, fill="black", anchor="mm", font=ImageFont.load_default(size=fitting))
        for row, pixels in enumerate(images):
            picture = Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST)
            canvas.paste(picture, (left, _TITLE + row * (height + gap)))
    return canvas
