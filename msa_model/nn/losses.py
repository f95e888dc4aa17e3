"""The losses of the paper, Eqs. 13-22."""

from __future__ import annotations

import functools
import logging
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .vgg import VGG16Features

VARIANTS = ("paper", "released")
_log = logging.getLogger(__name__)


class InpaintingLoss(nn.Module):
    r"""Computes the six terms of the generator's loss, and the discriminator's loss.

    P is the prediction, T the truth, m the mask (1 = valid), comp = m·T + (1-m)·P, φᵢ the Cᵢ×Hᵢ×Wᵢ features of
    VGG-16's poolᵢ for i = 1, 2, 3, and D the discriminator's probability. Means run over the batch too:

        perceptual (13)        Σᵢ mean |φᵢ(P) - φᵢ(T)|
        style (14), (15)       Σᵢ mean |Gᵢ(P) - Gᵢ(T)|               Gᵢ = φᵢ φᵢᵀ / (Cᵢ·Hᵢ·Wᵢ), of Cᵢ² elements
        adversarial (16-18)    mean -log D(P)
        total_variation (19)   mean |∂y comp| + mean |∂x comp|      differences that touch no hole count as 0
        hole (20)              mean (1-m)·|P - T|                   over all N·3·H·W elements, not the hole's alone
        valid (21)             mean m·|P - T|                       likewise
        total (22)             Σ weight · term
        discriminator (16-18)  mean -log D(T) + mean -log(1 - D(P))

    Where the paper leaves something open:

    - Eqs. 20 and 21 are sums under an expectation. With the paper's weights only means over the whole tensor, as in
      earlier papers, balance the other terms.
    - Eq. 16 is one value that the generator maximises. Here the generator has the non-saturating form instead: its
      prediction labelled real. The sum over the batch in Eq. 18 is the mean over all patches, its undefined Wᵢ is 1.
    - Eq. 19 is about "damaged areas". Here these are the hole of the composite, so that the seam counts and the truth
      does not.
    - Eqs. 13-15 compare the prediction only (``variant="paper"``). The released code also compares the composite
      (``variant="released"``); there ``perceptual`` and ``style`` are sums of two comparisons each.

    The truth's features are computed without a graph. After the features all computation is float32 (float64 for
    float64), also under autocast, because Gram matrices of half-precision features overflow. The gradients of means
    over millions of elements do not fit float16 without loss scaling.

    Args:
        vgg: the features; None leaves out the perceptual and style terms, logs that once, and puts their names into
            ``missing_terms``.
        variant: ``"paper"`` or ``"released"``, see above.
        perceptual, style, adversarial, total_variation, hole, valid: weights, finite and not negative; the defaults are
            those of Section 4.2. A term of weight 0 is computed all the same; only ``vgg=None`` saves work.

    Attributes:
        weights: name -> weight, of all six terms.
        missing_terms: names of the terms that ``vgg=None`` leaves out.

    Raises:
        ValueError: another variant, or an impossible weight.
    """

    def __init__(
        self,
        vgg: VGG16Features | None,
        variant: str = "paper",
        perceptual: float = 0.05,
        style: float = 120.0,
        adversarial: float = 0.1,
        total_variation: float = 0.1,
        hole: float = 6.0,
        valid: float = 1.0,
    ) -> None:
        super().__init__()
        if variant not in VARIANTS:
            raise ValueError(f"msa_model.InpaintingLoss: variant must be 'paper' or 'released', got {variant!r}")
        self.variant = variant
        self.weights = {
            "perceptual": perceptual,
            "style": style,
            "adversarial": adversarial,
            "total_variation": total_variation,
            "hole": hole,
            "valid": valid,
        }
        for name, weight in self.weights.items():
            if not 0 <= weight < math.inf:
                raise ValueError(f"msa_model.InpaintingLoss: {name} must be a finite weight >= 0, got {weight!r}")
        self.vgg = vgg
        self.missing_terms = ("perceptual", "style") if vgg is None else ()
        if vgg is None:
            _warn_once("msa_model.InpaintingLoss: no VGG-16 features: the perceptual and style terms are left out")

    def generator_terms(
        self, prediction: Tensor, truth: Tensor, mask: Tensor, fake_logits: Tensor | None
    ) -> dict[str, Tensor]:
        """Computes the terms, without their weights.

        Args:
            prediction, truth: (N, 3, H, W), floating-point, truth in [0, 1]; H and W at least 8 with VGG features.
            mask: (N, 1, H, W), 1 (any non-zero) = valid, 0 = hole; bool, uint8 or floating-point.
            fake_logits: the discriminator's logits of the prediction, any shape; None leaves the adversarial term out.

        Returns:
            Scalars by name, with gradients to prediction and fake_logits: perceptual, style (both only with VGG
            features), adversarial, total_variation, hole, valid.

        Raises:
            ValueError: shapes that do not fit.
        """
        _check("InpaintingLoss", prediction, truth, mask)
        terms: dict[str, Tensor] = {}
        if self.vgg is not None:
            terms |= self._feature_terms(self.vgg, prediction, truth, mask)
        if fake_logits is not None:
            terms["adversarial"] = _cross_entropy(fake_logits, real=True)
        return terms | _pixel_terms(prediction, truth, mask)

    def generator_loss(
        self, prediction: Tensor, truth: Tensor, mask: Tensor, fake_logits: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Computes Eq. 22: the weighted sum of `generator_terms`, and the unweighted terms."""
        terms = self.generator_terms(prediction, truth, mask, fake_logits)
        return _weighted_sum(terms, self.weights), terms

    def discriminator_loss(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """Computes Eqs. 16-18 for the discriminator.

        Args:
            real_logits, fake_logits: logits of the truth and of the (detached) prediction, of any shape.

        Returns:
            A scalar, without weight.
        """
        return _cross_entropy(real_logits, real=True) + _cross_entropy(fake_logits, real=False)

    def _feature_terms(self, vgg: VGG16Features, prediction: Tensor, truth: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Eqs. 13-15."""
        with torch.no_grad():
            wanted = vgg(truth)
        images = [prediction]
        if self.variant == "released":
            images.append(torch.where(mask != 0, truth.to(prediction.dtype), prediction))
        perceptual, style = [], []
        stacked = torch.cat(images) if len(images) > 1 else prediction
        for found, want in zip(vgg(stacked), wanted, strict=True):
            with torch.autocast(found.device.type, enabled=False):
                want = _wide(want)
                want_gram = gram_matrix(want)
                for features in _wide(found).chunk(len(images)):
                    perceptual.append((features - want).abs().mean())
                    style.append((gram_matrix(features) - want_gram).abs().mean())
        return {"perceptual": torch.stack(perceptual).sum(), "style": torch.stack(style).sum()}


def gram_matrix(features: Tensor) -> Tensor:
    """Computes φ φᵀ / (C·H·W) of every sample (Eq. 14, normalised as in Eq. 15): (N,C,H,W) -> (N,C,C)."""
    flat = features.flatten(2)
    return flat @ flat.mT / (flat.shape[1] * flat.shape[2])


def hole_total_variation(composite: Tensor, valid: Tensor) -> Tensor:
    """Computes Eq. 19: the mean absolute difference of vertical neighbours plus that of horizontal neighbours.

    A difference counts where either pixel lies in the hole, otherwise it is 0.

    Args:
        composite: (N, C, H, W).
        valid: (N, 1, H, W) bool.

    Returns:
        A scalar. A map of one row or one column has no differences in that direction, which gives 0.
    """
    hole = ~valid
    vertical = (composite[:, :, 1:] - composite[:, :, :-1]).abs() * (hole[:, :, 1:] | hole[:, :, :-1])
    horizontal = (composite[..., 1:] - composite[..., :-1]).abs() * (hole[..., 1:] | hole[..., :-1])
    means = [differences.sum() / max(1, differences.numel()) for differences in (vertical, horizontal)]
    return means[0] + means[1]


def _pixel_terms(prediction: Tensor, truth: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Eqs. 19-21, in the order of Eq. 22."""
    prediction, truth, valid = _wide(prediction), _wide(truth), mask != 0
    difference = (prediction - truth).abs()
    return {
        "total_variation": hole_total_variation(torch.where(valid, truth, prediction), valid),
        "hole": torch.where(valid, 0.0, difference).mean(),
        "valid": torch.where(valid, difference, 0.0).mean(),
    }


def _cross_entropy(logits: Tensor, real: bool) -> Tensor:
    """Computes Eqs. 17 and 18 of logits: -log σ(x) for real ones, -log(1 - σ(x)) = -log σ(-x) for others."""
    return F.softplus(-_wide(logits) if real else _wide(logits)).mean()


def _weighted_sum(terms: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    weighted = [weights[name] * term for name, term in terms.items()]
    return functools.reduce(torch.add, weighted)


@functools.cache
def _warn_once(message: str) -> None:
    _log.warning(message)


def _wide(t: Tensor) -> Tensor:
    return t if t.dtype == torch.float64 else t.float()


def _check(who: str, prediction: Tensor, truth: Tensor, mask: Tensor) -> None:
    if prediction.dim() != 4 or prediction.shape[1] != 3:
        raise ValueError(f"msa_model.{who}: prediction must have shape (N, 3, H, W), got {tuple(prediction.shape)}")
    if truth.shape != prediction.shape:
        raise ValueError(
            f"msa_model.{who}: truth must have the shape of prediction, {tuple(prediction.shape)}, "
            f"got {tuple(truth.shape)}"
        )
    if mask.shape != (prediction.shape[0], 1, *prediction.shape[2:]):
        wanted = (prediction.shape[0], 1, *prediction.shape[2:])
        raise ValueError(f"msa_model.{who}: mask must have shape {wanted}, got {tuple(mask.shape)}")
