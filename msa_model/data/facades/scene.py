"""Renders a building facade from a number.

A scene is drawn from the front on a canvas: sky, ground, and one to three buildings, each with one style of wall,
window, ledge and balcony, repeated along its bays and storeys. Then a slight perspective, light, a colour cast and
grain turn the canvas into a photograph.

The pictures are the same on every machine: random numbers come from `random.Random` and raw PCG64 bits, which no
version changes, and the calculations use integers and +, -, ×, ÷ only (no sine, no fused sum), whose results do not
depend on the processor.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
from PIL import Image

from .building import Building
from .textures import Dice, Pen, darken, gradient, noise_patch, textured

_CANVAS = 1.75  # canvas pixels per picture pixel: the camera sees about 85 % of the canvas, at twice the samples


def render_facade(size: int, seed: int) -> np.ndarray:
    """Renders facade number ``seed``.

    Args:
        size: height and width in pixels, at least 16.
        seed: 0 or more; every number gives another picture. The same (size, seed) gives the same bytes on every
            machine with the same version of Pillow.

    Returns:
        (size, size, 3) uint8, RGB.

    Raises:
        ValueError: a size below 16 or a negative seed.
    """
    if size < 16 or seed < 0:
        raise ValueError(f"msa_model.render_facade: size must be 16 or more and seed 0 or more, got {size} and {seed}")
    dice = Dice(int(seed))
    side = math.ceil(size * _CANVAS)
    canvas = Image.new("RGBA", (side, side), (0, 0, 0, 255))
    bay = side * dice.between(0.11, 0.33)
    bottom = round(side * dice.between(0.78, 0.94)) if dice.chance(0.55) else side + round(bay * dice.between(0, 1))
    top = round(side * dice.between(0.08, 0.3)) if dice.chance(0.5) else -round(bay * dice.between(0.1, 1))
    edges, buildings = _building_edges(side, dice), []
    for left, right in itertools.pairwise(edges):
        # Neighbours differ in everything but the height of the street.
        width = bay * dice.between(0.8, 1.25) if len(edges) > 2 else bay
        height = top + round(bay * dice.between(-0.5, 0.5)) if len(edges) > 2 else top
        buildings.append(Building(canvas, left, right, height, bottom, width, dice))
    lowest = max(building.top for building in buildings)
    if lowest > 0:
        _sky(canvas, min(lowest, side), dice)
    for building in buildings:
        building.draw()
    if bottom < side:
        _ground(canvas, bottom, dice)
    if dice.chance(0.3):
        _shadow_of_the_opposite_side(canvas, dice)
    return _photograph(canvas, size, dice)


def _building_edges(side: int, dice: Dice) -> list[int]:
    count = dice.pick((1, 1, 1, 2, 2, 3))
    shares = [dice.between(0.7, 1.3) for _ in range(count)]
    edges = [0]
    for share in shares:
        edges.append(edges[-1] + round(side * share / sum(shares)))
    return [*edges[:-1], side]


def _sky(canvas: Image.Image, height: int, dice: Dice) -> None:
    upper, lower = dice.pick(
        (((96, 146, 206), (190, 214, 234)), ((200, 206, 212), (226, 228, 230)), ((130, 160, 200), (236, 214, 190)))
    )
    sky = gradient((canvas.width, height), dice.near(upper), dice.near(lower))
    clouds = noise_patch(canvas.width, max(2, canvas.width // 9), height, canvas.width, dice)
    clouds = clouds + noise_patch(canvas.width, max(2, canvas.width // 30), height, canvas.width, dice) // 3
    thick = np.clip(clouds * 2 - dice.whole(10, 130), 0, 200).astype(np.uint8)
    sky.paste((244, 245, 247, 255), (0, 0, *sky.size), Image.fromarray(thick))
    canvas.paste(sky, (0, 0))


def _ground(canvas: Image.Image, top: int, dice: Dice) -> None:
    side, unit = canvas.width, max(1, round(canvas.width / 300))
    height = side - top
    grain = (
        noise_patch(side, 1, height, side, dice) // 10 + noise_patch(side, max(2, side // 30), height, side, dice) // 8
    )
    grey = dice.whole(120, 180)
    canvas.paste(textured(grain, None, dice.near((grey, grey - 3, grey - 8)), (0, 0, 0), dice), (0, top))
    draw = Pen(canvas)
    slab, lean = dice.whole(20, 60) * unit, dice.between(-0.5, 0.5)
    kerb = top + round(height * dice.between(0.3, 0.6))
    for x in range(-side, 2 * side, slab):  # slabs of the pavement, towards a vanishing point
        draw.line((x, top, x + (x - side / 2 + lean * side) * 0.5, kerb), fill=(grey - 34, grey - 36, grey - 40))
    draw.rectangle((0, kerb, side, side), fill=(78, 78, 82))
    road = textured(noise_patch(side, 1, side - kerb, side, dice) // 8, None, dice.near((84, 84, 88)), (0, 0, 0), dice)
    canvas.paste(road, (0, kerb))
    draw.rectangle((0, kerb, side, kerb + 2 * unit), fill=(grey + 20, grey + 18, grey + 14))
    draw.rectangle((0, kerb + 2 * unit, side, kerb + 4 * unit), fill=(62, 62, 66))
    darken(canvas, (0, top, side, top + 2 * unit), 90)


def _shadow_of_the_opposite_side(canvas: Image.Image, dice: Dice) -> None:
    """Draws a shadow with a straight edge over the lower part, as of the roofs across the street."""
    side = canvas.width
    left, right = (side * dice.between(0.2, 1.0) for _ in range(2))
    middle, step = side * dice.between(0.2, 0.8), side * dice.between(-0.2, 0.2)
    mask = Image.new("L", canvas.size, 0)
    outline = ((0, left), (middle, (left + right) / 2), (middle, (left + right) / 2 + step), (side, right + step))
    Pen(mask).polygon((*outline, (side, side), (0, side)), fill=dice.whole(50, 110))
    canvas.paste((14, 18, 34, 255), (0, 0, side, side), mask)


# ---- the camera ----------------------------------------------------------------------------------------------------


def _photograph(canvas: Image.Image, size: int, dice: Dice) -> np.ndarray:
    """Photographs the canvas: (size, size, 3) uint8."""
    samples = (2 * size, 2 * size)
    map_ = _perspective(_view(canvas.width, dice), 2 * size)
    sampled = canvas.convert("RGB").transform(samples, Image.Transform.PERSPECTIVE, map_, Image.Resampling.NEAREST)
    seen = np.asarray(sampled.reduce(2))
    line = (np.arange(size, dtype=np.float32) - size / 2) / size
    across, down = dice.between(-0.35, 0.35), dice.between(-0.3, 0.3)
    corners, exposure = dice.between(0, 0.45), dice.between(0.82, 1.14)
    light = (exposure + across * line - corners * line * line) + (down * line - corners * line * line)[:, None]
    grain = noise_patch(size, 1, size, size, dice) * np.float32(dice.between(0.0, 0.035))
    picture = np.empty((size, size, 3), np.uint8)
    for channel in range(3):  # one after the other: numpy is slow on an inner axis of three
        plane = seen[..., channel] * (light * np.float32(dice.between(0.93, 1.07)))
        plane += grain
        picture[..., channel] = np.clip(plane, 0, 255, out=plane)
    return picture


def _view(side: int, dice: Dice) -> list[tuple[float, float]]:
    """Chooses the canvas points at the picture's corners, clockwise from the upper left: nearer, turned, tilted."""
    near = dice.between(0.0, 0.12)
    turn, tilt = (dice.between(0, 0.11) * dice.chance(0.75) for _ in range(2))
    left, right = (turn, 0) if dice.chance(0.5) else (0, turn)
    upper, lower = (0, tilt) if dice.chance(0.8) else (tilt, 0)  # mostly looking up: the lower part is nearer
    jitter = [dice.between(0, 0.025) for _ in range(8)]
    low, high = near / 2, 1 - near / 2
    corners = (
        (low + upper + jitter[0], low + left + jitter[1]),
        (high - upper - jitter[2], low + right + jitter[3]),
        (high - lower - jitter[4], high - right - jitter[5]),
        (low + lower + jitter[6], high - left - jitter[7]),
    )
    return [(1 + x * (side - 3), 1 + y * (side - 3)) for x, y in corners]  # every sample is on the canvas


def _perspective(corners: list[tuple[float, float]], size: int) -> tuple[float, ...]:
    """Computes the projective map of a square of ``size`` pixels onto the four corners, as `Image.transform` takes it.

    x' = (a x + b y + c) / (g x + h y + 1), y' = (d x + e y + f) / (g x + h y + 1); Heckbert 1989, section 2.2.3.
    """
    (x0, y0), (x1, y1), (x2, y2), (x3, y3) = corners
    dx1, dx2, dx3 = x1 - x2, x3 - x2, x0 - x1 + x2 - x3
    dy1, dy2, dy3 = y1 - y2, y3 - y2, y0 - y1 + y2 - y3
    scale = dx1 * dy2 - dx2 * dy1
    g, h = (dx3 * dy2 - dx2 * dy3) / scale, (dx1 * dy3 - dx3 * dy1) / scale
    a, b = x1 - x0 + g * x1, x3 - x0 + h * x3
    d, e = y1 - y0 + g * y1, y3 - y0 + h * y3
    return (a / size, b / size, x0, d / size, e / size, y0, g / size, h / size)
