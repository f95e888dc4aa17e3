"""Windows, doors and balconies. Each style is drawn once and pasted many times."""

from __future__ import annotations

import functools

from PIL import Image

from .textures import FRAMES, PAINTS, Colour, Dice, Pen, darken, gradient, mixed, scaled


class Opening:
    """One style of window. `sprite` draws a variant of it, with surround, sill and shadows, to be pasted."""

    def __init__(self, width: int, height: int, trim: Colour, dice: Dice, plain: bool = False) -> None:
        self._sprites: dict[str, Image.Image] = {}
        self.width, self.height = max(4, width), max(5, height)
        self.unit = unit = max(1, round(self.width / 16))  # the thickness of a frame
        self.trim, self.frame = trim, dice.near(dice.pick(FRAMES), 6)
        self.arch = dice.pick((0.0, 0.0, 0.0, 0.25, 0.5)) if not plain else 0.0  # rise of the arch per width
        self.columns, self.rows = dice.pick((1, 2, 2, 2, 3)), dice.pick((1, 2, 2, 3, 4))
        self.transom = dice.pick((0.0, 0.3)) if self.rows < 3 else 0.0
        self.surround = dice.pick((0, unit, 2 * unit)) if not plain else unit
        self.head = dice.pick(("none", "lintel", "keystone", "pediment", "hood")) if not plain else "none"
        self.sill = not plain and dice.chance(0.8)
        self.shutters = dice.near(dice.pick(PAINTS)) if not plain and dice.chance(0.3) else None
        self.glass = dice.pick(
            (
                ((120, 142, 162), (52, 62, 72)), ((44, 52, 60), (70, 80, 86)), ((170, 186, 198), (96, 112, 124)),
                ((60, 66, 66), (24, 28, 32)), ((140, 150, 150), (70, 84, 88)),
            )
        )  # fmt: skip
        self.light = dice.pick((-1, 1))
        self.margin_x = self.surround + (self.width * 9 // 16 if self.shutters else 3 * unit)
        self.above = self.surround + round(self.width * 0.34) + unit
        self.below = self.surround + 4 * unit

    def sprite(self, dice: Dice, variant: str) -> Image.Image:
        """Draws the window "plain", "lit", or with "curtains" or a "blind", once; later calls return the same image."""
        if variant not in self._sprites:
            self._sprites[variant] = self._drawn(dice, variant)
        return self._sprites[variant]

    def _drawn(self, dice: Dice, variant: str) -> Image.Image:
        unit, width, height = self.unit, self.width, self.height
        x, y = self.margin_x, self.above
        sprite = Image.new("RGBA", (width + 2 * x, height + self.above + self.below))
        draw = Pen(sprite)
        lit, dark, soft = scaled(self.trim, 1.12), scaled(self.trim, 0.72), (0, 0, 0, 70)
        if self.surround:
            s = self.surround
            draw.rectangle((x - s + unit, y - s, x + width + s, y + height + s), fill=soft)  # its shadow on the wall
            self._shape(draw, x - s, y - s, width + 2 * s, height + s, self.trim)
            draw.line((x - s, y, x - s, y + height), fill=lit)
            draw.line((x + width + s - 1, y, x + width + s - 1, y + height), fill=dark)
        if self.shutters:
            self._shutters(draw, x, y)
        self._head(draw, x, y, lit, dark, soft)
        window = self._window(dice, variant)
        mask = Image.new("L", window.size, 0)
        self._shape(Pen(mask), 0, 0, width, height, 255)
        sprite.paste(window, (x, y), mask)
        if self.sill:
            out = self.surround + unit
            bottom = y + height
            draw.rectangle((x - out + unit, bottom + 2 * unit, x + width + out, bottom + 4 * unit), fill=(0, 0, 0, 85))
            draw.rectangle((x - out, bottom, x + width + out, bottom + 2 * unit), fill=self.trim)
            draw.line((x - out, bottom, x + width + out, bottom), fill=lit)
            draw.line((x - out, bottom + 2 * unit, x + width + out, bottom + 2 * unit), fill=dark)
        return sprite

    def _shape(self, draw: Pen, x: int, y: int, width: int, height: int, fill: Colour | int) -> None:
        """Draws a rectangle with the style's arch on top."""
        rise = round(self.arch * width)
        if rise:
            draw.ellipse((x, y, x + width - 1, y + 2 * rise), fill=fill)
        draw.rectangle((x, y + rise, x + width - 1, y + height - 1), fill=fill)

    def _window(self, dice: Dice, variant: str) -> Image.Image:
        unit, width, height = self.unit, self.width, self.height
        top, bottom = self.glass
        if variant == "lit":
            top, bottom = (246, 214, 148), (214, 166, 96)
        image = gradient((width, height), top, bottom)
        draw = Pen(image)
        if variant != "lit":  # the sky's reflection, a slanted band
            at = round(width * dice.between(-0.3, 0.7))
            band = (at, 0), (at + width // 3, 0), (at + width // 3 - height // 3, height), (at - height // 3, height)
            draw.polygon(band, fill=mixed(top, (216, 226, 234), 0.35))
        if variant == "curtains":
            cloth = dice.near((222, 216, 204), 14)
            for left in (0, width - width // 4):
                draw.rectangle((left, 0, left + width // 4, height), fill=cloth)
                for fold in range(left + 1, left + width // 4, max(2, unit * 2)):
                    draw.line((fold, 0, fold, height), fill=scaled(cloth, 0.86))
        elif variant == "blind":
            end, cloth = round(height * dice.between(0.2, 0.75)), dice.near((214, 208, 192), 16)
            draw.rectangle((0, 0, width, end), fill=cloth)
            for y in range(0, end, max(2, unit + 1)):
                draw.line((0, y, width, y), fill=scaled(cloth, 0.88))
        for column in range(1, self.columns):
            at = column * width // self.columns
            draw.rectangle((at - unit // 2, 0, at - unit // 2 + unit - 1, height), fill=self.frame)
        heights = [self.transom] if self.transom else [row / self.rows for row in range(1, self.rows)]
        for at in (round(share * height) for share in heights):
            draw.rectangle((0, at - unit // 2, width, at - unit // 2 + unit - 1), fill=self.frame)
        draw.rectangle((0, 0, width - 1, height - 1), outline=self.frame, width=unit)
        if self.arch:
            rise = round(self.arch * width)
            draw.arc((0, 0, width - 1, 2 * rise), 180, 360, fill=self.frame, width=unit + 1)
        # The window stands back in the wall: its head, and the jamb towards the light, throw a shadow on it.
        darken(image, (0, 0, width, 2 * unit), 120)
        darken(image, (0, 2 * unit, width, 3 * unit), 60)
        jamb = (0, 0, unit + 1, height) if self.light < 0 else (width - unit - 1, 0, width, height)
        darken(image, jamb, 100)
        return image

    def _shutters(self, draw: Pen, x: int, y: int) -> None:
        leaf, gap, unit = self.width // 2, self.surround, self.unit
        for left in (x - gap - leaf, x + self.width + gap):
            box = (left, y, left + leaf - 1, y + self.height)
            draw.rectangle((box[0] + unit, box[1] + unit, box[2] + unit, box[3] + unit), fill=(0, 0, 0, 80))
            draw.rectangle(box, fill=self.shutters, outline=scaled(self.shutters, 0.7))
            for slat in range(y + 2 * unit, y + self.height - unit, max(2, round(1.5 * unit))):
                draw.line((left + unit, slat, left + leaf - 1 - unit, slat), fill=scaled(self.shutters, 0.8))

    def _head(self, draw: Pen, x: int, y: int, lit: Colour, dark: Colour, soft: tuple) -> None:
        """Draws the lintel, hood, pediment or keystone above the opening."""
        unit, top, middle = self.unit, y - self.surround, x + self.width // 2
        left, right = x - self.surround - unit, x + self.width + self.surround + unit
        if self.head in ("lintel", "hood") and not self.arch:
            high = round(self.width * (0.22 if self.head == "lintel" else 0.1))
            draw.rectangle((left, top, right, top + 2 * unit), fill=soft)
            draw.rectangle((left, top - high, right, top), fill=self.trim)
            draw.line((left, top - high, right, top - high), fill=lit)
            draw.line((left, top, right, top), fill=dark)
        elif self.head == "pediment" and not self.arch:
            peak = top - round(self.width * 0.32)
            draw.rectangle((left, top, right, top + 2 * unit), fill=soft)
            draw.polygon(((left, top - unit), (middle, peak), (right, top - unit)), fill=self.trim, outline=dark)
            draw.rectangle((left, top - 2 * unit, right, top), fill=self.trim)
            draw.line((left, top, right, top), fill=dark)
        elif self.head == "keystone" or (self.head != "none" and self.arch):
            half = max(2, self.width // 10)
            low, high = top + max(self.surround, unit), top - 2 * unit
            stone = (
                (middle - half - unit, high),
                (middle + half + unit, high),
                (middle + half, low),
                (middle - half, low),
            )
            draw.polygon(stone, fill=scaled(self.trim, 1.05), outline=dark)


def street_door(width: int, height: int, trim: Colour, dice: Dice) -> Image.Image:
    """Draws a street door in its surround, opaque RGBA; paste it with its foot on the ground."""
    unit = max(1, width // 16)
    image = Image.new("RGBA", (width, height), (*trim, 255))
    draw = Pen(image)
    border = 2 * unit
    draw.line((0, 0, width, 0), fill=scaled(trim, 1.15))
    draw.line((width - 1, 0, width - 1, height), fill=scaled(trim, 0.7))
    paint = dice.near(dice.pick(PAINTS))
    left, right = border, width - border
    light = border + round(height * dice.pick((0.0, 0.14, 0.22)))
    if light > border:
        image.paste(gradient((right - left, light - border), (110, 128, 142), (50, 58, 66)), (left, border))
        draw.rectangle((left, light - unit, right - 1, light), fill=scaled(paint, 0.8))
    draw.rectangle((left, light, right - 1, height), fill=paint)
    leaves = dice.pick((1, 2))
    for leaf in range(leaves):
        x0 = left + leaf * (right - left) // leaves
        x1 = left + (leaf + 1) * (right - left) // leaves
        draw.rectangle((x0, light, x1 - 1, height), outline=scaled(paint, 0.6))
        panels, glazed = dice.whole(2, 3), dice.chance(0.3)
        for panel in range(panels):
            y0 = light + panel * (height - light) // panels + 2 * unit
            y1 = light + (panel + 1) * (height - light) // panels - 2 * unit
            if x1 - x0 > 6 * unit and y1 > y0:
                fill = (70, 80, 88) if glazed and panel == 0 else scaled(paint, 0.86)
                box = (x0 + 2 * unit, y0, x1 - 2 * unit - 1, y1)
                draw.rectangle(box, fill=fill, outline=scaled(paint, 0.62))
                draw.line((box[0], y1, box[2], y1), fill=scaled(paint, 1.25))
    darken(image, (left, border, right, border + 2 * unit), 110)
    return image


@functools.lru_cache(maxsize=8)  # the balconies of one picture are often alike
def balcony(width: int, height: int, stone: Colour, iron: Colour, solid: bool, pattern: int, unit: int) -> Image.Image:
    """Draws slab, railing and the shadow below, RGBA; the top of the railing is the top of the picture."""
    slab, shadow = 2 * unit + 1, 5 * unit
    image = Image.new("RGBA", (width, height + slab + shadow))
    draw = Pen(image)
    draw.rectangle((unit, height + slab, width, height + slab + 3 * unit), fill=(0, 0, 0, 105))
    draw.rectangle((2 * unit, height + slab + 3 * unit, width, height + slab + shadow), fill=(0, 0, 0, 50))
    draw.rectangle((0, height, width, height + slab - 1), fill=stone)
    draw.line((0, height, width, height), fill=scaled(stone, 1.15))
    draw.line((0, height + slab - 1, width, height + slab - 1), fill=scaled(stone, 0.6))
    if solid:
        draw.rectangle((0, 0, width, height - 1), fill=scaled(stone, 0.96))
        draw.rectangle((0, 0, width, unit), fill=scaled(stone, 1.1))
        for x in range(0, width, max(4, height * 2 // 3)):
            draw.line((x, unit, x, height), fill=scaled(stone, 0.8))
        return image
    step = max(3, unit * pattern)
    for x in range(0, width, step):
        draw.line((x, 0, x, height), fill=iron, width=max(1, unit // 2))
    if pattern > 3:  # rings between the bars
        for x in range(0, width, step):
            draw.ellipse((x, height // 3, x + step, height // 3 + step), outline=iron)
    for y in (0, height * 3 // 4, height - 1):
        draw.line((0, y, width, y), fill=iron, width=unit)
    return image
