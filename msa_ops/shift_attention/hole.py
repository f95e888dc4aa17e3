"""The paper's attention of holes over background (Eqs. 6-8), and its map, on top of the attention with shift
propagation."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core import backends, checks, registration
from ..core.dtypes import HALVES, statistics_dtype
from . import reference
from .autograd import OP as SHIFT_ATTENTION
from .autograd import operator
from .functional import check_options, shift_attention
from .hole_autograd import OP

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

    Gradients flow to features through queries, keys and values. float16 and bfloat16 features (float32 ones under
    autocast too) are multiplied as such where tensor cores take them, which is on CUDA in the paper's variant;
    everything else is float32 or better. Memory, determinism and cost are those of :func:`shift_attention`.

    Args:
        features: φ, (N, C, H, W), floating-point; below 1e18 in magnitude (1e150 in float64), so that the squares of a
            norm do not overflow.
        mask: (N, 1, H, W), 1 (any non-zero) = valid, 0 = hole; bool, uint8 or floating-point.
        scale: λ, the softmax scale; finite.
        radius: k, the propagation radius in pixels; 0 switches Eq. 8 off.
        renormalize: divide by Σ_q s'(p,q), so that the weights of every hole pixel add up to 1.
        variant: ``"paper"`` as above, or ``"released"``, the closed form of the authors' code: softmax over all q of
            ⟨Σ_δ φ(p+δ), k(q)⟩ with keys and values k = (mask·φ + 1e-7)/‖·‖; scale, renormalize and eps are unused.
        eps: norms below it count as eps; features of zero norm are legal.
        backend: as for :func:`shift_attention`.

    Returns:
        (N, C, H, W) in the dtype of features. A sample without background, or without holes, is returned unchanged.

    Raises:
        ValueError: if shapes, dtypes, devices or options do not fit.
        RuntimeError: if a named backend cannot take the inputs.
    """
    valid = _check_holes(OP, features, mask, scale, radius, variant, eps)
    checks.check_flag(OP, "renormalize", renormalize)
    narrow = _operand_dtype(features, variant)
    # The Triton kernels do the paper's variant in one piece.
    if variant == "paper" and _chosen(backend, features, narrow) == "triton":
        with checks.without_autocast(features):
            forward = registration.operator(f"{OP}_triton_forward")
            return forward(features, valid, float(scale), radius, renormalize, float(eps), narrow)[0]
    with checks.without_autocast(features):
        wide = features.to(statistics_dtype(features.dtype))
        operands = _hole_operands(wide, valid, scale, radius, variant, eps)
        query, key, value = operands.query, operands.key, operands.value
        if narrow != wide.dtype:  # the paper's variant, whose queries are its keys, and its values the features
            query = key = query.to(narrow)
            value = features.to(narrow)
        attended = shift_attention(
            query,
            key,
            value,
            ~valid,
            operands.key_mask,
            scale=operands.scale,
            radius=operands.radius,
            renormalize=renormalize and variant == "paper",
            backend=backend,
        )
    # Without background there is nothing to fill from.
    fillable = ~valid & valid.flatten(1).any(1)[:, None, None, None]
    return torch.where(fillable, attended.to(features.dtype), features)


def hole_attention_map(
    features: Tensor,
    mask: Tensor,
    *,
    scale: float = 10.0,
    radius: int = 1,
    variant: str = "paper",
    eps: float = 1e-6,
    backend: str = "auto",
) -> Tensor:
    """Finds, for every hole pixel, the background pixel with the largest s' of :func:`hole_attention`.

    The products are float32 or better. Memory is linear in H·W, as that of :func:`shift_attention`. There is no
    gradient.

    Args:
        features: as for :func:`hole_attention`.
        mask: as for :func:`hole_attention`.
        scale: as for :func:`hole_attention`.
        radius: as for :func:`hole_attention`.
        variant: as for :func:`hole_attention`.
        eps: as for :func:`hole_attention`.
        backend: as for :func:`hole_attention`.

    Returns:
        (N, H, W) int64, the flat index y·W + x of that pixel (the first of equals); -1 at background pixels and where
        there is no background.

    Raises:
        ValueError: if shapes, dtypes, devices or options do not fit.
        RuntimeError: if a named backend cannot take the inputs.
    """
    valid = _check_holes("hole_attention_map", features, mask, scale, radius, variant, eps)
    with torch.no_grad(), checks.without_autocast(features):
        wide = features.to(statistics_dtype(features.dtype))
        operands = _hole_operands(wide, valid, scale, radius, variant, eps)
        # The map points at background pixels only, also for the released variant, whose keys are all pixels.
        chosen = backends.choose(SHIFT_ATTENTION, backend, operands.query)
        argmax = reference.shift_attention_argmax if chosen == "reference" else operator("argmax", chosen)
        return argmax(operands.query, operands.key, ~valid, valid, float(operands.scale), operands.radius)


def _check_holes(
    op: str, features: Tensor, mask: Tensor, scale: float, radius: int, variant: str, eps: float
) -> Tensor:
    """Refuses wrong arguments; returns the mask as bool."""
    checks.check_features(op, "features", features)
    checks.check_mask(op, "mask", mask, "features", features, (1,))
    check_options(op, scale, radius)
    checks.check_number(op, "eps", eps)
    if not eps > 0:
        checks.fail(op, f"eps must be positive, got {eps!r}")
    if variant not in VARIANTS:
        checks.fail(op, f"variant must be one of {', '.join(map(repr, VARIANTS))}, got {variant!r}")
    return checks.as_bool(mask)


def _operand_dtype(features: Tensor, variant: str) -> torch.dtype:
    """Returns the dtype of hole_attention's products. Unit vectors are safe in any; the released variant's queries,
    which are sums of raw features, overflow float16."""
    (cast,) = checks.autocast(features)
    narrow = variant == "paper" and features.device.type == "cuda" and cast.dtype in HALVES
    return cast.dtype if narrow else statistics_dtype(features.dtype)


def _chosen(backend: str, features: Tensor, narrow: torch.dtype) -> str:
    """Returns the backend that runs the products in this dtype."""
    return backends.choose(SHIFT_ATTENTION, backend, features.new_empty(0, dtype=narrow))


class _Operands(NamedTuple):
    """Arguments that make shift_attention the hole attention. key_mask None: all pixels are keys."""

    query: Tensor
    key: Tensor
    value: Tensor
    key_mask: Tensor | None
    scale: float
    radius: int


def _hole_operands(x: Tensor, valid: Tensor, scale: float, radius: int, variant: str, eps: float) -> _Operands:
    if variant == "paper":
        unit = x / torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min(eps)
        return _Operands(unit, unit, x, valid, scale, radius)
    keys = torch.where(valid, x, 0.0) + 1e-7
    keys = keys / torch.linalg.vector_norm(keys, dim=1, keepdim=True)
    if radius >= max(x.shape[2:]):  # the rest of the box lies outside the map
        radius = max(x.shape[2:]) - 1
    box = x.new_ones(x.shape[1], 1, 2 * radius + 1, 2 * radius + 1)
    queries = F.conv2d(x, box, padding=radius, groups=x.shape[1])
    return _Operands(queries, keys, keys, None, 1.0, 0)
