"""Pairs the images of an evaluation with masks by number. Only the brush is random, and its seed fixes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np

from ..data.image_files import ImageFileError
from ..data.image_sources import ImageSource
from ..data.mask_sources import MaskSource
from .measure import Bin, bin_name


class CountedMasks(MaskSource, Protocol):
    """A `MaskSource` with a number of masks, such as `MaskFolder`."""

    def __len__(self) -> int: ...


class NumberedPairs:
    """Pairs image i with mask i of a bin, for every bin.

    If there are fewer masks than images, the masks start again at the first.

    Args:
        images: the images.
        masks: masks, each of which belongs to the bin of its own ratio at the images' size; or a function that makes
            the `MaskSource` of a bin.
        bins: the bins.
        size: side of the images in pixels.
        limit: at most this many images per bin; None: all.

    Raises:
        ValueError: there is no image, or no mask in any bin.

    Attributes:
        problems: one line per file that could not be read and was left out.
        notes: what a reader of the figures should know, one line each.
    """

    def __init__(
        self,
        images: ImageSource,
        masks: CountedMasks | Callable[[Bin], MaskSource],
        bins: list[Bin],
        *,
        size: int,
        limit: int | None = None,
    ) -> None:
        self.images, self.size = images, size
        self.problems: list[str] = []
        self.notes: list[str] = []
        self._unreadable: set[int] = set()
        self._count = min(len(images), limit or len(images))
        if not self._count:
            raise ValueError("no image to measure on")
        self._mask_of_bin: Callable[[Bin], Callable[[int], np.ndarray] | None]
        self._mask_of_bin = self._from_sources(masks) if callable(masks) else self._by_ratio(masks, bins)

    def count(self, bin_: Bin) -> int:
        """The number of pairs in a bin; unreadable images count."""
        return self._count if self._mask_of_bin(bin_) else 0

    def pairs(self, bin_: Bin) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields images (H, W, 3) uint8 and masks (H, W) bool, True = valid."""
        mask_of = self._mask_of_bin(bin_)
        if mask_of is None:
            return
        for index in range(self._count):
            if index in self._unreadable:
                continue
            try:
                image = self.images.load(index, None)
            except (OSError, ValueError, ImageFileError) as error:
                self._unreadable.add(index)
                self.problems.append(str(error))
                continue
            yield image, mask_of(index)

    def _from_sources(self, masks: Callable[[Bin], MaskSource]) -> Callable[[Bin], Callable[[int], np.ndarray]]:
        """Bin -> (number of an image -> its mask), where every bin has a source of masks."""

        def mask_of_bin(bin_: Bin) -> Callable[[int], np.ndarray]:
            source = masks(bin_)
            return lambda index: source.load(index, None, self.size, self.size)

        return mask_of_bin

    def _by_ratio(self, masks: CountedMasks, bins: list[Bin]) -> Callable[[Bin], Callable[[int], np.ndarray] | None]:
        """As `_from_sources`, where every mask belongs to the bin of its ratio; None for a bin without masks."""
        found: dict[Bin, list[int]] = {bin_: [] for bin_ in bins}
        left_out = 0
        for number in range(len(masks)):
            try:
                ratio = 1 - masks.load(number, None, self.size, self.size).mean()
            except (OSError, ValueError, ImageFileError) as error:
                self.problems.append(str(error))
                continue
            own = [bin_ for bin_ in bins if bin_[0] < ratio <= bin_[1]]
            for bin_ in own:
                found[bin_].append(number)
            left_out += not own
        if not any(found.values()):
            raise ValueError(
                f"none of the {len(masks)} masks has a share of hole pixels in any of the ranges"
                + "".join(f"; {problem}" for problem in self.problems[:1])
            )
        if left_out:
            self.notes.append(f"{left_out} of {len(masks)} masks left out: their holes are in none of the ranges")
        for bin_, numbers in found.items():
            if 0 < len(numbers) < self._count:
                self.notes.append(
                    f"holes of {bin_name(*bin_)}: {len(numbers)} masks for {self._count} images, used over again"
                )

        def mask_of_bin(bin_: Bin) -> Callable[[int], np.ndarray] | None:
            numbers = found[bin_]
            if not numbers:
                return None
            return lambda index: masks.load(numbers[index % len(numbers)], None, self.size, self.size)

        return mask_of_bin
