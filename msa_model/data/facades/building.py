"""Draws one building: a wall, and the parts that repeat along its bays and storeys."""

from __future__ import annotations

import math

from PIL import Image

from .openings import Opening, balcony, street_door
from .textures import (
    IRON,
    PAINTS,
    ROOFS,
    TRIMS,
    Dice,
    Pen,
    courses,
    darken,
    noise_patch,
    scaled,
    textured,
    wall_texture,
)


class Building:
    """One building between ``left`` and ``right``; its storeys stand on the ground, or go on below the picture."""

    def __init__(
        self, canvas: Image.Image, left: int, right: int, top: int, bottom: int, bay: float, dice: Dice
    ) -> None:
        self.canvas, self.left, self.right, self.bottom, self.dice = canvas, left, right, bottom, dice
        self.side, self.unit = canvas.width, max(1, round(canvas.width / 300))
        self.bays = max(1, round((right - left) / bay))
        self.bay = (right - left) / self.bays
        self.storey = bay * dice.between(0.95, 1.55)
        self.ground_floor = round(self.storey * dice.between(1.0, 1.35)) if bottom < self.side else 0
        room = bottom - self.ground_floor - top
        self.storeys = max(1, (round if top > 0 else math.ceil)(room / self.storey))
        self.top = bottom - self.ground_floor - round(self.storeys * self.storey)
        self.has_roof = self.top > 0
        self.kind = dice.pick(("brick", "brick", "stone", "stone", "plaster", "plaster", "panels", "boards"))
        self.trim = dice.near(dice.pick(TRIMS))
        self.iron = dice.pick(IRON)

    def draw(self) -> None:
        dice, width = self.dice, self.right - self.left
        visible = max(0, self.top)
        wall = wall_texture(self.kind, min(self.side, self.bottom) - visible, width, self.side, self.bay, dice)
        self.canvas.paste(wall, (self.left, visible))
        if self.ground_floor and dice.chance(0.5):  # a ground floor of another material
            kind = dice.pick(("stone", "plaster", "panels"))
            foot = wall_texture(kind, self.ground_floor, width, self.side, self.bay, dice)
            self.canvas.paste(foot, (self.left, self.bottom - self.ground_floor))
        self._verticals()
        self._ledges()
        self._windows()
        if self.ground_floor:
            self._street_level()
        if self.has_roof:
            self._roof()
        darken(self.canvas, (self.right - self.unit, self.top, self.right, self.bottom), 90)

    def _storey_top(self, storey: int) -> int:
        """The upper edge of a storey; storey 0 is the highest."""
        return self.top + round(storey * self.storey)

    def _verticals(self) -> None:
        """Draws corner stones, or pilasters between the bays."""
        dice, unit = self.dice, self.unit
        draw = Pen(self.canvas)
        what = dice.pick(("none", "none", "quoins", "pilasters"))
        foot = self.bottom - self.ground_floor
        if what == "quoins":
            high, wide = max(5, round(self.storey / dice.whole(5, 8))), round(self.bay * 0.16)
            for number, y in enumerate(range(self.top, foot, high)):
                reach = wide if number % 2 else wide * 2 // 3
                for x0, x1 in ((self.left, self.left + reach), (self.right - reach, self.right)):
                    draw.rectangle((x0, y, x1, y + high - 2), fill=self.trim)
                    draw.line((x0, y, x1, y), fill=scaled(self.trim, 1.12))
                    draw.line((x0, y + high - 1, x1, y + high - 1), fill=scaled(self.trim, 0.66))
        elif what == "pilasters":
            half = max(2, round(self.bay * dice.between(0.04, 0.08)))
            for bay in range(self.bays + 1):
                x = self.left + round(bay * self.bay)
                darken(self.canvas, (x + half, self.top, x + half + 2 * unit, foot), 70)
                draw.rectangle((x - half, self.top, x + half, foot), fill=self.trim)
                draw.line((x - half, self.top, x - half, foot), fill=scaled(self.trim, 1.12))
                draw.line((x + half, self.top, x + half, foot), fill=scaled(self.trim, 0.7))

    def _ledge(self, y: int, high: int, out: int = 0) -> None:
        draw = Pen(self.canvas)
        left, right = self.left - out, self.right + out
        darken(self.canvas, (self.left, y + high, self.right, y + high + max(1, high // 2)), 95)
        darken(self.canvas, (self.left, y + high + max(1, high // 2), self.right, y + 2 * high), 45)
        draw.rectangle((left, y, right, y + high - 1), fill=self.trim)
        draw.rectangle((left, y, right, y + high // 4), fill=scaled(self.trim, 1.12))
        draw.rectangle((left, y + high * 3 // 4, right, y + high - 1), fill=scaled(self.trim, 0.78))

    def _ledges(self) -> None:
        dice, unit = self.dice, self.unit
        every, high = dice.pick((0, 0, 1, 1, 2)), dice.whole(2, 5) * unit
        if every:
            for storey in range(1, self.storeys, every):
                self._ledge(self._storey_top(storey) - high, high)
        if self.ground_floor:
            self._ledge(self.bottom - self.ground_floor - high // 2, high)

    def _windows(self) -> None:
        dice = self.dice
        wide = dice.between(0.34, 0.62) * self.bay
        tall = min(wide * dice.between(1.1, 2.3), self.storey * 0.68)
        style = Opening(round(wide), round(tall), self.trim, dice)
        first = Opening(round(wide), round(min(tall * 1.15, self.storey * 0.72)), self.trim, dice)
        # Most windows of a building are alike, a few differ, as in a street.
        usual = dice.pick(("plain", "plain", "curtains", "blind"))
        variants = [usual, usual, usual, dice.pick(("plain", "curtains")), dice.pick(("blind", "curtains", "lit"))]
        balconies = dice.pick(("none", "none", "single", "single", "long"))
        rail = dice.chance(0.2), dice.pick((2, 3, 3, 5))
        special = dice.chance(0.35)
        for storey in range(self.storeys):
            lowest = storey == self.storeys - 1
            opening = first if special and lowest else style
            top = self._storey_top(storey) + round(self.storey * 0.54 - opening.height / 2 + opening.width * 0.08)
            for bay in range(self.bays):
                middle = self.left + round((bay + 0.5) * self.bay)
                sprite = opening.sprite(dice, dice.pick(variants))
                at = (middle - opening.width // 2 - opening.margin_x, top - opening.above)
                self._paste(sprite, at)
            if balconies == "long" and (storey + self.storeys) % 2:
                self._rail(self.left, self.right, top + opening.height, opening, *rail)
            elif balconies == "single":
                for bay in range(self.bays):
                    middle, half = self.left + round((bay + 0.5) * self.bay), round(opening.width * 0.72)
                    self._rail(middle - half, middle + half, top + opening.height, opening, *rail)

    def _paste(self, sprite: Image.Image, at: tuple[int, int]) -> None:
        """Pastes a sprite with its own opacity, and cuts it off at the building's sides."""
        low, high = max(0, self.left - at[0]), min(sprite.width, self.right - at[0])
        if (low, high) != (0, sprite.width):
            sprite, at = sprite.crop((low, 0, high, sprite.height)), (at[0] + low, at[1])
        self.canvas.paste(sprite, at, sprite)

    def _rail(self, left: int, right: int, foot: int, opening: Opening, solid: bool, pattern: int) -> None:
        high = max(4, round(opening.height * 0.36))
        self._paste(
            balcony(right - left, high, self.trim, self.iron, solid, pattern, self.unit),
            (left, foot - high + self.unit),
        )

    def _street_level(self) -> None:
        dice, unit = self.dice, self.unit
        top, high = self.bottom - self.ground_floor, self.ground_floor
        draw = Pen(self.canvas)
        plinth = round(high * dice.between(0.06, 0.14))
        stone = scaled(self.trim, dice.between(0.6, 0.85))
        draw.rectangle((self.left, self.bottom - plinth, self.right - 1, self.bottom), fill=stone)
        draw.line((self.left, self.bottom - plinth, self.right - 1, self.bottom - plinth), fill=scaled(stone, 1.2))
        shop, door_at, every = dice.chance(0.4), dice.whole(0, self.bays - 1), dice.pick((2, 3, 99))
        window = Opening(round(self.bay * 0.5), round(high * 0.5), self.trim, dice)
        pane = Opening(round(self.bay * 0.8), round(high * 0.58), self.trim, dice, plain=True)
        door = street_door(
            max(6, round(self.bay * dice.between(0.42, 0.6))), round(high * dice.between(0.7, 0.8)), self.trim, dice
        )
        for bay in range(self.bays):
            middle = self.left + round((bay + 0.5) * self.bay)
            if (bay - door_at) % every == 0:
                x = middle - door.width // 2
                darken(self.canvas, (x + door.width, self.bottom - door.height, x + door.width + unit, self.bottom), 90)
                self._paste(door, (x, self.bottom - door.height))
                step = (x - 2 * unit, self.bottom - 2 * unit, x + door.width + 2 * unit, self.bottom)
                draw.rectangle(step, fill=scaled(self.trim, 0.9))
                continue
            opening = pane if shop else window
            y = top + round(high * (0.3 if shop else 0.2))
            self._paste(
                opening.sprite(dice, "plain"), (middle - opening.width // 2 - opening.margin_x, y - opening.above)
            )
        if shop:
            self._shop_sign(top, high)

    def _shop_sign(self, top: int, high: int) -> None:
        dice, unit = self.dice, self.unit
        draw = Pen(self.canvas)
        paint, letters = dice.near(dice.pick(PAINTS)), dice.near((226, 214, 180))
        y0, y1 = top + round(high * 0.1), top + round(high * 0.24)
        draw.rectangle((self.left, y0, self.right - 1, y1), fill=paint, outline=scaled(paint, 0.7))
        x = self.left + round(self.bay * dice.between(0.2, 0.6))
        for _ in range(dice.whole(4, 11)):
            wide = dice.whole(2, 4) * unit
            if x + wide < self.right - unit:
                draw.rectangle((x, y0 + 3 * unit, x + wide, y1 - 3 * unit), outline=letters, width=unit)
            x += wide + 2 * unit
        if dice.chance(0.6):  # an awning in stripes, and its shadow
            colours = dice.near(dice.pick(PAINTS)), dice.near((232, 226, 212))
            y2, stripe = y1 + round(high * 0.13), max(3, round(self.bay / dice.whole(4, 8)))
            for number, x in enumerate(range(self.left, self.right, stripe)):
                draw.rectangle((x, y1, min(x + stripe, self.right) - 1, y2), fill=colours[number % 2])
            darken(self.canvas, (self.left, y2 - unit, self.right, y2 + 1), 60)
            darken(self.canvas, (self.left, y2 + 1, self.right, y2 + 5 * unit), 80)

    def _roof(self) -> None:
        """Draws a cornice, with or without teeth, and sometimes a mansard roof with dormers and chimneys above it."""
        dice, unit = self.dice, self.unit
        draw = Pen(self.canvas)
        high = dice.whole(4, 8) * unit
        if dice.chance(0.5):
            slates, rise = dice.near(dice.pick(ROOFS)), round(self.storey * dice.between(0.5, 0.85))
            base, width = self.top - high, self.right - self.left
            for _ in range(dice.whole(0, 3)):
                x, wide = dice.whole(self.left, self.right), dice.whole(10, 20) * unit
                brick, reach = dice.near((150, 84, 66)), base - rise - dice.whole(8, 22) * unit
                box = (max(self.left, x), reach, min(self.right - 1, x + wide), base)
                if box[2] > box[0]:
                    draw.rectangle(box, fill=brick)
                    draw.rectangle((box[0], reach, box[2], reach + 2 * unit), fill=scaled(brick, 0.75))
                    draw.rectangle((max(box[0], box[2] - 3 * unit), reach, box[2], base), fill=scaled(brick, 0.8))
            tones, joint = courses(rise, width, (max(3, 4 * unit), max(4, 5 * unit)), 1, 14, True, dice)
            tones += noise_patch(self.side, max(2, self.side // 9), rise, width, dice) >> 4
            slope = dice.pick((0, 0.12, 0.3)) * rise
            mask = Image.new("L", (width, rise), 0)
            Pen(mask).polygon(((0, rise), (slope, 0), (width - slope, 0), (width, rise)), fill=255)
            self.canvas.paste(textured(tones, joint, slates, scaled(slates, 0.6), dice), (self.left, base - rise), mask)
            if dice.chance(0.7):
                dormer = Opening(round(self.bay * 0.32), round(rise * 0.55), self.trim, dice)
                sprite = dormer.sprite(dice, "plain")
                for bay in range(self.bays):
                    x = self.left + round((bay + 0.5) * self.bay) - dormer.width // 2 - dormer.margin_x
                    self._paste(sprite, (x, base - round(rise * 0.12) - dormer.height - dormer.above))
        if dice.chance(0.6):
            tooth = 2 * unit
            for x in range(self.left, self.right - tooth, 2 * tooth):
                draw.rectangle((x, self.top, x + tooth, self.top + 3 * unit), fill=scaled(self.trim, 0.85))
        self._ledge(self.top - high, high, out=2 * unit)
