"""Measuring fills: the same images and holes for every method, averaged per range of hole ratios (Table 4)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from .fills import Fill, composite
from .metrics import PROTOCOLS

Bin = tuple[float, float]  # (low, high]: the share of hole pixels


@dataclass(frozen=True)
class Row:
    """One method on the images of one bin; figures are means over images.

    Args:
        method: its name.
        low, high: the bin, low < share of hole pixels ≤ high.
        images: how many.
        seconds: per image, for the fill alone.
        figures: protocol -> metric -> mean; a PSNR of None where every image came out equal to the truth.
        equal: images that came out equal to the truth, whose infinite PSNR is left out of its mean.
        lpips, fid: None where not asked for (FID also with fewer than two images).
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
    lpips=None,
    inception=None,
    tick: Callable[[], object] = lambda: None,
) -> list[Row]:
    """Fills the holes of every image with every method and measures the composites, as 8-bit images.

    Args:
        methods: name -> function of an image (H, W, 3) uint8, black in its holes, and a mask (H, W) bool, True = valid,
            that returns the filled image (H, W, 3) uint8. Valid pixels are taken from the image whatever it returns.
        bin_: goes into the rows.
        pairs: (image, mask), as above but with the truth in the holes.
        protocols: of `msa_model.metrics.PROTOCOLS`.
        lpips: a `msa_model.learned_metrics.Lpips`, or None.
        inception: a network for FID (see `msa_model.learned_metrics.Frechet`), or None.
        tick: called after each image.

    Returns:
        One row per method, in their order; none where there is no pair.

    Raises:
        ValueError: images too small for a protocol's SSIM window.
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
                fill(holed, valid)  # first calls set things up, which is no part of the time per image
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


def _row(name: str, bin_: Bin, sums: _Sums, protocols: tuple[str, ...], frechet) -> Row:
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


def network_fill(generator) -> Fill:
    """A generator (see :func:`msa_model.inpaint`) as a fill of 8-bit images.

    Raises, when called:
        FloatingPointError: the prediction is not finite.
    """
    import torch

    from .inpainting import inpaint

    def fill(image: np.ndarray, valid: np.ndarray) -> np.ndarray:
        tensor = torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32) / 255)[None]
        filled = inpaint(generator, tensor, torch.from_numpy(valid)[None, None])[0].permute(1, 2, 0).numpy()
        if not np.isfinite(filled).all():
            raise FloatingPointError("the prediction is not finite")
        return composite(image, valid, 255 * filled)

    return fill
