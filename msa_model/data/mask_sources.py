"""Where images and masks come from: rendered or in folders, drawn with a brush or in folders."""

from __future__ import annotations

import dataclasses
import difflib
import logging
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image, ImageOps

from . import images as image_files
from .facades import render_facade
from .images import ImageFileError
from .masks import spread_mask
from .sampling import FIXED_MASK, random_stream

#: The paper's ranges of the hole's share (Table 4): above the first number, up to the second.
RATIO_BINS = ((0.01, 0.1), (0.1, 0.2), (0.2, 0.3), (0.3, 0.4), (0.4, 0.5), (0.5, 0.6))

#: Suffixes of the files that are looked for in folders.
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")

_LOG = logging.getLogger("msa_model.data")


class ImageSource(Protocol):
    """Square images by number."""

    def __len__(self) -> int: ...

    def load(self, index: int, rng: np.random.Generator | None) -> np.ndarray:
        """(size, size, 3) uint8; augmented with ``rng``, always the same without."""
        ...


class MaskSource(Protocol):
    """Masks by number, or drawn."""

    def load(self, index: int | None, rng: np.random.Generator | None, height: int, width: int) -> np.ndarray:
        """(height, width) bool, True = valid; number ``index``, or a random one where that is None."""
        ...


# ---- images --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Preset:
    """How photographs become squares of 256; other sizes in proportion.

    Args:
        shorter_side: what the shorter side is resized to.
        random_crop: training takes a random square, evaluation the middle one; otherwise both take the middle.
    """

    shorter_side: int
    random_crop: bool


#: Section 4.1's ways.
PRESETS = {"paris": Preset(350, True), "places2": Preset(350, True), "celeba": Preset(256, False)}


class Facades:
    """Rendered building facades: image ``index`` is `msa_model.facades.render_facade` number ``first_seed + index``.

    Args:
        size: height and width in pixels, at least 16.
        length: how many there are; give training and evaluation ranges of numbers that do not meet.
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
        """(size, size, 3) uint8. Nothing in it is random but its number; ``rng`` is not used."""
        return render_facade(self.size, self.first_seed + checked(index, self.length))


class ImageFolder:
    """The images of a folder, at any depth, in the order of their paths.

    Files ending in .jpg, .jpeg, .png, .webp or .bmp (either case); hidden files and folders (".name") are not looked
    at, links are followed. EXIF orientation is applied; grey, palette and CMYK images become RGB, alpha is left out.

    Args:
        root: the folder.
        size: height and width of what is loaded.
        preset: "paris", "places2" or "celeba" (see `PRESETS`).
        flip: mirror left to right half of the time when training.

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
        self.paths = _files(root, "image")
        self.size, self.preset, self.flip = size, PRESETS[preset], flip

    def __len__(self) -> int:
        return len(self.paths)

    def load(self, index: int, rng: np.random.Generator | None = None) -> np.ndarray:
        """(size, size, 3) uint8: a random crop (and mirrored, if asked for) with ``rng``; the middle without.

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
        # Only what is kept is resized. The sides need not divide evenly, so the box ends at the image's edge.
        box = [left * scale, top * scale, (left + self.size) * scale, (top + self.size) * scale]
        box[2], box[3] = min(box[2], image.width), min(box[3], image.height)
        pixels = np.asarray(image.resize((self.size, self.size), Image.Resampling.BICUBIC, box))
        if self.flip and rng is not None and rng.random() < 0.5:
            pixels = pixels[:, ::-1]
        return np.ascontiguousarray(pixels)


class MixedImages:
    """Several sources in turn: of n sources, image ``index`` is of number ``index % n``, so that each gives as many as
    any other however few it has. A source that is named twice gives twice as many.

    Args:
        sources: one or more.
    """

    def __init__(self, sources: Sequence[ImageSource]) -> None:
        self.sources = tuple(sources)

    def __len__(self) -> int:
        """So many that the largest source is gone through once."""
        return len(self.sources) * max(map(len, self.sources))

    def load(self, index: int, rng: np.random.Generator | None = None) -> np.ndarray:
        """(size, size, 3) uint8, as the source loads it; those of a smaller source come over again.

        Raises:
            ImageFileError: the file cannot be read.
        """
        number, which = divmod(checked(index, len(self)), len(self.sources))
        return self.sources[which].load(number % len(self.sources[which]), rng)


def _read_rgb(path: Path, shorter: int) -> Image.Image:
    """An upright RGB image, at least twice ``shorter`` on its shorter side where the file is that large."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with Image.open(path, formats=("JPEG",)) as image:
                # libjpeg reads a large photograph at a half, a quarter or an eighth of its size, in a fraction of the
                # time; what is left is resized with care.
                image.draft(None, (2 * shorter, 2 * shorter))
                return ImageOps.exif_transpose(image).convert("RGB")
    except Exception:  # another format, or a damaged file: the general reader reads it, or says what is wrong
        pass
    image = image_files.read(path).image
    if image.mode in ("1", "L", "P", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"):
        keyed = image.mode == "P" and "transparency" in image.info
        return (image.convert("RGBA") if keyed else image).convert("RGB")
    try:
        return Image.fromarray(np.rint(image_files.to_rgb(image) * 255).astype(np.uint8))
    except ValueError as error:
        raise ImageFileError(f"{path}: cannot be used as an image: {error}") from error


# ---- masks ---------------------------------------------------------------------------------------------------------


class BlankMaskError(ImageFileError):
    """A mask without a hole, or without a valid pixel."""


class BrushMasks:
    """Masks of the built-in free-form brush, whose hole ratios are spread evenly over a range.

    Args:
        ratio: (low, high]: the hole's share of the pixels, 0 ≤ low < high ≤ 1.
        seed: of the numbered masks.

    Raises:
        ValueError: an impossible range.
    """

    def __init__(self, ratio: tuple[float, float] = (0.01, 0.6), seed: int = 0) -> None:
        low, high = ratio
        if not 0 <= low < high <= 1:
            raise ValueError(f"msa_model.data: hole ratio must be 0 <= low < high <= 1, got {low}, {high}")
        self.ratio, self.seed = (float(low), float(high)), seed

    def load(self, index: int | None, rng: np.random.Generator | None, height: int, width: int) -> np.ndarray:
        """(height, width) bool, True = valid; drawn from ``rng``, or without one from (seed, index). Has a hole pixel
        and a valid one.

        Raises:
            ValueError: neither index nor rng; no mask of this few pixels hits the range.
        """
        if rng is None:
            if index is None:
                raise ValueError("msa_model.data: a mask needs an index or a random generator")
            rng = random_stream(self.seed, FIXED_MASK, index)
        return spread_mask(height, width, self.ratio, rng)[0].numpy()


class MaskFolder:
    """The masks of a folder of image files, at any depth, in the order of their paths. White is the hole.

    Files as in `ImageFolder`. A pixel more than half white is hole, as everywhere on the command line.

    Args:
        root: the folder.
        invert: black is the hole instead.
        ratio: only masks with a hole ratio in (low, high], measured at the files' own size; every file is read once
            for this, and those that cannot be are left out. None: all files.

    Raises:
        ValueError: no such folder, no such files in it, no mask of this ratio.

    Attributes:
        paths: the files.
    """

    def __init__(self, root: str | os.PathLike, invert: bool = False, ratio: tuple[float, float] | None = None) -> None:
        self.root, self.invert, self.ratio = Path(root), invert, ratio
        self.paths = _files(root, "mask")
        self._useless: dict[tuple[int, int, int], ImageFileError] = {}
        if ratio is not None:
            self.paths = self._in_range(*ratio)

    def __len__(self) -> int:
        return len(self.paths)

    def load(self, index: int | None, rng: np.random.Generator | None, height: int, width: int) -> np.ndarray:
        """(height, width) bool, True = valid; resized to the nearest pixel.

        Number ``index`` (over again past the end) as it is in the file; or, where that is None, one drawn from ``rng``,
        as by `turned`.

        Raises:
            ImageFileError: the file cannot be read or, drawn, is blank; the message names it.
            ValueError: neither index nor rng.
        """
        if index is not None:
            return self._read(index % len(self), 0, height, width)
        if rng is None:
            raise ValueError("msa_model.data: a mask needs an index or a random generator")
        return self.turned(int(rng.integers(len(self))), rng, height, width)

    def turned(self, index: int, rng: np.random.Generator, height: int, width: int) -> np.ndarray:
        """Number ``index`` for training: turned at random by none, one, two or three right angles.

        Raises:
            BlankMaskError: it is all hole or all valid, from which nothing is learned.
            ImageFileError: as `load`.
        """
        turns = int(rng.integers(4))
        if (index, height, width) in self._useless:  # read once: with few good masks among many it is drawn often
            raise self._useless[index, height, width]
        try:
            valid = self._read(index, turns, height, width)
            if valid.all() or not valid.any():
                raise BlankMaskError(f"{self.paths[index]}: is fully {'valid' if valid.any() else 'hole'}")
        except ImageFileError as error:
            self._useless[index, height, width] = error.with_traceback(None)
            raise
        return valid

    def _read(self, index: int, turns: int, height: int, width: int) -> np.ndarray:
        size = (height, width) if turns % 2 else (width, height)
        mask, _ = image_files.read_mask(self.paths[index], size)
        hole = (np.asarray(mask) != 0) != self.invert
        return np.ascontiguousarray(np.rot90(~hole, turns))

    def _in_range(self, low: float, high: float) -> list[Path]:
        from concurrent.futures import ThreadPoolExecutor

        def ratio(path: Path) -> float:
            try:
                return float(image_files.hole_pixels(image_files.read(path).image, self.invert).mean())
            except (ImageFileError, ValueError) as error:
                _LOG.warning("msa_model.data: skipped %s", error)
                return -1.0

        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            ratios = list(pool.map(ratio, self.paths))
        kept = [path for path, share in zip(self.paths, ratios, strict=True) if low < share <= high]
        if not kept:
            raise ValueError(
                f"msa_model.data: {self.root}: none of the {len(self.paths)} masks has a hole ratio in ({low}, {high}]"
                + (f"; {ratios.count(-1.0)} cannot be read" if -1.0 in ratios else "")
            )
        return kept


def _files(root: str | os.PathLike, kind: str) -> list[Path]:
    """The files of `SUFFIXES` under a folder, sorted."""
    root = Path(root)
    if not root.is_dir():
        problem = "is not a folder" if root.exists() else "no such folder"
        raise ValueError(f"msa_model.data: {root}: {problem} (of {kind}s)")

    def refuse(error: OSError) -> None:
        raise ValueError(f"msa_model.data: {error.filename}: cannot be listed: {error.strerror}") from error

    found, others, seen = [], 0, set()
    for folder, subfolders, names in os.walk(root, onerror=refuse, followlinks=True):
        identity = os.path.realpath(folder)
        if identity in seen:  # a link back up
            subfolders.clear()
            continue
        seen.add(identity)
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        visible = [name for name in names if not name.startswith(".")]
        legal = [name for name in visible if name.lower().endswith(SUFFIXES)]
        others += len(visible) - len(legal)
        found += [Path(folder, name) for name in legal]
    if not found:
        holds = f"holds {others} file{'s' * (others != 1)}, none of them" if others else "is empty, without"
        raise ValueError(f"msa_model.data: {root}: {holds} {kind} ending in {', '.join(SUFFIXES)}")
    return sorted(found)


def checked(index: int, length: int) -> int:
    if not 0 <= index < length:
        raise IndexError(f"msa_model.data: there is no image {index}, only 0 to {length - 1}")
    return index
