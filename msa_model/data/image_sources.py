"""Sources of images: rendered facades, folders of photographs, and mixtures of both."""

from __future__ import annotations

import dataclasses
import difflib
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image, ImageOps

from .. import user_files
from . import image_files
from .facades import render_facade
from .folders import files_below
from .image_files import ImageFileError
from .image_modes import to_rgb

#: Suffixes of the files that are looked for in folders.
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")

#: The number of the first facade for evaluation. Training counts its facades from 0, so it never draws these.
FIRST_HELD_OUT_FACADE = 1_000_000_000


class ImageSource(Protocol):
    """Square images by number."""

    def __len__(self) -> int: ...

    def load(self, index: int, rng: np.random.Generator | None = None) -> np.ndarray:
        """Loads image ``index``: (size, size, 3) uint8, augmented with ``rng``, always the same without."""
        ...


@dataclasses.dataclass(frozen=True)
class Preset:
    """How photographs become squares of 256; other sizes in proportion.

    Args:
        shorter_side: what the shorter side is resized to.
        random_crop: training takes a random square, evaluation the middle one; otherwise both take the middle.
    """

    shorter_side: int
    random_crop: bool


#: How Section 4.1 of the paper crops each data set.
PRESETS = {"paris": Preset(350, True), "places2": Preset(350, True), "celeba": Preset(256, False)}


class Facades:
    """Rendered building facades: image ``index`` is `msa_model.facades.render_facade` number ``first_seed + index``.

    Args:
        size: height and width in pixels, at least 16.
        length: how many there are; ranges for training and for evaluation must not overlap.
        first_seed: the first number.
    """

    def __init__(self, size: int, length: int = 100_000, first_seed: int = 0) -> None:
        if size < 16 or length < 1 or first_seed < 0:
            raise ValueError(
                f"msa_model.data: facades need a size of at least 16, a length of at least 1 and a first seed of at "
                f"least 0, got {size}, {length} and {first_seed}"
            )
        self.size, self.length, self.first_seed = size, length, first_seed

    def __len__(self) -> int:
        return self.length

    def load(self, index: int, rng: np.random.Generator | None = None) -> np.ndarray:
        """Renders facade ``first_seed + index``: (size, size, 3) uint8. ``rng`` is not used."""
        return render_facade(self.size, self.first_seed + checked(index, self.length))


class ImageFolder:
    """The images of a folder, at any depth, in the order of their paths.

    Takes files ending in .jpg, .jpeg, .png, .webp or .bmp (either case), and follows links; hidden files and folders
    (".name") are left out. EXIF orientation is applied; grey, palette and CMYK images become RGB, alpha is dropped.

    Args:
        root: the folder.
        size: height and width of what is loaded.
        preset: "paris", "places2" or "celeba" (see `PRESETS`).
        flip: whether to mirror half of the training images left to right.

    Raises:
        ValueError: no such folder, none of these files in it, an unknown preset, a size below 1.

    Attributes:
        paths: the files.
    """

    def __init__(self, root: str | os.PathLike, size: int, preset: str, flip: bool = False) -> None:
        if preset not in PRESETS:
            near = difflib.get_close_matches(str(preset), PRESETS, 1) or ["paris"]
            raise ValueError(
                f"msa_model.data: unknown preset {preset!r}; did you mean {near[0]!r}? There are {', '.join(PRESETS)}"
            )
        if size < 1:
            raise ValueError(f"msa_model.data: size must be positive, got {size}")
        self.paths = source_files(root, "image")
        self.size, self.preset, self.flip = size, PRESETS[preset], flip

    def __len__(self) -> int:
        return len(self.paths)

    def load(self, index: int, rng: np.random.Generator | None = None) -> np.ndarray:
        """Loads an image: with ``rng`` a random crop, mirrored at random if `flip`; without it the middle.

        Returns:
            (size, size, 3) uint8.

        Raises:
            ImageFileError: the file cannot be read; the message names it.
        """
        path = self.paths[checked(index, len(self))]
        shorter = max(self.size, round(self.preset.shorter_side * self.size / 256))
        image = _read_rgb(path, shorter)
        scale = min(image.size) / shorter
        rooms = [max(0, round(extent / scale) - self.size) for extent in image.size]
        if rng is not None and self.preset.random_crop:
            left, top = (int(rng.integers(room + 1)) for room in rooms)
        else:
            left, top = (room // 2 for room in rooms)
        # Only the crop is resized. The sides need not divide evenly, so the box must not pass the image's edge.
        right, bottom = (left + self.size) * scale, (top + self.size) * scale
        box = (left * scale, top * scale, min(right, image.width), min(bottom, image.height))
        pixels = np.asarray(image.resize((self.size, self.size), Image.Resampling.BICUBIC, box))
        if self.flip and rng is not None and rng.random() < 0.5:
            pixels = pixels[:, ::-1]
        return np.ascontiguousarray(pixels)


class MixedImages:
    """Several sources in turn: of n sources, image ``index`` is from source ``index % n``.

    So every source gives the same number of images, however few it has.

    Args:
        sources: one or more; one that is listed twice gives twice as many images.
    """

    def __init__(self, sources: Sequence[ImageSource]) -> None:
        self.sources = tuple(sources)

    def __len__(self) -> int:
        """The number of images that takes the largest source once."""
        return len(self.sources) * max(map(len, self.sources))

    def load(self, index: int, rng: np.random.Generator | None = None) -> np.ndarray:
        """Loads an image as its source does, (size, size, 3) uint8; a smaller source starts again at its first image.

        Raises:
            ImageFileError: the file cannot be read.
        """
        number, which = divmod(checked(index, len(self)), len(self.sources))
        return self.sources[which].load(number % len(self.sources[which]), rng)


def _read_rgb(path: Path, shorter: int) -> Image.Image:
    """Reads an upright RGB image whose shorter side is at least twice ``shorter``, if the file's is."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with user_files.open_file(path) as file, Image.open(file, formats=("JPEG",)) as photo:
                # libjpeg reads a large photograph at 1/2, 1/4 or 1/8 of its size in a fraction of the time; the caller
                # resizes the rest of the way with a better filter.
                photo.draft(None, (2 * shorter, 2 * shorter))
                return ImageOps.exif_transpose(photo).convert("RGB")
    except Exception:  # another format, or a damaged file: `read` below reads it, or reports what is wrong
        pass
    image = image_files.read(path).image
    if image.mode in ("1", "L", "P", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"):
        keyed = image.mode == "P" and "transparency" in image.info
        return (image.convert("RGBA") if keyed else image).convert("RGB")
    try:
        return Image.fromarray(np.rint(to_rgb(image) * 255).astype(np.uint8))
    except ValueError as error:
        raise ImageFileError(f"{path}: cannot be used as an image: {error}") from error


def source_files(root: str | os.PathLike, kind: str) -> list[Path]:
    """Lists the files of `SUFFIXES` under a folder, at any depth, sorted.

    Args:
        root: the folder.
        kind: what the files are, for messages: "image" or "mask".

    Raises:
        ValueError: no such folder, or none of these files in it.
    """
    root = Path(root)
    if not root.is_dir():
        problem = "is not a folder" if root.exists() else "no such folder"
        raise ValueError(f"msa_model.data: {root}: {problem} (of {kind}s)")
    try:
        found = files_below(root, SUFFIXES, follow_links=True)
    except OSError as error:
        raise ValueError(f"msa_model.data: {error.filename}: cannot be listed: {error.strerror}") from error
    if not found.paths:
        others = f"holds {found.others} file{'s' * (found.others != 1)}, none of them"
        holds = others if found.others else "is empty, without"
        raise ValueError(f"msa_model.data: {root}: {holds} {kind} ending in {', '.join(SUFFIXES)}")
    return found.paths


def checked(index: int, length: int) -> int:
    """Returns the index.

    Raises:
        IndexError: there is no image of this number.
    """
    if not 0 <= index < length:
        raise IndexError(f"msa_model.data: there is no image {index}, only 0 to {length - 1}")
    return index
