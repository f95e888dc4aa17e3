"""Pixelwise attention of hole pixels over background pixels (Eqs. 6-8 of the paper)."""

from __future__ import annotations

import math

from torch import Tensor, nn

from . import backends, checks
from .reference import pixel_attention as reference

OP = "hole_attention"
VARIANTS = ("paper", "released")


def hole_attention(
    features: Tensor,
    mask: Tensor,
    *,
    scale: float = 10.0,
    radius: int = 1,
    renormalize: bool = False,
    variant: str = "paper",
    eps: float = 1e-6,
    backend: str = "auto",
) -> Tensor:
    r"""Fills every hole pixel with a mixture of background pixels, weighted by propagated cosine similarity.

    Per sample, with F the hole pixels, B the valid ones, and n = φ/max(‖φ‖₂, eps) over channels::

        s*(p,q)  = softmax over q∈B of  scale · n(p)·n(q)              p∈F              (Eqs. 6, 7)
        s'(p,q)  = Σ_{δ∈{-radius..radius}²} s*(p+δ, q+δ)               p∈F, q∈B         (Eq. 8)
        output(p) = Σ_{q∈B} s'(p,q) · φ(q)    for p∈F;       output(p) = φ(p)    for p∈B

    Terms with p+δ outside F, q+δ outside B, or either outside the map are zero.

    Args:
        features: φ, (N, C, H, W), floating-point.
        mask: (N, 1, H, W), 1 (any non-zero) = valid, 0 = hole; bool, uint8 or floating-point.
        scale: λ, the softmax scale; finite.
        radius: k, the propagation radius; 0 switches Eq. 8 off.
        renormalize: divide by Σ_q s'(p,q), so that the weights of every hole pixel add up to 1.
        variant: ``"paper"`` as above, or ``"released"``, the closed form of the authors' code: softmax over all q of
            ⟨Σ_δ φ(p+δ), k(q)⟩ with keys and values k = (mask·φ + 1e-7)/‖·‖; scale, renormalize and eps unused.
        eps: norms below it count as eps; features of zero norm are legal.
        backend: ``"auto"`` or ``"reference"``: only the plain PyTorch version exists so far.

    Returns:
        (N, C, H, W) in the dtype of features. A sample without background, or without holes, comes back unchanged.

    Raises:
        ValueError: shapes, dtypes, devices or options that do not fit.

    Statistics are float32 (float64 for float64). Gradients flow to features through queries, keys and values. Memory
    without gradients is linear in H·W; with gradients the F×B scores of every sample are kept.
    """
    checks.check_features(OP, "features", features)
    checks.check_mask(OP, "mask", mask, "features", features, (1,))
    if not isinstance(radius, int) or radius < 0:
        checks.fail(OP, f"radius must be an integer of at least 0, got {radius!r}")
    if not math.isfinite(scale):
        checks.fail(OP, f"scale must be finite, got {scale!r}")
    if not eps > 0:
        checks.fail(OP, f"eps must be positive, got {eps!r}")
    if variant not in VARIANTS:
        checks.fail(OP, f"variant must be one of {', '.join(map(repr, VARIANTS))}, got {variant!r}")
    backends.choose(OP, backend, features)
    return reference.hole_attention(features, mask != 0, float(scale), radius, renormalize, variant, eps)


class HoleAttention(nn.Module):
    """:func:`hole_attention` as a module without parameters; the arguments are its own."""

    def __init__(
        self,
        scale: float = 10.0,
        radius: int = 1,
        renormalize: bool = False,
        variant: str = "paper",
        eps: float = 1e-6,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.options = dict(
            scale=scale, radius=radius, renormalize=renormalize, variant=variant, eps=eps, backend=backend
        )

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """features (N,C,H,W), mask (N,1,H,W) with 1 = valid; returns (N,C,H,W)."""
        return hole_attention(features, mask, **self.options)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())
