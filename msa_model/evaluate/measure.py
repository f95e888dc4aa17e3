"""Measures fills on the same images and holes, averaged per range of hole ratios (Table 4)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from .fills import Fill, composite
from .metrics import PROTOCOLS

if TYPE_CHECKING:
    from torch import nn

    from .learned_metrics import Frechet, Lpips

Bin = tuple[float, float]  # (low, high]: the share of hole pixels


def bin_name(low: float, high: float) -> str:
    """Names a bin: (0.1, 0.2) → "10-20%"."""
    return f"{100 * low:g}-{100 * high:g}%"


@dataclass(frozen=True)
class Row:
    """Results of one method on the images of one bin.

    Args:
        method: its name.
        low: the bin holds masks with low < share of hole pixels ≤ high.
        high: see low.
        images: number of images.
        seconds: mean time per image, of the fill alone.
        figures: protocol -> metric -> mean over images. PSNR is None if every result equals the truth.
        equal: number of results that equal the truth. Their infinite PSNR is left out of the mean.
        lpips: mean over images; None if it was not asked for.
        fid: None if it was not asked for, or with fewer than two images.
    """

    method: str
    low: float
    high: float
    images: int
    seconds: float
    figures: dict[str, dict[str, float | None]]
    equal: int = 0
    lpips: float | None = None
    fid: float | None = None


@dataclass
class _Sums:
    seconds: list[float] = field(default_factory=list)
    lpips: list[float] = field(default_factory=list)
    values: dict[tuple[str, str], list[float]] = field(default_factory=dict)


def evaluate_bin(
    methods: Mapping[str, Fill],
    bin_: Bin,
    pairs: Iterable[tuple[np.ndarray, np.ndarray]],
    *,
    protocols: Iterable[str] = tuple(PROTOCOLS),
    lpips: Lpips | None = None,
    inception: nn.Module | None = None,
    tick: Callable[[], object] = lambda: None,
) -> list[Row]:
    """Fills the holes of every image with every method and measures the composites, as 8-bit images.

    Args:
        methods: name -> function of an image (H, W, 3) uint8, black in its holes, and a mask (H, W) bool, True = valid,
            that returns the filled image (H, W, 3) uint8. Valid pixels are taken from the image whatever it returns.
        bin_: the range of hole ratios, for the rows.
        pairs: (image, mask), as above but with the truth in the holes.
        protocols: names in `metrics.PROTOCOLS`.
        lpips: measures LPIPS; None leaves it out.
        inception: a network for FID (see `learned_metrics.Frechet`); None leaves it out.
        tick: called after each image.

    Returns:
        One row per method, in their order; no row if there is no pair.

    Raises:
        ValueError: images are too small for a protocol's SSIM window.
        FloatingPointError: a method's prediction is not finite.
    """
    protocols = tuple(protocols)
    sums = {name: _Sums() for name in methods}
    frechet = None
    if inception is not None:
        from .learned_metrics import Frechet

        frechet = Frechet(inception, list(methods))
    count = 0
    for truth, valid in pairs:
        holed = np.where(valid[..., None], truth, np.uint8(0))
        if frechet:
            frechet.add_truth(truth)
        for name, fill in methods.items():
            if not count:
                fill(holed, valid)  # the first call is slower, so it is not timed
            start = time.perf_counter()
            filled = fill(holed, valid)
            sums[name].seconds.append(time.perf_counter() - start)
            result = composite(truth, valid, filled)
            for protocol in protocols:
                for metric, measure in PROTOCOLS[protocol].items():
                    sums[name].values.setdefault((protocol, metric), []).append(measure(result, truth))
            if lpips is not None:
                sums[name].lpips.append(lpips.distance(result, truth))
            if frechet:
                frechet.add(name, result)
        count += 1
        tick()
    if not count:
        return []
    return [_row(name, bin_, sums[name], protocols, frechet) for name in methods]


def _row(name: str, bin_: Bin, sums: _Sums, protocols: tuple[str, ...], frechet: Frechet | None) -> Row:
    figures: dict[str, dict[str, float | None]] = {}
    equal = 0
    for (protocol, metric), values in sums.values.items():
        finite = [value for value in values if np.isfinite(value)]
        figures.setdefault(protocol, {})[metric] = float(np.mean(finite)) if finite else None
        if (protocol, metric) == (protocols[0], "psnr"):
            equal = len(values) - len(finite)
    return Row(
        name,
        *bin_,
        images=len(sums.seconds),
        seconds=float(np.mean(sums.seconds)),
        figures=figures,
        equal=equal,
        lpips=float(np.mean(sums.lpips)) if sums.lpips else None,
        fid=frechet.distance(name) if frechet else None,
    )


def network_fill(generator: nn.Module) -> Fill:
    """Makes a fill of 8-bit images from a generator (see `msa_model.inpaint`).

    The fill raises FloatingPointError if the prediction is not finite.
    """
    import torch

    from ..inpainting import inpaint

    def fill(image: np.ndarray, valid: np.ndarray) -> np.ndarray:
        tensor = torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32) / 255)[None]
        filled = inpaint(generator, tensor, torch.from_numpy(valid)[None, None])[0].permute(1, 2, 0).numpy()
        if not np.isfinite(filled).all():
            raise FloatingPointError("the prediction is not finite")
        return composite(image, valid, 255 * filled)

    return fill
