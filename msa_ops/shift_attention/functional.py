"""The public function of the attention with shift propagation (Eqs. 6-8 of the paper)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..core import backends, checks
from . import reference
from .autograd import OP, operator


def shift_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_mask: Tensor | None = None,
    key_mask: Tensor | None = None,
    *,
    scale: float = 1.0,
    radius: int = 0,
    renormalize: bool = False,
    backend: str = "auto",
) -> Tensor:
    r"""Softmax attention between the pixels of two maps, whose weights are added up along common shifts.

    Per sample, over pixels p where query_mask and pixels q where key_mask is set::

        s*(p,q)   = softmax over q of  scale · ⟨query(p), key(q)⟩
        s'(p,q)   = Σ_{δ∈{-radius..radius}²} s*(p+δ, q+δ)
        output(p) = Σ_q s'(p,q) · value(q)

    A term is zero where p+δ is not a query, q+δ is not a key, or either lies outside the map. Radius 0 is plain
    attention.

    On CUDA ``auto`` takes the Triton kernels for float16, bfloat16 and float32, and the C++ kernels for float64 and
    where Triton is missing. Statistics and sums are float32 (float64 for float64). Triton multiplies in the dtype of
    the inputs, as torch's own attention does: weights are rounded to it, and so are the scores' gradients of bfloat16,
    but not those of float16; float32 is multiplied as TF32 only if ``torch.backends.cuda.matmul.allow_tf32`` says so.
    The C++ kernels multiply in float32 (float64 for float64). Under autocast, query, key and value are cast as those of
    torch's attention are.

    Work is proportional to queries × keys, per sample; on CUDA without ever waiting for the device. Gradients flow to
    query, key and value; the kernels refuse second-order gradients. The result is deterministic (on the CPU, for a
    given number of threads).

    Extra memory, beside a copy of the inputs and two lists of pixels: on the CPU at most 48 MiB of scores forward and
    24 MiB backward, whatever the size; in Triton, unless the radius is a large part of a large map, the larger of 37
    MiB (24 MiB for float32) and 24 MiB per sample of scores, 1.75 times that backward, the larger of 6 MiB and 4 MiB
    per sample of parts of sums, and float32 sums of the gradients of key and value; in C++ on CUDA nothing. The
    reference keeps all scores for its gradient.

    Args:
        query: (N, C, H, W), floating-point.
        key: (N, C, H, W), the dtype of query.
        value: (N, Cv, H, W), the dtype of query.
        query_mask: (N, 1, H, W), 1 (any non-zero) = takes part; bool, uint8 or floating-point; None: all pixels.
        key_mask: as query_mask, for the keys.
        scale: factor of the scores; finite.
        radius: k ≥ 0, in pixels; larger than the map is legal.
        renormalize: divide by Σ_q s'(p,q).
        backend: ``"auto"``, ``"reference"``, ``"cpu"``, ``"cuda"`` or ``"triton"``; see
            :func:`msa_ops.not_supported_reasons`.

    Returns:
        (N, Cv, H, W) in the dtype of value; zero where query_mask is 0, and where a sample has no key.

    Raises:
        ValueError: if shapes, dtypes, devices or options do not fit.
        RuntimeError: if a named backend cannot take the inputs.
    """
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        checks.check_features(OP, name, tensor)
    query, key, value = checks.autocast(query, key, value)
    checks.check_like(OP, "key", key, "query", query)
    checks.check_like(OP, "value", value, "query", query)
    if key.shape != query.shape:
        checks.fail(OP, f"key must have the shape of query, {checks.shape(query)}, got {checks.shape(key)}")
    if (value.shape[0], *value.shape[2:]) != (query.shape[0], *query.shape[2:]):
        checks.fail(OP, f"value must have batch and size of query, {checks.shape(query)}, got {checks.shape(value)}")
    queries, keys = _mask("query_mask", query_mask, query), _mask("key_mask", key_mask, query)
    check_options(OP, scale, radius)
    checks.check_flag(OP, "renormalize", renormalize)
    chosen = backends.choose(OP, backend, query, key, value)
    if chosen == "reference":
        return reference.shift_attention(query, key, value, queries, keys, float(scale), radius, renormalize)
    forward = operator("forward", chosen)
    return forward(query, key, value, queries, keys, float(scale), radius, renormalize)[0]


def _mask(name: str, mask: Tensor | None, query: Tensor) -> Tensor:
    """Returns the mask as bool; all pixels where it is None."""
    if mask is None:
        return torch.ones((), dtype=torch.bool, device=query.device).expand(query.shape[0], 1, *query.shape[2:])
    checks.check_mask(OP, name, mask, "query", query, (1,))
    return checks.as_bool(mask)


def check_options(op: str, scale: float, radius: int) -> None:
    """Refuses a scale that is not finite, and a radius that is not a size in pixels."""
    if not isinstance(radius, int) or isinstance(radius, bool) or radius < 0:
        checks.fail(op, f"radius must be an integer of at least 0, got {radius!r}")
    if radius > checks.LARGEST_SIZE:
        checks.fail(op, f"radius must be at most {checks.LARGEST_SIZE}, got {radius}")
    checks.check_number(op, "scale", scale)
    if not abs(scale) < math.inf:  # a comparison, so that a symbolic scale compiles
        checks.fail(op, f"scale must be finite, got {scale!r}")
