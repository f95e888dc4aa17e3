"""Image files and PIL images at the edge of the library.

- `read`, `read_mask`, `write`: files, with what belongs to a picture beside its pixels (orientation, colour profile,
  resolution, EXIF).
- `to_rgb`, `fill`: any PIL mode to colours in [0, 1] and back into the hole, the other pixels' bytes untouched.
- `hole_pixels`: a mask picture to the pixels to fill. Here, as in every file, **white is the hole**.
"""

from __future__ import annotations

import os
import secrets
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

#: Suffixes of the files that are read and written, and the format that each stands for.
FORMATS = {
    ".bmp": "BMP",
    ".jpeg": "JPEG",
    ".jpg": "JPEG",
    ".png": "PNG",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".webp": "WEBP",
}

# Decoders tried on a file, whatever its suffix. A short list on purpose: some of Pillow's (EPS) start other programs.
_DECODERS = tuple(sorted(set(FORMATS.values())))

# Modes that a format keeps; anything else is converted, with a note.
_KEPT_MODES = {
    "BMP": ("1", "L", "P", "RGB", "RGBA"),
    "JPEG": ("L", "RGB", "CMYK"),
    "PNG": ("1", "L", "LA", "I;16", "P", "RGB", "RGBA"),
    "TIFF": ("1", "L", "LA", "I", "I;16", "I;16B", "F", "P", "RGB", "RGBA", "CMYK"),
    "WEBP": ("RGB", "RGBA"),
}
_KEPT_TIFF_COMPRESSIONS = ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "group3", "group4")

# EXIF that describes the picture. The orientation is applied to the pixels instead; the thumbnail, the maker's note and
# XMP may hold a small copy of the picture before inpainting, so they are left behind.
_KEPT_EXIF = (
    ExifTags.Base.ImageDescription,
    ExifTags.Base.Make,
    ExifTags.Base.Model,
    ExifTags.Base.Software,
    ExifTags.Base.DateTime,
    ExifTags.Base.Artist,
    ExifTags.Base.Copyright,
)
_KEPT_EXIF_GROUPS = (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)
_DROPPED_FROM_GROUPS = (ExifTags.Base.MakerNote, ExifTags.Base.ExifInteroperabilityOffset)
_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap width and height
_LONGEST_JPEG_EXIF = 65533  # bytes that fit into one marker

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601, as Pillow's own conversion to L
_GREY_MODES = ("1", "L", "LA", "La", "I", "F")
_ALPHA_MODES = ("LA", "La", "PA", "RGBA", "RGBa")


class ImageFileError(Exception):
    """A file that cannot be read as an image, or written; the message is one line that names the file."""


@dataclass
class Picture:
    """An image file in memory: upright pixels, and what else is worth writing again."""

    image: Image.Image
    format: str
    icc_profile: bytes | None = None
    exif: Image.Exif | None = None
    dpi: tuple[float, float] | None = None
    encoding: dict = field(default_factory=dict)  # options for writing the same format again
    notes: list[str] = field(default_factory=list)  # one line each: what the reader did that a user may want to know


# ---- files ---------------------------------------------------------------------------------------------------------


def read(path: str | os.PathLike) -> Picture:
    """Reads an image file: JPEG, PNG, WebP, TIFF or BMP, told by its content.

    The EXIF orientation is applied to the pixels and taken out of the metadata. A colour key (PNG's single transparent
    grey or colour) becomes an alpha channel. Of a file with several pictures the first is read. Pillow reads 16 bits
    per channel of a *colour* image as 8; 16-bit grey stays as it is. Both are noted in the result.

    Raises:
        ImageFileError: missing, unreadable, truncated, or with more pixels than `PIL.Image.MAX_IMAGE_PIXELS`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damaged metadata is no reason to print several lines per file
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=_DECODERS) as image:
                return _load(path, image)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        limit = Image.MAX_IMAGE_PIXELS
        raise ImageFileError(f"{path}: has more than {limit} pixels, Pillow's limit for an image file") from None
    except FileNotFoundError:
        raise ImageFileError(f"{path}: no such file") from None
    except UnidentifiedImageError:
        raise ImageFileError(f"{path}: is not a readable JPEG, PNG, WebP, TIFF or BMP image") from None
    except Exception as error:  # on a damaged file Pillow's decoders raise almost anything
        raise ImageFileError(f"{path}: cannot be read: {_reason(error)}") from error


def _load(path: str | os.PathLike, image: Image.Image) -> Picture:
    stored_bits = str([tile[3] for tile in getattr(image, "tile", [])])  # gone once the pixels are loaded
    # A TIFF image turns itself upright as it loads, and forgets that it did.
    sideways = image.format == "TIFF" and image.getexif().get(ExifTags.Base.Orientation) in _SIDEWAYS
    image.load()
    picture = Picture(image, "JPEG" if image.format == "MPO" else image.format)
    if getattr(image, "n_frames", 1) > 1:
        picture.notes.append(f"{path}: holds {image.n_frames} pictures, only the first is used")
    if ";16" in stored_bits and not image.mode.startswith("I"):
        picture.notes.append(f"{path}: 16 bits per channel of a colour image are read as 8")
    if picture.format == "JPEG":
        from PIL.JpegImagePlugin import get_sampling

        subsampling = get_sampling(image)
        picture.encoding = {"subsampling": subsampling} if subsampling >= 0 else {}
    elif picture.format == "WEBP":
        picture.encoding = {"lossless": _webp_is_lossless(path)}
    elif picture.format == "TIFF" and image.info.get("compression") in _KEPT_TIFF_COMPRESSIONS:
        picture.encoding = {"compression": image.info["compression"]}
    picture.icc_profile = image.info.get("icc_profile") or None
    picture.dpi = _resolution(image.info.get("dpi"))
    try:
        sideways = sideways or image.getexif().get(ExifTags.Base.Orientation) in _SIDEWAYS
        picture.exif = _descriptive_exif(image.getexif())
    except Exception as error:
        picture.notes.append(f"{path}: damaged EXIF is not kept: {_reason(error)}")
    # EXIF is read by now; where its bytes are still there, turning the image would write them anew, damaged as they
    # may be.
    for key in ("exif", "Raw profile type exif"):
        image.info.pop(key, None)
    picture.image = _with_alpha_for_key(ImageOps.exif_transpose(image))
    if picture.dpi and sideways:
        picture.dpi = picture.dpi[::-1]
    kept = picture.image.info.get("transparency")
    picture.image.info = {} if kept is None else {"transparency": kept}
    return picture


def read_mask(path: str | os.PathLike, size: tuple[int, int]) -> tuple[Image.Image, list[str]]:
    """Reads a mask file as an "L" image of 0 and 255 (see `hole_pixels`), and the notes on it.

    A mask of another size than ``size`` (width, height) is resized to it, to the nearest pixel, and noted.

    Raises:
        ImageFileError: as `read`.
    """
    picture = read(path)
    try:
        mask = Image.fromarray(hole_pixels(picture.image).astype(np.uint8) * 255)
    except ValueError as error:
        raise ImageFileError(f"{path}: cannot be used as a mask: {_reason(error)}") from error
    if mask.size == size:
        return mask, picture.notes
    note = f"{path}: mask of {_by(mask.size)} pixels resized (nearest) to the image's {_by(size)}"
    return mask.resize(size, Image.Resampling.NEAREST), [*picture.notes, note]


def write(path: str | os.PathLike, picture: Picture) -> list[str]:
    """Writes a picture in the format of the path's suffix (its own format where the suffix is not in `FORMATS`).

    JPEG at quality 95 with the source's chroma subsampling (none if it was no JPEG); WebP lossless if the source was,
    else at quality 95; TIFF with the source's compression where that is lossless, else deflate. The colour profile, the
    resolution and descriptive EXIF are kept. A mode that the format does not have is converted, and noted.

    The file is written beside its final place under a temporary name and then renamed, so that at any time there is
    the old file, the new one or none. Folders are made as needed. Returns notes of one line each.

    Raises:
        ImageFileError: the file cannot be written; nothing is left behind.
    """
    path = Path(path)
    file_format = FORMATS.get(path.suffix.lower(), picture.format)
    temporary = path.with_name(f".msa-{secrets.token_hex(8)}.part")
    try:
        image, notes = _in_mode_for(file_format, picture.image, path)
        options, more_notes = _save_options(file_format, picture, image, path)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "xb") as file:
                image.save(file, format=file_format, **options)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except MemoryError:
        raise
    except Exception as error:  # Pillow's encoders, too, raise almost anything
        raise ImageFileError(f"{path}: cannot be written: {_reason(error)}") from error
    return notes + more_notes


def _save_options(file_format: str, picture: Picture, image: Image.Image, path: Path) -> tuple[dict, list[str]]:
    notes: list[str] = []
    options: dict = dict(picture.encoding) if file_format == picture.format else {}
    if file_format == "JPEG":
        options = {"quality": 95, "subsampling": 0} | options
    elif file_format == "WEBP":
        options = {"quality": 95, "lossless": False} | options
    elif file_format == "TIFF":
        options = {"compression": "tiff_adobe_deflate"} | options
        if image.mode != "1" and options["compression"].startswith("group"):
            options["compression"] = "tiff_adobe_deflate"  # the fax codecs hold nothing but bilevel images
    if file_format != "WEBP" and picture.dpi:
        options["dpi"] = picture.dpi
    if file_format != "BMP":
        if picture.icc_profile and _profile_fits(picture.icc_profile, image.mode):
            options["icc_profile"] = picture.icc_profile
        kept = picture.exif
        if kept and options.get("compression", "raw") != "raw" and any(group in kept for group in _KEPT_EXIF_GROUPS):
            kept = _without_groups(kept)
            notes.append(f"{path}: EXIF is kept in part, as Pillow cannot write all of it into a compressed TIFF")
        exif = kept.tobytes() if kept else b""
        if file_format == "JPEG" and len(exif) > _LONGEST_JPEG_EXIF:
            notes.append(f"{path}: EXIF is not kept, as it is too long for JPEG")
        elif exif:
            options["exif"] = exif
    return options, notes


def _in_mode_for(file_format: str, image: Image.Image, path: Path) -> tuple[Image.Image, list[str]]:
    """The image in a mode that the format has: with alpha and with 16 bits where it can, and a note if it changed."""
    kept = _KEPT_MODES[file_format]
    keyed = image.mode == "P" and "transparency" in image.info and file_format != "PNG"
    if image.mode in kept and not keyed:
        return image, []
    deep = image.mode.startswith(("I", "F"))
    grey = deep or image.mode in _GREY_MODES
    alpha = keyed or image.mode in _ALPHA_MODES
    wanted = ["I;16"] * deep + ["LA"] * (grey and alpha) + ["RGBA"] * alpha + ["L"] * grey + ["RGB"]
    mode = next(m for m in wanted if m in kept)
    note = f"{path}: written as {mode}, as {file_format} has no {image.mode}{' with transparency' * keyed}"
    if deep:
        grey_values = to_rgb(image)[..., 0]
        if mode == "I;16":
            return Image.fromarray(np.rint(grey_values * 65535).astype(np.uint16)), [note]
        image = Image.fromarray(np.rint(grey_values * 255).astype(np.uint8))
    straight = image.convert("RGBA") if keyed else _unpremultiplied(image)
    return straight.convert(mode), [note]


def _with_alpha_for_key(image: Image.Image) -> Image.Image:
    """A colour key as an alpha channel: filled pixels could otherwise turn transparent, or transparent ones opaque."""
    if image.mode in ("1", "L", "RGB") and "transparency" in image.info:
        return image.convert("RGBA" if image.mode == "RGB" else "LA")
    return image


def _descriptive_exif(source: Image.Exif) -> Image.Exif | None:
    kept = Image.Exif()
    for tag in _KEPT_EXIF:
        if tag in source:
            kept[tag] = source[tag]
    for group in _KEPT_EXIF_GROUPS:
        entries = {tag: value for tag, value in source.get_ifd(group).items() if tag not in _DROPPED_FROM_GROUPS}
        if entries:
            kept[group] = entries
    if not len(kept):
        return None
    kept.tobytes()  # what cannot be written is found out now, while it can still be left out
    return kept


def _without_groups(source: Image.Exif) -> Image.Exif | None:
    kept = Image.Exif()
    for tag in source:
        if tag not in _KEPT_EXIF_GROUPS:
            kept[tag] = source[tag]
    return kept if len(kept) else None


def _resolution(dpi: object) -> tuple[float, float] | None:
    try:
        x, y = (float(value) for value in dpi)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return (x, y) if 0 < x < 65536 and 0 < y < 65536 else None


def _profile_fits(profile: bytes, mode: str) -> bool:
    """Whether an ICC profile's colour space, told in its header, is still that of the pixels."""
    if mode == "CMYK":
        return profile[16:20] == b"CMYK"
    grey = mode in _GREY_MODES or mode.startswith("I;16")
    return profile[16:20] == (b"GRAY" if grey else b"RGB ")


def _webp_is_lossless(path: str | os.PathLike) -> bool:
    """Looks for the chunk with the picture: "VP8L" is the lossless kind, "VP8 " the other."""
    with open(path, "rb") as file:
        file.seek(12)  # "RIFF", size, "WEBP"
        while len(header := file.read(8)) == 8:
            if header.startswith(b"VP8") and header[3:4] in b"L ":
                return header[3:4] == b"L"
            size = int.from_bytes(header[4:], "little")
            file.seek(size + size % 2, os.SEEK_CUR)
    return False


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _reason(error: BaseException) -> str:
    """An error as part of one line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__


# ---- modes ---------------------------------------------------------------------------------------------------------


def to_rgb(image: Image.Image, hole: np.ndarray | None = None) -> np.ndarray:
    """Any mode as colours: (H, W, 3) float32 in [0, 1]; alpha is left out.

    Grey is repeated three times. The range of the modes with more than 8 bits: I;16 and I hold 0 ... 65535 (what 16-bit
    PNG and TIFF files load as), F holds 0 ... 1. CMYK, YCbCr and HSV go through Pillow's own conversions, which know
    nothing of colour profiles.

    Args:
        image: any mode but LAB.
        hole: (H, W) bool or None. Values at its pixels come out as 0 and are not looked at, not even to refuse them.

    Raises:
        ValueError: LAB; I or F values outside the range above.
    """
    mode = image.mode
    if mode == "LAB":
        raise ValueError("mode LAB is not supported; convert the image to RGB first")
    image = _unpremultiplied(image)
    if mode in ("I", "F") or mode.startswith("I;16"):
        top = 1 if mode == "F" else 65535
        values = np.asarray(image).astype(np.float64 if mode == "I" else np.float32)
        if hole is not None:
            values = np.where(hole, 0, values)
        if not ((values >= 0) & (values <= top)).all():  # said so that NaN is refused, too
            raise ValueError(f"mode {mode} must hold values in [0, {top}]; convert the image to another mode first")
        return _repeated(values / top)
    if mode in _GREY_MODES:
        grey = np.asarray(image.convert("L") if mode == "1" else image.getchannel(0))
        colours = _repeated(grey / np.float32(255))
    else:
        if mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")  # the way to RGB on which Pillow does not warn
        colours = np.asarray(image.convert("RGB")) / np.float32(255)
    return colours if hole is None else np.where(hole[..., None], np.float32(0), colours)


def fill(image: Image.Image, colours: np.ndarray, hole: np.ndarray) -> Image.Image:
    """A copy of the image, mode and all, with the hole's pixels taken from ``colours``.

    Alpha is carried over from the image, in the hole too. Grey modes get the luma of the colours, rounded to the
    mode's own precision; "1" is thresholded at a half; P gets the nearest colour of the image's own palette that is as
    transparent as the pixel was.

    Args:
        image: as for `to_rgb`.
        colours: (H, W, 3) float32 in [0, 1].
        hole: (H, W) bool.
    """
    result = image.copy()
    if hole.any():
        # A paste through a bilevel mask copies whole pixels: the others keep their bytes in every mode.
        result.paste(_like(image, colours, hole), mask=Image.fromarray(hole))
    return result


def hole_pixels(mask: Image.Image, invert: bool = False) -> np.ndarray:
    """The hole of a mask picture, (H, W) bool: the pixels that are more than half white (above 127 of 255).

    Transparent pixels count as black. ``invert=True`` gives the others.

    Raises:
        ValueError: a mode that `to_rgb` refuses.
    """
    mask = mask.convert("RGBA") if mask.mode == "P" else _with_alpha_for_key(mask)
    white = to_rgb(mask) @ _LUMA
    if mask.mode in _ALPHA_MODES:
        white = white * (np.asarray(mask.getchannel(len(mask.getbands()) - 1)) / np.float32(255))
    hole = white > 0.5
    return ~hole if invert else hole


def side_by_side(image: Image.Image, result: Image.Image, hole: np.ndarray) -> Image.Image:
    """The image with its hole in white on the left, the result on the right: an RGB image of twice the width."""
    left = np.where(hole[..., None], np.float32(1), to_rgb(image, hole))
    return Image.fromarray(np.rint(np.concatenate([left, to_rgb(result)], axis=1) * 255).astype(np.uint8))


def _like(image: Image.Image, colours: np.ndarray, hole: np.ndarray) -> Image.Image:
    """The colours as an image of the same mode, with the image's own alpha. Only the hole's pixels need be right."""
    mode = image.mode
    if mode in ("P", "PA"):
        return _in_palette(image, colours, hole)
    grey = np.clip(colours @ _LUMA, 0, 1)  # the weights add up to 1 only within rounding
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
    if image.mode == "P" and image.palette.mode == "RGBA":
        opacity[: len(palette)] = image.getpalette("RGBA")[3::4]
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
    """Index of the nearest palette colour, by |c|² - 2 c·p + |p|² without its constant term; in pieces, for memory."""
    lengths = (palette**2).sum(1)
    pieces = np.array_split(colours, len(colours) // 65536 + 1)
    return np.concatenate([(lengths - 2 * piece @ palette.T).argmin(1) for piece in pieces])


def _unpremultiplied(image: Image.Image) -> Image.Image:
    return image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode]) if image.mode in ("La", "RGBa") else image


def _repeated(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey.astype(np.float32)[..., None], 3, axis=2)
