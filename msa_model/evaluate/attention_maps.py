"""Computes where the holes look (Figs. 8 and 9): the map of every attention stage, and pictures of it.

A map holds, for every hole cell of a stage, the background cell with the largest s' of Eq. 8. A cell is a square of
``factor`` × ``factor`` pixels. In the pictures a colour stands for a place in the image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from msa_ops import hole_attention_map

from ..inpainting import inpaint
from ..nn.attention_block import AttentionBlock
from ..nn.generator import Generator

#: Colours of the image's corners, [y][x] (RGB, 0 ... 255). Green top left and pink bottom right are those of Fig. 8.
#: The four lie almost in one plane of colour space and in convex position, so no two places share a colour.
CORNERS = np.array([[(40, 190, 60), (255, 205, 40)], [(40, 90, 225), (255, 80, 190)]], dtype=np.float64)
_NOWHERE = (64, 64, 64)  # the colour of a hole cell without any background to look at
_PANEL, _GAP, _TITLE = 256, 10, 26  # pixels: least height of a panel, gap, line of titles


@dataclass(frozen=True)
class StageMap:
    """The map of one attention stage.

    Args:
        level: the decoder layer that the stage follows.
        factor: side of a cell in pixels.
        index: (h, w) int64 with h = ceil(H / factor) and w = ceil(W / factor): for each cell the flat index y·w + x of
            the cell that it looks at; -1 at background cells, and where there is no background.
        hole: (h, w) bool, the stage's hole cells.
    """

    level: int
    factor: int
    index: np.ndarray
    hole: np.ndarray


def attention_maps(generator: Generator, image: Tensor, mask: Tensor) -> tuple[Tensor, list[StageMap]]:
    """Inpaints one image and computes the map of every attention stage, the deepest stage first.

    Args:
        generator: it must have at least one attention stage.
        image: (1, 3, H, W), floating-point, in [0, 1]; values in the holes are not used.
        mask: (1, 1, H, W), 1 (any non-zero) = valid, 0 = hole.

    Returns:
        The composite (1, 3, H, W), as `msa_model.inpaint` returns it, and the maps. Memory is linear in H·W, see
        `msa_ops.hole_attention_map`.

    Raises:
        ValueError: the generator has no attention stage; the batch holds more than one image; and as
            `msa_model.inpaint`.
    """
    if not generator.attention:
        raise ValueError("msa_model.attention_maps: this generator has no attention stage")
    if image.dim() == 4 and image.shape[0] != 1:
        raise ValueError(f"msa_model.attention_maps: image must have shape (1, 3, H, W), got {tuple(image.shape)}")
    found: list[StageMap] = []

    def look(level: int) -> Callable[[nn.Module, Any], None]:
        factor = 2 ** (level - 1)

        def hook(block: nn.Module, inputs: Any) -> None:
            assert isinstance(block, AttentionBlock)
            features, valid = inputs
            options: dict[str, Any] = dict(block.attention.options)
            options.pop("renormalize", None)
            index = hole_attention_map(features, valid, **options)[0].cpu().numpy()
            # The generator pads its input as hole, where nothing looks. So only the row length of the indices changes.
            height, width = (-(-side // factor) for side in image.shape[2:])
            y, x = np.divmod(index[:height, :width], index.shape[1])
            index = np.where(index[:height, :width] < 0, -1, y * width + x)
            hole = (valid[0, 0] == 0).cpu().numpy()[:height, :width]
            found.append(StageMap(level, factor, index, hole))

        return hook

    hooks = [block.register_forward_pre_hook(look(int(level))) for level, block in generator.attention.items()]
    try:
        result = inpaint(generator, image, mask)
    finally:
        for hook in hooks:
            hook.remove()
    return result, found


# ---- colours -------------------------------------------------------------------------------------------------------


def place_colours(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Computes the colour of places, bilinear between the corners.

    Args:
        y: any shape; 0 = top, 1 = bottom.
        x: the same shape; 0 = left, 1 = right.

    Returns:
        (..., 3) uint8, RGB.
    """
    y, x = np.asarray(y, dtype=np.float64)[..., None], np.asarray(x, dtype=np.float64)[..., None]
    top, bottom = (left + (right - left) * x for left, right in CORNERS)
    return np.rint(top + (bottom - top) * y).astype(np.uint8)


def legend(height: int, width: int) -> np.ndarray:
    """Paints every place of an image in its colour, (height, width, 3) uint8."""
    y, x = np.mgrid[:height, :width]
    return place_colours(y / max(1, height - 1), x / max(1, width - 1))


def colour_map(stage: StageMap, backdrop: np.ndarray, opacity: float = 1.0) -> np.ndarray:
    """Paints a stage's map on a picture of the image's size.

    Args:
        stage: every cell becomes a square of factor × factor pixels.
        backdrop: (H, W, 3) uint8, shown at background cells and, if the colours are not opaque, below them.
        opacity: of the colours, 0 to 1.

    Returns:
        (H, W, 3) uint8; a hole cell that has nothing to look at is dark grey.
    """
    height, width = stage.index.shape
    y, x = np.divmod(np.maximum(stage.index, 0), width)
    colours = place_colours(y / max(1, height - 1), x / max(1, width - 1))
    colours[stage.index < 0] = _NOWHERE

    def enlarged(cells: np.ndarray) -> np.ndarray:
        pixels = cells.repeat(stage.factor, axis=0).repeat(stage.factor, axis=1)
        return pixels[: backdrop.shape[0], : backdrop.shape[1]]

    mixed = opacity * enlarged(colours) + (1 - opacity) * backdrop
    return np.where(enlarged(stage.hole)[..., None], np.rint(mixed).astype(np.uint8), backdrop)


# ---- the sheet -----------------------------------------------------------------------------------------------------


def sheet(
    image: np.ndarray, hole: np.ndarray, result: np.ndarray, stages: list[StageMap], *, overlay: bool = False
) -> Image.Image:
    """Draws Fig. 9 beside Fig. 8: the holes in white, the result, one map per stage, and the legend.

    Args:
        image: (H, W, 3) uint8.
        hole: (H, W) bool.
        result: (H, W, 3) uint8.
        stages: as `attention_maps` returns them.
        overlay: draw the maps with 65 % opacity on the result; otherwise on a faint grey version of the image.

    Returns:
        An RGB image; small images are enlarged by a whole number (nearest).
    """
    height, width = hole.shape
    holed = np.where(hole[..., None], np.uint8(255), image)
    faint = np.repeat((200 + holed.mean(axis=2, keepdims=True) * 0.2).astype(np.uint8), 3, axis=2)
    panels = [("input", holed), ("result", result)]
    for stage in stages:
        picture = colour_map(stage, result, 0.65) if overlay else colour_map(stage, faint)
        panels.append((f"attention, {stage.index.shape[1]} x {stage.index.shape[0]}", picture))
    panels.append(("colour = place looked at", legend(height, width)))

    scale = max(1, -(-_PANEL // max(height, width)))
    column = max(width * scale, 170)  # room for a title
    canvas = Image.new("RGB", (len(panels) * (column + _GAP) + _GAP, height * scale + _TITLE + _GAP), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=14)
    for number, (title, pixels) in enumerate(panels):
        left = _GAP + number * (column + _GAP)
        enlarged = Image.fromarray(pixels).resize((width * scale, height * scale), Image.Resampling.NEAREST)
        canvas.paste(enlarged, (left + (column - enlarged.width) // 2, _TITLE))
        draw.text((left + column / 2, _TITLE / 2), title, fill="black", anchor="mm", font=font)
    return canvas
