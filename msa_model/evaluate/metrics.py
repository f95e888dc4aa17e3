"""Measures how far a filled image is from the truth: PSNR, SSIM and mean ℓ1, in two protocols.

``standard`` is what most papers and libraries use. ``paper`` repeats the script that the paper's authors released, so
that figures can be compared with Table 4. The protocols differ from one another by more than methods do.

Every function takes two RGB images (H, W, 3), uint8 or floating-point in [0, 1], and returns one number. The caller
computes means over images.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

#: The weights of scikit-image's rgb2gray (ITU-R BT.709). The released script applies them to B, G, R in this order.
_GREY_WEIGHTS_OF_BGR = np.array([0.2125, 0.7154, 0.0721], dtype=np.float32)

STANDARD_WINDOW, PAPER_WINDOW = 11, 51  # of SSIM, in pixels; no side of an image may be shorter

#: What each protocol computes, in words for reports.
DESCRIPTIONS = {
    "standard": "RGB, data range 1; SSIM: Gaussian window 11, sigma 1.5, mean over all pixels and channels; "
    "l1: mean |a-b|",
    "paper": "as the released script: images turned grey, with the weights of (R, G, B) applied to (B, G, R); "
    "data range 1; SSIM: uniform window 51; l1: sum |a-b| / sum (a+b)",
}
SMALLEST_SIDE = {"standard": STANDARD_WINDOW, "paper": PAPER_WINDOW}


def standard_psnr(image: np.ndarray, truth: np.ndarray) -> float:
    """Computes the peak signal-to-noise ratio, 10·log10(1 / mean (a-b)²) over all pixels and channels, in dB.

    It is inf for equal images.

    Raises:
        ValueError: the shapes differ or are not (H, W, 3).
    """
    image, truth = _pair(image, truth)
    if np.array_equal(image, truth):
        return float("inf")
    from torchmetrics.functional.image import peak_signal_noise_ratio

    return peak_signal_noise_ratio(_tensor(image), _tensor(truth), data_range=1.0).item()


def standard_ssim(image: np.ndarray, truth: np.ndarray) -> float:
    """Computes the structural similarity with torchmetrics' defaults.

    Per channel and pixel, with mean μ, variance σ² and covariance σ under a Gaussian window (σ = 1.5, 11×11; images are
    mirrored at the border, without the border pixel), it is

        (2 μa μb + 0.01²)(2 σab + 0.03²) / ((μa² + μb² + 0.01²)(σa² + σb² + 0.03²))

    averaged over pixels and channels, in float32 (good to about 1e-5). 1 for equal images.

    Raises:
        ValueError: the shapes differ or are not (H, W, 3); a side is shorter than 11.
    """
    image, truth = _pair(image, truth, STANDARD_WINDOW)
    from torchmetrics.functional.image import structural_similarity_index_measure

    # float32: the convolution behind it takes thirty times as long in float64.
    pair = _tensor(image).float(), _tensor(truth).float()
    similarity = structural_similarity_index_measure(*pair, data_range=1.0)
    assert not isinstance(similarity, tuple)  # it is one only where the map is asked for too
    return similarity.item()


def standard_l1(image: np.ndarray, truth: np.ndarray) -> float:
    """Computes the mean of |a-b| over all pixels and channels.

    Raises:
        ValueError: the shapes differ or are not (H, W, 3).
    """
    image, truth = _pair(image, truth)
    return float(np.abs(image - truth).mean())


def paper_grey(image: np.ndarray) -> np.ndarray:
    """Computes the grey image that the ``paper`` protocol measures: 0.2125·B + 0.7154·G + 0.0721·R.

    The weights are meant for red, green and blue. The released script applies them to an image that OpenCV loaded,
    whose channels are in the opposite order.

    Returns:
        (H, W) float32 in [0, 1].
    """
    return _unit(image)[..., ::-1].astype(np.float32) @ _GREY_WEIGHTS_OF_BGR


def paper_psnr(image: np.ndarray, truth: np.ndarray) -> float:
    """Computes the peak signal-to-noise ratio of the grey images (`paper_grey`), 10·log10(1 / mean (a-b)²), in dB.

    Raises:
        ValueError: the shapes differ or are not (H, W, 3).
    """
    a, b = _grey_pair(image, truth)
    error = np.square(a.astype(np.float64) - b).mean()
    return float(10 * np.log10(1 / error)) if error else float("inf")


def paper_ssim(image: np.ndarray, truth: np.ndarray) -> float:
    """Computes the structural similarity of the grey images (`paper_grey`), as scikit-image with ``win_size=51``.

    Differences from `standard_ssim`: one channel, a uniform 51×51 window, variances and covariance divided by n-1 and
    not by n, and the mean is over the pixels whose window lies inside the image.

    Raises:
        ValueError: the shapes differ or are not (H, W, 3); a side is shorter than 51.
    """
    a, b = _grey_pair(image, truth, PAPER_WINDOW)
    from skimage.metrics import structural_similarity

    return float(structural_similarity(a, b, data_range=1, win_size=PAPER_WINDOW))


def paper_l1(image: np.ndarray, truth: np.ndarray) -> float:
    """Computes Σ|a-b| / Σ(a+b) of the grey images (`paper_grey`); 0 if both are black.

    Raises:
        ValueError: the shapes differ or are not (H, W, 3).
    """
    a, b = _grey_pair(image, truth)
    total = (a + b).sum(dtype=np.float64)
    return float(np.abs(a - b).sum(dtype=np.float64) / total) if total else 0.0


#: protocol -> metric -> function(image, truth).
PROTOCOLS: dict[str, dict[str, Callable[[np.ndarray, np.ndarray], float]]] = {
    "standard": {"psnr": standard_psnr, "ssim": standard_ssim, "l1": standard_l1},
    "paper": {"psnr": paper_psnr, "ssim": paper_ssim, "l1": paper_l1},
}


def _unit(image: np.ndarray) -> np.ndarray:
    """Scales values to [0, 1], float64."""
    return image / 255.0 if image.dtype == np.uint8 else image.astype(np.float64)


def _pair(image: np.ndarray, truth: np.ndarray, window: int = 1) -> tuple[np.ndarray, np.ndarray]:
    if image.shape != truth.shape or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(
            f"msa_model.metrics: images must both have shape (H, W, 3), got {image.shape} and {truth.shape}"
        )
    if min(image.shape[:2]) < window:
        raise ValueError(
            f"msa_model.metrics: an image of {image.shape[1]}x{image.shape[0]} pixels is smaller than "
            f"SSIM's window of {window}x{window}"
        )
    return _unit(image), _unit(truth)


def _grey_pair(image: np.ndarray, truth: np.ndarray, window: int = 1) -> tuple[np.ndarray, np.ndarray]:
    image, truth = _pair(image, truth, window)
    return paper_grey(image), paper_grey(truth)


def _tensor(image: np.ndarray) -> Tensor:
    import torch

    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None]
