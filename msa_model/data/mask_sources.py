"""Sources of masks: the built-in brush, and folders of mask files."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Protocol

import numpy as np

from .brush import spread_mask
from .image_files import ImageFileError, read_hole
from .image_sources import source_files
from .sampling import FIXED_MASK, random_stream

#: The paper's ranges of the hole's share of the pixels (Table 4): above the first number, up to the second.
RATIO_BINS = ((0.01, 0.1), (0.1, 0.2), (0.2, 0.3), (0.3, 0.4), (0.4, 0.5), (0.5, 0.6))

_LOG = logging.getLogger("msa_model.data")


class MaskSource(Protocol):
    """Masks by number, or drawn at random."""

    def load(self, index: int | None, rng: np.random.Generator | None, height: int, width: int) -> np.ndarray:
        """Loads mask ``index``, or a random one where that is None: (height, width) bool, True = valid."""
        ...


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
        """Draws a mask from ``rng`` or, where that is None, from (seed, index).

        Returns:
            (height, width) bool, True = valid, with at least one hole pixel and one valid pixel.

        Raises:
            ValueError: neither index nor rng; no mask of so few pixels has a hole ratio in the range.
        """
        if rng is None:
            if index is None:
                raise ValueError("msa_model.data: a mask needs an index or a random generator")
            rng = random_stream(self.seed, FIXED_MASK, index)
        return spread_mask(height, width, self.ratio, rng)[0].numpy()


class MaskFolder:
    """The masks of a folder of image files, at any depth, in the order of their paths. White is the hole.

    Which files are taken is said at `ImageFolder`, which pixels are hole at `read_hole`.

    Args:
        root: the folder.
        invert: black is the hole instead.
        ratio: take only masks with a hole ratio in (low, high], measured at the file's own size. This reads every file
            once and leaves out unreadable ones. None: take all files.

    Raises:
        ValueError: no such folder, no such files in it, no mask of this ratio.

    Attributes:
        paths: the files.
    """

    def __init__(self, root: str | os.PathLike, invert: bool = False, ratio: tuple[float, float] | None = None) -> None:
        self.root, self.invert, self.ratio = Path(root), invert, ratio
        self.paths = source_files(root, "mask")
        self._useless: dict[tuple[int, int, int], ImageFileError] = {}
        if ratio is not None:
            self.paths = self._in_range(*ratio)

    def __len__(self) -> int:
        return len(self.paths)

    def load(self, index: int | None, rng: np.random.Generator | None, height: int, width: int) -> np.ndarray:
        """Reads mask ``index`` as it is in the file; or, where that is None, draws one from ``rng`` as `turned` does.

        An index past the last file starts again at the first.

        Returns:
            (height, width) bool, True = valid, resized to the nearest pixel.

        Raises:
            ImageFileError: the file cannot be read, or is blank and was drawn; the message names it.
            ValueError: neither index nor rng.
        """
        if index is not None:
            return self._read(index % len(self), 0, height, width)
        if rng is None:
            raise ValueError("msa_model.data: a mask needs an index or a random generator")
        return self.turned(int(rng.integers(len(self))), rng, height, width)

    def turned(self, index: int, rng: np.random.Generator, height: int, width: int) -> np.ndarray:
        """Reads mask ``index`` for training: turned at random by none, one, two or three right angles.

        Raises:
            BlankMaskError: it is all hole or all valid, so there is nothing to learn from it.
            ImageFileError: as `load`.
        """
        turns = int(rng.integers(4))
        if (index, height, width) in self._useless:  # with few good masks among many it is drawn often
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
        hole, _ = read_hole(self.paths[index], size, invert=self.invert)
        return np.ascontiguousarray(np.rot90(~hole, turns))

    def _in_range(self, low: float, high: float) -> list[Path]:
        from concurrent.futures import ThreadPoolExecutor

        def ratio(path: Path) -> float:
            try:
                return float(read_hole(path, invert=self.invert)[0].mean())
            except ImageFileError as error:
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
