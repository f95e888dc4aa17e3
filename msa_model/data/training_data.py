"""Images and masks for training and evaluation.

- `Facades`, `ImageFolder`, `MixedImages`: images, ``load(index, rng)``.
- `BrushMasks`, `MaskFolder`: masks, ``load(index, rng, height, width)``.
- `InpaintingData`: both together, a torch data set for training; `StepSampler` and `make_loader` feed it.
- `evaluation_pairs`: image i with mask i, always the same.

Everything random is a function of (seed, index, draw): neither the number of workers nor a restart changes a pixel.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Dataset

from .images import ImageFileError
from .sampling import IMAGE, MASK, REPLACEMENT, Skipped, StepSampler, make_loader, random_stream
from .sources import (
    PRESETS,
    RATIO_BINS,
    BlankMaskError,
    BrushMasks,
    Facades,
    ImageFolder,
    ImageSource,
    MaskFolder,
    MaskSource,
    MixedImages,
    Preset,
    checked,
)

__all__ = [
    "PRESETS",
    "RATIO_BINS",
    "BlankMaskError",
    "BrushMasks",
    "EvaluationPairs",
    "Facades",
    "ImageFolder",
    "ImageSource",
    "InpaintingData",
    "MaskFolder",
    "MaskSource",
    "MixedImages",
    "Preset",
    "Skipped",
    "StepSampler",
    "evaluation_pairs",
    "make_loader",
]

_LOG = logging.getLogger(__name__)


class InpaintingData(Dataset):
    """Images with a random mask each, for training.

    An item is addressed by ``(index, draw)``, as `StepSampler` yields them; crop and mask are a function of (seed,
    index, draw). A file that cannot be read is passed over and another image or mask drawn in its place.

    Args:
        images: an `ImageSource`.
        masks: a `MaskSource`.
        seed: 0 or more.
        max_corrupt: how many image files, and how many mask files, may be unreadable. None: 1 % of them, at least 10.
            Blank masks (all hole, all valid) are passed over without a limit, as long as there is another.

    Attributes:
        skipped: the files passed over in this process; `make_loader`'s loader adds what its workers report.
    """

    def __init__(self, images: ImageSource, masks: MaskSource, seed: int = 0, max_corrupt: int | None = None) -> None:
        if seed < 0:
            raise ValueError(f"msa_model.data: seed must be 0 or more, got {seed}")
        self.images, self.masks, self.seed = images, masks, seed
        counts = {"image": len(images), "mask": len(masks) if hasattr(masks, "__len__") else 0}
        self.skipped = Skipped(
            {kind: (n, max(10, n // 100) if max_corrupt is None else max_corrupt) for kind, n in counts.items()}
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, address: tuple[int, int]) -> dict:
        """A dict of

        - image: (3, H, W) float32 in [0, 1];
        - mask: (1, H, W) bool, True = valid, with a hole pixel and a valid one;
        - index: the number of the image that was loaded: the address's, or another's in place of an unreadable file;
        - skipped: "", or a line for each file passed over: its kind, a tab, and what is wrong with it.

        Raises:
            ValueError: more unreadable files than allowed, met for this item alone; no usable mask.
        """
        index, draw = address
        skipped: list[tuple[str, str]] = []
        pixels, index_loaded = self._image(index, draw, skipped)
        valid = self._mask(index, draw, *pixels.shape[:2], skipped)
        lines = "\n".join(f"{kind}\t{' '.join(line.split())}" for kind, line in skipped)
        return _item(pixels, valid, index_loaded) | {"skipped": lines}

    def _image(self, index: int, draw: int, skipped: list[tuple[str, str]]) -> tuple[np.ndarray, int]:
        order = itertools.chain([checked(index, len(self))], self._others(index, draw))
        for attempt, candidate in enumerate(order):
            try:
                return self.images.load(candidate, random_stream(self.seed, IMAGE, index, draw, attempt)), candidate
            except ImageFileError as error:
                skipped.append(("image", str(error)))
                self.skipped.check("image", [line for _, line in skipped])
        raise ValueError(f"msa_model.data: none of the {len(self)} images can be read; the first: {skipped[0][1]}")

    def _others(self, index: int, draw: int) -> Iterator[int]:
        """The other images in random order; a function of the address."""
        order = random_stream(self.seed, REPLACEMENT, index, draw).permutation(len(self))
        yield from (int(other) for other in order if other != index)

    def _mask(self, index: int, draw: int, height: int, width: int, skipped: list[tuple[str, str]]) -> np.ndarray:
        problems: dict[str, None] = {}
        # Drawn at random first; a folder in which so many draws fail is walked through.
        walk = range(len(self.masks)) if isinstance(self.masks, MaskFolder) else ()
        for attempt, number in enumerate(itertools.chain([None] * 16, walk)):
            rng = random_stream(self.seed, MASK, index, draw, attempt)
            try:
                if number is None:
                    return self.masks.load(None, rng, height, width)
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


class EvaluationPairs(Dataset):
    """Image i with mask i, neither augmented, in the order of the images; see `evaluation_pairs`.

    Attributes:
        skipped: while iterated over: one line per pair left out, which names the unreadable file.
    """

    def __init__(self, images: ImageSource, masks: MaskSource) -> None:
        self.images, self.masks = images, masks
        self.skipped: list[str] = []

    def __len__(self) -> int:
        """Pairs, unreadable ones among them."""
        return len(self.images)

    def __getitem__(self, index: int) -> dict:
        """As `InpaintingData`'s, without "skipped".

        Raises:
            ImageFileError: the image or the mask cannot be read.
        """
        pixels = self.images.load(checked(index, len(self)), None)
        return _item(pixels, self.masks.load(index, None, *pixels.shape[:2]), index)

    def __iter__(self) -> Iterator[dict]:
        self.skipped = []
        for index in range(len(self)):
            try:
                yield self[index]
            except ImageFileError as error:
                self.skipped.append(str(error))
                _LOG.warning("msa_model.data: skipped %s", error)


def evaluation_pairs(images: ImageSource, masks: MaskSource) -> EvaluationPairs:
    """Every image once with a mask of its own, always the same: crops from the middle, mask i (over again where there
    are fewer masks than images) for image i.

    Returns:
        A data set of dicts: image (3, H, W) float32 in [0, 1], mask (1, H, W) bool, True = valid, index. Iterating
        leaves out pairs with an unreadable file, with a warning line each; ``skipped`` lists them.
    """
    return EvaluationPairs(images, masks)


def _item(pixels: np.ndarray, valid: np.ndarray, index: int) -> dict:
    planes = np.ascontiguousarray(pixels.transpose(2, 0, 1))
    return {"image": torch.from_numpy(planes).float().div_(255), "mask": torch.from_numpy(valid)[None], "index": index}
