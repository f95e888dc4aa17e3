"""Random numbers, colours, noise and walls for facades."""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
T = TypeVar("T")

WALLS: dict[str, tuple[Colour, ...]] = {
    "brick": ((150, 74, 56), (172, 98, 70), (120, 62, 52), (186, 140, 100), (140, 96, 84), (196, 170, 132)),
    "stone": ((206, 192, 164), (190, 178, 158), (222, 210, 184), (168, 160, 148), (200, 176, 142)),
    "plaster": (
        (230, 216, 184), (222, 180, 124), (206, 130, 98), (236, 228, 212), (188, 202, 186), (170, 190, 204),
        (226, 190, 176), (214, 202, 150), (180, 172, 164), (196, 104, 84),
    ),
    "panels": ((176, 176, 172), (150, 156, 162), (204, 200, 192), (120, 126, 132), (166, 148, 130)),
    "boards": ((190, 198, 190), (160, 92, 74), (226, 222, 206), (112, 132, 144), (204, 182, 130)),
}  # fmt: skip
TRIMS = ((236, 230, 216), (214, 204, 184), (246, 246, 242), (184, 174, 158), (150, 112, 92), (110, 108, 104))
FRAMES = ((246, 246, 242), (226, 220, 206), (70, 52, 42), (44, 62, 54), (40, 42, 46), (120, 84, 58), (150, 160, 164))
PAINTS = ((60, 88, 74), (46, 66, 98), (112, 50, 44), (92, 66, 48), (132, 148, 150), (190, 186, 172), (58, 60, 64))
ROOFS = ((92, 98, 108), (126, 78, 62), (74, 76, 80), (150, 92, 66), (108, 112, 108))
IRON = ((34, 34, 38), (50, 54, 56), (40, 52, 46))


class Dice:
    """Random numbers from `random.Random.random`, whose values are the same in every version of Python."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed).random

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self._random()

    def whole(self, low: int, high: int) -> int:
        """Draws an integer in low ... high, both included."""
        return low + int((high - low + 1) * self._random())

    def pick(self, options: Sequence[T]) -> T:
        return options[int(len(options) * self._random())]

    def chance(self, probability: float) -> bool:
        return self._random() < probability

    def near(self, colour: Colour, spread: int = 12) -> Colour:
        light = self.whole(-spread, spread)
        red, green, blue = (min(255, max(0, c + light + self.whole(-spread // 2, spread // 2))) for c in colour)
        return red, green, blue


@functools.lru_cache(maxsize=1024)
def scaled(colour: Colour, factor: float) -> Colour:
    red, green, blue = (min(255, round(c * factor)) for c in colour)
    return red, green, blue


def mixed(a: Colour, b: Colour, share: float) -> Colour:
    red, green, blue = (round(x + (y - x) * share) for x, y in zip(a, b, strict=True))
    return red, green, blue


@functools.lru_cache(maxsize=16)
def _noise(side: int, cell: int) -> np.ndarray:
    """Makes noise with grains about ``cell`` pixels wide: (side, side) int16 in -128 ... 127. Do not write to it."""
    count = math.ceil(side / cell) + 1
    raw = np.random.PCG64(cell).random_raw(count * count // 8 + 1).astype("<u8").view(np.uint8)[: count * count]
    grains = Image.fromarray(raw.reshape(count, count))
    if cell > 1:
        grains = grains.resize((count * cell, count * cell), Image.Resampling.BICUBIC)
    return np.asarray(grains).astype(np.int16)[:side, :side] - 128


def noise_patch(side: int, cell: int, height: int, width: int, dice: Dice) -> np.ndarray:
    """Cuts (height, width) int16 at a random place out of a noise field a quarter larger than ``side``."""
    field = _noise(side * 5 // 4, cell)
    y, x = (dice.whole(0, len(field) - extent) for extent in (height, width))
    return field[y : y + height, x : x + width]


def textured(
    tone: np.ndarray, joint: np.ndarray | None, colour: Colour, joint_colour: Colour, dice: Dice
) -> Image.Image:
    """Paints tones (0 is the colour itself, ±64 its extremes) and joints as an RGBA image."""
    index = np.clip(tone + np.int16(64), 0, 127).astype(np.uint8)
    if joint is not None:
        index |= joint.view(np.uint8) << 7
    ramp = np.arange(-64, 64)[:, None] / 64
    tint = np.array([dice.between(-14, 14) for _ in range(3)])  # dark and light parts differ in hue, too
    palette = [np.array(base) * (1 + 0.55 * ramp) + tint * ramp for base in (colour, joint_colour)]
    image = Image.fromarray(index).convert("P")
    image.putpalette(np.clip(np.concatenate(palette), 0, 255).astype(np.uint8).tobytes())
    return image.convert("RGBA")


def courses(
    height: int, width: int, block: tuple[int, int], joint: int, amount: float, bond: bool, dice: Dice
) -> tuple[np.ndarray, np.ndarray]:
    """Lays courses of blocks: the tone of each pixel, (height, width) int16 within ±amount, and whether it is joint."""
    high, wide = block
    rows, columns = height // high + 1, width // wide + 2
    table = noise_patch(256, 1, min(rows, 300), min(columns, 300), dice) * np.int16(amount) >> 7
    table = np.pad(table, ((0, rows - len(table)), (0, columns - table.shape[1])), mode="reflect")
    tones = np.repeat(table, wide, axis=1)
    gaps = np.broadcast_to(np.arange(columns * wide) % wide < joint, (2, columns * wide)).copy()
    if bond:
        half = wide // 2
        tones[1::2, :-half] = tones[1::2, half:].copy()
        gaps[1] = np.roll(gaps[1], half)
    y = np.arange(height)
    course = y % high
    tones = np.repeat(tones[:, :width], high, axis=0)[:height]
    # Light falls from above: a block's upper edge is lit, its lower edge is not.
    bevel = (course == joint) * np.int16(amount * 0.5) - (course == high - 1) * np.int16(amount * 0.6)
    return tones + bevel[:, None].astype(np.int16), gaps[(y // high) % 2, :width] | (course < joint)[:, None]


def wall_texture(kind: str, height: int, width: int, side: int, bay: float, dice: Dice) -> Image.Image:
    """Paints a wall of one of the `WALLS`, (width, height) RGBA."""
    unit = side / 448
    tone = noise_patch(side, max(2, side // 9), height, width, dice) * np.int16(dice.whole(8, 33))  # stains
    tone += noise_patch(side, 1, height, width, dice) * np.int16(dice.whole(5, 23))  # grain
    tone += noise_patch(side, max(2, round(4 * unit)), height, width, dice) * np.int16(dice.whole(5, 26))  # blotches
    tone >>= 8
    colour = dice.near(dice.pick(WALLS[kind]))
    mortar = dice.near(dice.pick(((190, 182, 168), (150, 142, 132), scaled(colour, 0.7))))
    joint = None
    if kind == "brick":
        high = max(4, round(dice.between(7, 13) * unit))
        block = (high, max(6, round(high * dice.between(2.2, 3.2))))
        blocks, joint = courses(height, width, block, max(1, round(high / 7)), dice.between(8, 30), True, dice)
        tone += blocks
    elif kind == "stone":
        high = max(6, round(dice.between(20, 46) * unit))
        block = (high, max(8, round(high * dice.between(1.4, 2.8))))
        blocks, joint = courses(height, width, block, max(1, round(1.6 * unit)), dice.between(5, 14), True, dice)
        tone += blocks
        mortar = scaled(colour, dice.between(0.6, 0.85))
    elif kind == "panels":
        block = (max(8, round(bay * dice.pick((0.5, 1.0)))), max(8, round(bay * dice.pick((0.5, 1.0)))))
        blocks, joint = courses(height, width, block, max(1, round(2 * unit)), dice.between(3, 10), False, dice)
        tone += blocks
        mortar = scaled(colour, 0.6)
    elif kind == "boards":
        high = max(4, round(dice.between(9, 17) * unit))
        blocks, joint = courses(height, width, (high, 4 * side), 1, dice.between(12, 26), False, dice)
        tone += blocks
        mortar = scaled(colour, 0.55)
    return textured(tone, joint, colour, mortar, dice)


class Pen(ImageDraw.ImageDraw):
    """Draws nothing for an empty rectangle or ellipse, as details of small pictures are. Pillow alone would raise."""

    def rectangle(self, xy: Any, *arguments: Any, **named: Any) -> None:
        if xy[0] <= xy[2] and xy[1] <= xy[3]:
            super().rectangle(xy, *arguments, **named)

    def ellipse(self, xy: Any, *arguments: Any, **named: Any) -> None:
        if xy[0] <= xy[2] and xy[1] <= xy[3]:
            super().ellipse(xy, *arguments, **named)


def darken(canvas: Image.Image, box: tuple[int, int, int, int], amount: int) -> None:
    """Mixes black over the box (left, top, right, bottom), ``amount`` of 255."""
    width, height = box[2] - box[0], box[3] - box[1]
    if width > 0 and height > 0:
        canvas.paste((0, 0, 0, 255), box, Image.new("L", (width, height), amount))


@functools.lru_cache(maxsize=1)
def _fade() -> Image.Image:
    return Image.linear_gradient("L")


def gradient(size: tuple[int, int], top: Colour, bottom: Colour) -> Image.Image:
    """Paints a gradient from one colour at the top to another at the bottom, opaque RGBA."""
    image = Image.new("RGBA", size, (*top, 255))
    image.paste((*bottom, 255), (0, 0, *size), _fade().resize(size, Image.Resampling.NEAREST))
    return image
