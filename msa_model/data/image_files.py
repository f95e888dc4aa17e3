"""Reads and writes image files: pixels, orientation, colour profile, resolution and EXIF.

`read` and `write` are for pictures, `read_hole` is for masks. In a mask file **white is the hole**.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from .. import user_files
from ..lines import one_line
from . import native_messages
from .image_modes import ALPHA_MODES, GREY_MODES, hole_pixels, to_rgb, unpremultiplied, with_alpha_for_key

# What Pillow logs of a damaged file, it also raises. Without a handler Python prints it as it is.
logging.getLogger("PIL").addHandler(logging.NullHandler())

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

# Decoders to try on a file, whatever its suffix. The list is short because some of Pillow's (EPS) start other programs.
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

# EXIF tags that describe the picture. The orientation is applied to the pixels instead. The thumbnail, the maker's note
# and XMP are left out, as they may hold a small copy of the picture before inpainting.
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


_BINARY = getattr(os, "O_BINARY", 0)


class ImageFileError(Exception):
    """A file that cannot be read as an image, or written; the message is one printable line that names the file."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


@dataclass
class Picture:
    """An image file in memory: the upright pixels, and the metadata to write again."""

    image: Image.Image
    format: str
    icc_profile: bytes | None = None
    exif: Image.Exif | None = None
    dpi: tuple[float, float] | None = None
    encoding: dict = field(default_factory=dict)  # options for writing the same format again
    notes: list[str] = field(default_factory=list)  # one line each: what reading changed


def read(path: str | os.PathLike) -> Picture:
    """Reads an image file: JPEG, PNG, WebP, TIFF or BMP, recognised by its content.

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
            with user_files.open_file(path) as file, Image.open(file, formats=_DECODERS) as image:
                return _load(path, image, file)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        limit = Image.MAX_IMAGE_PIXELS
        raise ImageFileError(f"{path}: has more than {limit} pixels, Pillow's limit for an image file") from None
    except FileNotFoundError:
        raise ImageFileError(f"{path}: no such file") from None
    except user_files.NotAFileError as error:
        raise ImageFileError(f"{path}: {error.strerror}") from None
    except UnidentifiedImageError:
        raise ImageFileError(f"{path}: is not a readable JPEG, PNG, WebP, TIFF or BMP image") from None
    except Exception as error:  # Pillow's decoders raise almost any type on a damaged file
        raise ImageFileError(f"{path}: cannot be read: {_reason(error)}") from error


def _load(path: str | os.PathLike, image: Image.Image, file: BinaryIO) -> Picture:
    stored_bits = str([tile[3] for tile in getattr(image, "tile", [])])  # empty once the pixels are loaded
    # Pillow turns a TIFF image upright while it loads it, and then removes the orientation.
    sideways = image.format == "TIFF" and image.getexif().get(ExifTags.Base.Orientation) in _SIDEWAYS
    said = _decode(image)
    picture = Picture(image, "JPEG" if image.format == "MPO" else str(image.format))
    picture.notes += [f"{path}: {line}" for line in said]
    if (frames := getattr(image, "n_frames", 1)) > 1:
        picture.notes.append(f"{path}: holds {frames} pictures, only the first is used")
    if ";16" in stored_bits and not image.mode.startswith("I"):
        picture.notes.append(f"{path}: 16 bits per channel of a colour image are read as 8")
    if picture.format == "JPEG":
        from PIL.JpegImagePlugin import get_sampling

        subsampling = get_sampling(image)
        picture.encoding = {"subsampling": subsampling} if subsampling >= 0 else {}
    elif picture.format == "WEBP":
        picture.encoding = {"lossless": _webp_is_lossless(file)}
    elif picture.format == "TIFF" and image.info.get("compression") in _KEPT_TIFF_COMPRESSIONS:
        picture.encoding = {"compression": image.info["compression"]}
    picture.icc_profile = image.info.get("icc_profile") or None
    picture.dpi = _resolution(image.info.get("dpi"))
    try:
        sideways = sideways or image.getexif().get(ExifTags.Base.Orientation) in _SIDEWAYS
        picture.exif = _descriptive_exif(image.getexif())
    except Exception as error:
        picture.notes.append(f"{path}: damaged EXIF is not kept: {_reason(error)}")
    # EXIF has been read. If its bytes stayed, `exif_transpose` would write them again, which fails for damaged ones.
    for key in ("exif", "Raw profile type exif"):
        image.info.pop(key, None)
    picture.image = with_alpha_for_key(ImageOps.exif_transpose(image))
    if picture.dpi and sideways:
        picture.dpi = picture.dpi[::-1]
    kept = picture.image.info.get("transparency")
    picture.image.info = {} if kept is None else {"transparency": kept}
    return picture


def _decode(image: Image.Image) -> list[str]:
    """Decodes the pixels; returns what libtiff says meanwhile, one line or none.

    Raises:
        Exception: as the decoder; with libtiff's words.
    """
    if image.format != "TIFF":
        image.load()
        return []
    error = None
    with native_messages.caught() as said:
        try:
            image.load()
        except Exception as caught:
            error = caught
    if error is not None:
        raise ValueError("; ".join([_reason(error), *said])) from error
    return said


def read_hole(
    path: str | os.PathLike, size: tuple[int, int] | None = None, *, invert: bool = False
) -> tuple[np.ndarray, list[str]]:
    """Reads a mask file; this is the only way in which the package reads one.

    Args:
        path: the file; its pixels above half white (127 of 255) are the hole, see `hole_pixels`.
        size: (width, height) in pixels. A mask of another size is resized to the nearest pixel, which is noted. None:
            the file's own size.
        invert: black is the hole instead.

    Returns:
        The hole, (height, width) bool, and notes of one line each.

    Raises:
        ImageFileError: as `read`, and for an image mode that `to_rgb` refuses.
    """
    picture = read(path)
    try:
        hole = hole_pixels(picture.image)
    except ValueError as error:
        raise ImageFileError(f"{path}: cannot be used as a mask: {_reason(error)}") from error
    notes = picture.notes
    own_size = (hole.shape[1], hole.shape[0])
    if size is not None and own_size != size:
        notes.append(f"{path}: mask of {_by(own_size)} pixels resized (nearest) to the image's {_by(size)}")
        hole = np.asarray(Image.fromarray(hole.astype(np.uint8)).resize(size, Image.Resampling.NEAREST)) != 0
    return hole != invert, notes


def write(path: str | os.PathLike, picture: Picture) -> list[str]:
    """Writes a picture in the format of the path's suffix (its own format where the suffix is not in `FORMATS`).

    JPEG at quality 95 with the source's chroma subsampling (none if it was no JPEG); WebP lossless if the source was,
    else at quality 95; TIFF with the source's compression where that is lossless, else deflate. The colour profile, the
    resolution and descriptive EXIF are kept. A mode that the format does not have is converted, and noted.

    The file is first written under a temporary name in the same folder and then renamed, so that a path never holds
    half a file. Missing folders are made. Returns notes of one line each.

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
            # A file object without a name: Pillow cannot give libtiff a name that is not UTF-8.
            with os.fdopen(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR | _BINARY, 0o666), "wb") as file:
                silent = native_messages.caught() if file_format == "TIFF" else contextlib.nullcontext()
                with silent:
                    image.save(file, format=file_format, **options)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except MemoryError:
        raise
    except Exception as error:  # Pillow's encoders raise almost any type
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
    """Converts the image to a mode that the format has, and notes it. Keeps alpha and 16 bits where the format can."""
    kept = _KEPT_MODES[file_format]
    keyed = image.mode == "P" and "transparency" in image.info and file_format != "PNG"
    if image.mode in kept and not keyed:
        return image, []
    deep = image.mode.startswith(("I", "F"))
    grey = deep or image.mode in GREY_MODES
    alpha = keyed or image.mode in ALPHA_MODES
    wanted = ["I;16"] * deep + ["LA"] * (grey and alpha) + ["RGBA"] * alpha + ["L"] * grey + ["RGB"]
    mode = next(m for m in wanted if m in kept)
    note = f"{path}: written as {mode}, as {file_format} has no {image.mode}{' with transparency' * keyed}"
    if deep:
        grey_values = to_rgb(image)[..., 0]
        if mode == "I;16":
            return Image.fromarray(np.rint(grey_values * 65535).astype(np.uint16)), [note]
        image = Image.fromarray(np.rint(grey_values * 255).astype(np.uint8))
    straight = image.convert("RGBA") if keyed else unpremultiplied(image)
    return straight.convert(mode), [note]


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
    kept.tobytes()  # raises now, while the reader can still leave out EXIF that cannot be written
    return kept


def _without_groups(source: Image.Exif) -> Image.Exif | None:
    kept = Image.Exif()
    for tag in source:
        if tag not in _KEPT_EXIF_GROUPS:
            kept[tag] = source[tag]
    return kept if len(kept) else None


def _resolution(dpi: Any) -> tuple[float, float] | None:
    try:
        x, y = (float(value) for value in dpi)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return (x, y) if 0 < x < 65536 and 0 < y < 65536 else None


def _profile_fits(profile: bytes, mode: str) -> bool:
    """Whether the colour space in an ICC profile's header is that of the pixels."""
    if mode == "CMYK":
        return profile[16:20] == b"CMYK"
    grey = mode in GREY_MODES or mode.startswith("I;16")
    return profile[16:20] == (b"GRAY" if grey else b"RGB ")


def _webp_is_lossless(file: BinaryIO) -> bool:
    """Whether the chunk with the picture is "VP8L" (lossless) and not "VP8 "."""
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
    """The error's message, without line breaks."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__
