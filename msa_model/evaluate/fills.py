"""Fills that learn nothing: what a trained network must beat.

Each takes an image (H, W, 3) uint8 and a mask (H, W) bool, True = valid, and returns the filled image (H, W, 3) uint8,
valid pixels as they were. What the image holds in its holes is never used. Without a valid pixel all is mid-grey.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

_RADIUS = 3  # pixels around a pixel that OpenCV's fills look at; its documentation's value
_MID_GREY = 128

Fill = Callable[[np.ndarray, np.ndarray], np.ndarray]


def mean_colour(image: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Holes in the mean colour of the valid pixels: the floor."""
    return _filled(image, valid, lambda known: np.broadcast_to(known[valid].mean(axis=0), known.shape))


def telea(image: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """OpenCV's fast marching fill (Telea 2004), radius 3."""
    return _filled(image, valid, lambda known: _opencv(known, valid, "INPAINT_TELEA"))


def navier_stokes(image: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """OpenCV's fill by the equations of fluid dynamics (Bertalmio, Bertozzi and Sapiro 2001; the paper's [8]),
    radius 3."""
    return _filled(image, valid, lambda known: _opencv(known, valid, "INPAINT_NS"))


def biharmonic(image: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """scikit-image's solution of Δ²u = 0 in the hole: one sparse linear system with as many unknowns as hole pixels,
    so seconds and hundreds of MiB for a large hole in an image of a few hundred pixels a side."""

    def solve(known: np.ndarray) -> np.ndarray:
        from skimage.restoration import inpaint_biharmonic

        return 255 * inpaint_biharmonic(known, ~valid, channel_axis=-1)

    return _filled(image, valid, solve)


#: name -> fill, as `msa evaluate --methods` has them.
FILLS: dict[str, Fill] = {
    "mean-colour": mean_colour,
    "telea": telea,
    "navier-stokes": navier_stokes,
    "biharmonic": biharmonic,
}


def composite(image: np.ndarray, valid: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """The image with its holes taken from a prediction.

    Args:
        image: (H, W, 3) uint8.
        valid: (H, W) bool.
        prediction: (H, W, 3); uint8, or floating-point in [0, 255], which is rounded and clamped.
    """
    if prediction.dtype != np.uint8:
        prediction = np.rint(prediction).clip(0, 255).astype(np.uint8)
    return np.where(valid[..., None], image, prediction)


def _filled(image: np.ndarray, valid: np.ndarray, predict: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"msa_model.fills: image must be (H, W, 3) uint8, got {image.shape} {image.dtype}")
    if valid.dtype != bool or valid.shape != image.shape[:2]:
        raise ValueError(
            f"msa_model.fills: mask must be bool of shape {image.shape[:2]}, got {valid.dtype} of {valid.shape}"
        )
    if valid.all():
        return image.copy()
    if not valid.any():
        return np.full_like(image, _MID_GREY)
    # Some of these read the hole (OpenCV returns it where it finds nothing to start from): there is nothing to read.
    return composite(image, valid, predict(np.where(valid[..., None], image, np.uint8(0))))


def _opencv(known: np.ndarray, valid: np.ndarray, method: str) -> np.ndarray:
    import cv2

    return cv2.inpaint(known, (~valid).astype(np.uint8), _RADIUS, getattr(cv2, method))
