"""Which image meets which hole in an evaluation; nothing here is random but the brush, by its seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from .evaluation import Bin
from .images import ImageFileError

#: Where held-out facades begin; training counts its own from 0.
FIRST_HELD_OUT_FACADE = 1_000_000_000


class Inputs:
    """Every image once per bin: image i with the bin's mask i, masks over again where there are fewer than images.

    Args:
        images: an `msa_model.data.ImageSource`.
        masks: an `msa_model.data.MaskFolder`, whose masks belong to the bin of their own ratio at the images' size; or
            a function of a bin that gives the bin's `msa_model.data.MaskSource`.
        bins: the bins that will be asked for.
        size: side of the images.
        limit: at most this many images per bin; None: all.

    Raises:
        ValueError: no image; no mask in any bin.

    Attributes:
        problems: one line per file that could not be read and was left out.
        notes: one line each, what the reader of the figures may want to know.
    """

    def __init__(self, images, masks, bins: list[Bin], *, size: int, limit: int | None = None) -> None:
        self.images, self.masks, self.size = images, masks, size
        self.problems: list[str] = []
        self.notes: list[str] = []
        self._unreadable: set[int] = set()
        self._images = min(len(images), limit or len(images))
        self._masks_of_bin: dict[Bin, list[int]] | None = None
        if not self._images:
            raise ValueError("no image to measure on")
        if not callable(masks):
            self._masks_of_bin = self._sorted_masks(bins)

    def count(self, bin_: Bin) -> int:
        """How many pairs there are, unreadable images among them."""
        return self._images if self._masks_of_bin is None or self._masks_of_bin[bin_] else 0

    def pairs(self, bin_: Bin) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Image (H, W, 3) uint8 and mask (H, W) bool, True = valid."""
        mask_of = self._mask_source(bin_)
        if mask_of is None:
            return
        for index in range(self._images):
            if index in self._unreadable:
                continue
            try:
                image = self.images.load(index, None)
            except (OSError, ValueError, ImageFileError) as error:
                self._unreadable.add(index)
                self.problems.append(str(error))
                continue
            yield image, mask_of(index)

    def _mask_source(self, bin_: Bin) -> Callable[[int], np.ndarray] | None:
        if self._masks_of_bin is None:
            brush = self.masks(bin_)
            return lambda index: brush.load(index, None, self.size, self.size)
        numbers = self._masks_of_bin[bin_]
        return (lambda index: self._file_mask(numbers[index % len(numbers)])) if numbers else None

    def _file_mask(self, number: int) -> np.ndarray:
        return self.masks.load(number, None, self.size, self.size)

    def _sorted_masks(self, bins: list[Bin]) -> dict[Bin, list[int]]:
        found: dict[Bin, list[int]] = {bin_: [] for bin_ in bins}
        left_out = 0
        for number in range(len(self.masks)):
            try:
                ratio = 1 - self._file_mask(number).mean()
            except (OSError, ValueError, ImageFileError) as error:
                self.problems.append(str(error))
                continue
            own = [bin_ for bin_ in bins if bin_[0] < ratio <= bin_[1]]
            for bin_ in own:
                found[bin_].append(number)
            left_out += not own
        if not any(found.values()):
            raise ValueError(
                f"none of the {len(self.masks)} masks has a share of hole pixels in any of the ranges"
                + "".join(f"; {problem}" for problem in self.problems[:1])
            )
        if left_out:
            self.notes.append(f"{left_out} of {len(self.masks)} masks left out: their holes are in none of the ranges")
        for (low, high), numbers in found.items():
            if 0 < len(numbers) < self._images:
                name = f"{100 * low:g}-{100 * high:g}%"
                self.notes.append(f"holes of {name}: {len(numbers)} masks for {self._images} images, used over again")
        return found
