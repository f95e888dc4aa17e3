"""PIL's image modes: any mode to colours in [0, 1], and colours back into the hole of an image.

- `to_rgb`, `fill`: to colours and back; the bytes of the other pixels stay as they are.
- `hole_pixels`: a mask picture to the pixels to fill. Here, as in every file, **white is the hole**.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

GREY_MODES = ("1", "L", "LA", "La", "I", "F")
ALPHA_MODES = ("LA", "La", "PA", "RGBA", "RGBa")
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601, as Pillow's own conversion to L


def to_rgb(image: Image.Image, hole: np.ndarray | None = None) -> np.ndarray:
    """Converts an image of any mode to colours; alpha is left out.

    Grey is repeated three times. Modes of more than 8 bits: I;16 and I (which 16-bit PNG and TIFF files load as) hold
    0 ... 65535, F holds 0 ... 1. CMYK, YCbCr and HSV go through Pillow's own conversions, which ignore colour profiles.

    Args:
        image: any mode but LAB.
        hole: (H, W) bool or None. Its pixels come out as 0, and their values are never read, not even to refuse them.

    Returns:
        (H, W, 3) float32 in [0, 1].

    Raises:
        ValueError: LAB; I or F values outside the range above.
    """
    mode = image.mode
    if mode == "LAB":
        raise ValueError("mode LAB is not supported; convert the image to RGB first")
    image = unpremultiplied(image)
    if mode in ("I", "F") or mode.startswith("I;16"):
        top = 1 if mode == "F" else 65535
        values: np.ndarray = np.asarray(image).astype(np.float64 if mode == "I" else np.float32)
        if hole is not None:
            values = np.where(hole, 0, values)
        if not ((values >= 0) & (values <= top)).all():  # written so that NaN is refused too
            raise ValueError(f"mode {mode} must hold values in [0, {top}]; convert the image to another mode first")
        return _repeated(values / top)
    if mode in GREY_MODES:
        grey = np.asarray(image.convert("L") if mode == "1" else image.getchannel(0))
        colours = _repeated(grey / np.float32(255))
    else:
        if mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")  # on this way to RGB Pillow does not warn
        colours = np.asarray(image.convert("RGB")) / np.float32(255)
    return colours if hole is None else np.where(hole[..., None], np.float32(0), colours)


def fill(image: Image.Image, colours: np.ndarray, hole: np.ndarray) -> Image.Image:
    """Copies the image and takes the hole's pixels from ``colours``; the copy has the image's mode.

    Alpha is the image's own, in the hole too. Grey modes get the luma of the colours, rounded to the mode's precision;
    "1" is thresholded at a half; P gets the nearest colour of the image's own palette that is as transparent as the
    pixel was.

    Args:
        image: as for `to_rgb`.
        colours: (H, W, 3) float32 in [0, 1].
        hole: (H, W) bool.
    """
    result = image.copy()
    if hole.any():
        # A paste through a bilevel mask copies whole pixels, so the others keep their bytes in every mode.
        result.paste(_like(image, colours, hole), mask=Image.fromarray(hole))
    return result


def hole_pixels(mask: Image.Image, invert: bool = False) -> np.ndarray:
    """Finds the hole of a mask picture: the pixels that are more than half white (above 127 of 255).

    Transparent pixels count as black.

    Args:
        mask: any mode that `to_rgb` takes.
        invert: black is the hole instead.

    Returns:
        (H, W) bool.

    Raises:
        ValueError: a mode that `to_rgb` refuses.
    """
    mask = mask.convert("RGBA") if mask.mode == "P" else with_alpha_for_key(mask)
    white: np.ndarray = to_rgb(mask) @ _LUMA
    if mask.mode in ALPHA_MODES:
        white = white * (np.asarray(mask.getchannel(len(mask.getbands()) - 1)) / np.float32(255))
    hole = white > 0.5
    return ~hole if invert else hole


def side_by_side(image: Image.Image, result: Image.Image, hole: np.ndarray) -> Image.Image:
    """Puts the image, its hole in white, on the left and the result on the right of an RGB image of twice the width."""
    left = np.where(hole[..., None], np.float32(1), to_rgb(image, hole))
    return Image.fromarray(np.rint(np.concatenate([left, to_rgb(result)], axis=1) * 255).astype(np.uint8))


def _like(image: Image.Image, colours: np.ndarray, hole: np.ndarray) -> Image.Image:
    """Makes an image of the same mode from the colours, with the image's alpha. `fill` uses the hole's pixels only."""
    mode = image.mode
    if mode in ("P", "PA"):
        return _in_palette(image, colours, hole)
    grey = np.clip(colours @ _LUMA, 0, 1)  # the weights sum to 1 only up to rounding
    if mode == "1":
        return Image.fromarray(grey >= 0.5)
    if mode == "F":
        return Image.fromarray(grey)
    if mode == "I":
        return Image.fromarray(np.rint(grey * 65535).astype(np.int32))
    if mode.startswith("I;16"):
        order = np.asarray(image).dtype
        return Image.frombytes(mode, image.size, np.rint(grey * 65535).astype(order).tobytes())
    if mode in ("L", "LA", "La"):
        filled = Image.fromarray(np.rint(grey * 255).astype(np.uint8))
        if mode == "L":
            return filled
        return Image.merge("LA", (filled, image.getchannel(1))).convert(mode)
    filled = Image.fromarray(np.rint(colours * 255).astype(np.uint8))
    if mode in ("RGBA", "RGBa", "RGBX"):
        straight = "RGBA" if mode == "RGBa" else mode
        return Image.merge(straight, (*filled.split(), image.getchannel(3))).convert(mode)
    return filled.convert(mode)


def _in_palette(image: Image.Image, colours: np.ndarray, hole: np.ndarray) -> Image.Image:
    palette = np.array(image.getpalette("RGB") or [0, 0, 0], dtype=np.float32).reshape(-1, 3) / 255
    indices = np.asarray(image.getchannel(0)).copy()
    opacity = np.full(256, 255)
    transparency = image.info.get("transparency")
    if image.mode == "P" and image.palette is not None and image.palette.mode == "RGBA":
        opacity[: len(palette)] = (image.getpalette("RGBA") or [])[3::4]
    elif image.mode == "P" and isinstance(transparency, int):
        opacity[transparency] = 0
    elif image.mode == "P" and isinstance(transparency, bytes):
        opacity[: len(transparency)] = list(transparency)
    for value in np.unique(opacity[indices[hole]]):
        pixels = hole & (opacity[indices] == value)
        choices = np.flatnonzero(opacity[: len(palette)] == value)
        if len(choices):
            indices[pixels] = choices[_nearest(colours[pixels], palette[choices])]
    bands = [Image.frombytes("P", image.size, indices.tobytes())]
    if image.mode == "P":
        return bands[0]
    return Image.merge("PA", (Image.fromarray(indices), image.getchannel("A")))


def _nearest(colours: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Index of the nearest palette colour: minimises |c|² - 2 c·p + |p|² without its constant term, piece by piece."""
    lengths = (palette**2).sum(1)
    pieces = np.array_split(colours, len(colours) // 65536 + 1)
    return np.concatenate([(lengths - 2 * piece @ palette.T).argmin(1) for piece in pieces])


def unpremultiplied(image: Image.Image) -> Image.Image:
    return image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode]) if image.mode in ("La", "RGBa") else image


def _repeated(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey.astype(np.float32)[..., None], 3, axis=2)


def with_alpha_for_key(image: Image.Image) -> Image.Image:
    """Turns a colour key into an alpha channel. With the key, a filled pixel could turn transparent."""
    if image.mode in ("1", "L", "RGB") and "transparency" in image.info:
        return image.convert("RGBA" if image.mode == "RGB" else "LA")
    return image
