"""The data set for training: an image and a random mask, drawn anew in every epoch."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sized

import numpy as np
import torch
from torch.utils.data import Dataset

from .image_files import ImageFileError
from .image_sources import ImageSource, checked
from .mask_sources import BlankMaskError, MaskFolder, MaskSource
from .sampling import IMAGE, MASK, REPLACEMENT, Skipped, random_stream


class InpaintingData(Dataset):
    """Images with a random mask each, for training.

    The address of an item is ``(index, draw)``, which `StepSampler` yields; crop and mask are a function of (seed,
    index, draw). A file that cannot be read is skipped, and another image or mask is drawn in its place.

    Args:
        images: an `ImageSource`.
        masks: a `MaskSource`.
        seed: 0 or more.
        max_corrupt: how many image files, and how many mask files, may be unreadable. None: 1 % of them, at least 10.
            Blank masks (all hole, all valid) are skipped without a limit, as long as there is another mask.

    Attributes:
        skipped: the files that this process skipped; the loader of `make_loader` adds those of its workers.
    """

    def __init__(self, images: ImageSource, masks: MaskSource, seed: int = 0, max_corrupt: int | None = None) -> None:
        if seed < 0:
            raise ValueError(f"msa_model.data: seed must be 0 or more, got {seed}")
        self.images, self.masks, self.seed = images, masks, seed
        counts = {"image": len(images), "mask": len(masks) if isinstance(masks, Sized) else 0}
        self.skipped = Skipped(
            {kind: (n, max(10, n // 100) if max_corrupt is None else max_corrupt) for kind, n in counts.items()}
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, address: tuple[int, int]) -> dict:
        """Loads an image and draws a mask.

        Returns:
            A dict with these entries:

            - image: (3, H, W) float32 in [0, 1];
            - mask: (1, H, W) bool, True = valid, with at least one hole pixel and one valid pixel;
            - index: the number of the image: the address's, or another one that replaces an unreadable file;
            - skipped: "", or a line for each skipped file: its kind, a tab, and what is wrong with it.

        Raises:
            ValueError: this item alone met more unreadable files than allowed; no mask can be used.
        """
        index, draw = address
        skipped: list[tuple[str, str]] = []
        pixels, index_loaded = self._image(index, draw, skipped)
        valid = self._mask(index, draw, pixels.shape[0], pixels.shape[1], skipped)
        lines = "\n".join(f"{kind}\t{' '.join(line.split())}" for kind, line in skipped)
        planes = np.ascontiguousarray(pixels.transpose(2, 0, 1))
        return {
            "image": torch.from_numpy(planes).float().div_(255),
            "mask": torch.from_numpy(valid)[None],
            "index": index_loaded,
            "skipped": lines,
        }

    def _image(self, index: int, draw: int, skipped: list[tuple[str, str]]) -> tuple[np.ndarray, int]:
        """Loads image `index`, or another in its place; returns its pixels and number, and adds to `skipped`."""
        order = itertools.chain([checked(index, len(self))], self._others(index, draw))
        for attempt, candidate in enumerate(order):
            try:
                return self.images.load(candidate, random_stream(self.seed, IMAGE, index, draw, attempt)), candidate
            except ImageFileError as error:
                skipped.append(("image", str(error)))
                self.skipped.check("image", [line for _, line in skipped])
        raise ValueError(f"msa_model.data: none of the {len(self)} images can be read; the first: {skipped[0][1]}")

    def _others(self, index: int, draw: int) -> Iterator[int]:
        """Yields the numbers of the other images in a random order that depends on the address alone."""
        order = random_stream(self.seed, REPLACEMENT, index, draw).permutation(len(self))
        yield from (int(other) for other in order if other != index)

    def _mask(self, index: int, draw: int, height: int, width: int, skipped: list[tuple[str, str]]) -> np.ndarray:
        """Draws a mask, (height, width) bool; adds the files that it had to skip to `skipped`."""
        problems: dict[str, None] = {}
        # Masks are drawn at random first. If that many draws fail, every mask of the folder is tried in turn.
        walk = range(len(self.masks)) if isinstance(self.masks, MaskFolder) else ()
        numbers: Iterable[int | None] = itertools.chain([None] * 16, walk)
        for attempt, number in enumerate(numbers):
            rng = random_stream(self.seed, MASK, index, draw, attempt)
            try:
                if number is None:
                    return self.masks.load(None, rng, height, width)
                assert isinstance(self.masks, MaskFolder)
                return self.masks.turned(number, rng, height, width)
            except ImageFileError as error:
                kind = "blank mask" if isinstance(error, BlankMaskError) else "mask"
                if str(error) not in problems:
                    problems[str(error)] = None
                    skipped.append((kind, str(error)))
                    self.skipped.check("mask", [line for what, line in skipped if what == "mask"])
        raise ValueError(
            f"msa_model.data: none of the {len(problems)} masks can be used for training: "
            f"{'; '.join(list(problems)[:3])}{' …' * (len(problems) > 3)}"
        )
