"""Classical fills, to which trained networks are compared.

Each takes an image (H, W, 3) uint8 and a mask (H, W) bool, True = valid, and returns the filled image (H, W, 3) uint8
with unchanged valid pixels. No fill uses what the image holds in its holes. If no pixel is valid, all become mid-grey.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

_RADIUS = 3  # pixels: the neighbourhood that OpenCV's fills look at, as in OpenCV's documentation
_MID_GREY = 128

Fill = Callable[[np.ndarray, np.ndarray], np.ndarray]


def mean_colour(image: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Fills holes with the mean colour of the valid pixels, the simplest baseline."""
    return _filled(image, valid, lambda known: np.broadcast_to(known[valid].mean(axis=0), known.shape))


def telea(image: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Fills by fast marching (Telea 2004), as OpenCV does with radius 3."""
    return _filled(image, valid, lambda known: _opencv(known, valid, "INPAINT_TELEA"))


def navier_stokes(image: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Fills by the equations of fluid dynamics (Bertalmio, Bertozzi and Sapiro 2001), as OpenCV does with radius 3."""
    return _filled(image, valid, lambda known: _opencv(known, valid, "INPAINT_NS"))


def biharmonic(image: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Solves Δ²u = 0 in the hole, as scikit-image does.

    The sparse linear system has one unknown per hole pixel. A large hole in an image of a few hundred pixels a side
    takes seconds and hundreds of MiB.
    """

    def solve(known: np.ndarray) -> np.ndarray:
        from skimage.restoration import inpaint_biharmonic

        return 255 * inpaint_biharmonic(known, ~valid, channel_axis=-1)

    return _filled(image, valid, solve)


#: Name -> fill; the names are those of `msa evaluate --methods`.
FILLS: dict[str, Fill] = {
    "mean-colour": mean_colour,
    "telea": telea,
    "navier-stokes": navier_stokes,
    "biharmonic": biharmonic,
}


def composite(image: np.ndarray, valid: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """Takes the image's holes from a prediction.

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
    # Some fills read the hole (OpenCV returns it where it has nothing to start from), so it is blackened first.
    return composite(image, valid, predict(np.where(valid[..., None], image, np.uint8(0))))


def _opencv(known: np.ndarray, valid: np.ndarray, method: str) -> np.ndarray:
    import cv2

    return cv2.inpaint(known, (~valid).astype(np.uint8), _RADIUS, getattr(cv2, method))
