"""Attention with shift propagation (Eqs. 6-8 of the paper): the general operator, the paper's attention of holes over
background built on it, and its map."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import backends, checks, native, triton_operators
from .partial_conv import fake_map, refuse_second_order, statistics_dtype
from .reference import pixel_attention as reference

VARIANTS = ("paper", "released")


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

    Terms with p+δ not a query, q+δ not a key, or either outside the map are zero. Radius 0 is plain attention.

    Args:
        query, key: (N, C, H, W), floating-point.
        value: (N, Cv, H, W), the dtype of query.
        query_mask, key_mask: (N, 1, H, W), 1 (any non-zero) = takes part; bool, uint8 or floating-point; None: all.
        scale: finite.
        radius: k ≥ 0; larger than the map is legal.
        renormalize: divide by Σ_q s'(p,q).
        backend: ``"auto"``, ``"reference"``, ``"cpu"``, ``"cuda"`` or ``"triton"`` (see :mod:`msa_ops.backends`).

    Returns:
        (N, Cv, H, W) in the dtype of value; zero where query_mask is 0, and where a sample has no key.

    Raises:
        ValueError: shapes, dtypes, devices or options that do not fit.
        RuntimeError: a named backend that cannot take the inputs.

    On CUDA ``auto`` takes the Triton kernels for float16, bfloat16 and float32, the C++ kernels for float64 and where
    Triton is missing. Statistics and sums are float32 (float64 for float64). Triton multiplies in the dtype of the
    inputs, as torch's own attention does: weights are rounded to it, and so are the scores' gradients of bfloat16, but
    not those of float16; float32 is multiplied as TF32 only if ``torch.backends.cuda.matmul.allow_tf32`` says so. The
    C++ kernels multiply in float32 (float64 for float64). Under autocast, query, key and value are cast as those of
    torch's attention are.

    Work is proportional to queries × keys, per sample; on CUDA without ever waiting for the device. Gradients flow to
    query, key and value; second order is refused by the kernels. Deterministic (on the CPU, for a given number of
    threads). Extra memory, beyond a copy of the inputs and two lists of pixels: on the CPU at most 48 MiB of scores
    forward, 24 MiB backward, whatever the size; in Triton, unless the radius is a large part of a large map, the larger
    of 37 MiB (24 MiB for float32) and 24 MiB per sample of scores, 1.75 times that backward, the larger of 6 MiB and
    4 MiB per sample of parts of sums, and float32 sums of the gradients of key and value; in C++ on CUDA nothing. The
    reference keeps all scores for its gradient.
    """
    op = "shift_attention"
    query, key, value = checks.autocast(query, key, value)
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        checks.check_features(op, name, tensor)
    checks.check_like(op, "key", key, "query", query)
    checks.check_like(op, "value", value, "query", query)
    if key.shape != query.shape:
        checks.fail(op, f"key must have the shape of query, {checks.shape(query)}, got {checks.shape(key)}")
    if (value.shape[0], *value.shape[2:]) != (query.shape[0], *query.shape[2:]):
        checks.fail(op, f"value must have batch and size of query, {checks.shape(query)}, got {checks.shape(value)}")
    masks = []
    for name, mask in (("query_mask", query_mask), ("key_mask", key_mask)):
        if mask is None:
            mask = torch.ones((), dtype=torch.bool, device=query.device).expand(query.shape[0], 1, *query.shape[2:])
        checks.check_mask(op, name, mask, "query", query, (1,))
        masks.append(mask if mask.dtype == torch.bool else mask != 0)
    _check_options(op, scale, radius)
    arguments = (query, key, value, *masks, float(scale), radius, renormalize)
    chosen = backends.choose(op, backend, query, key, value)
    if chosen == "reference":
        return reference.shift_attention(*arguments)
    return _operator("forward", chosen)(*arguments)[0]


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

    Args:
        features: φ, (N, C, H, W), floating-point.
        mask: (N, 1, H, W), 1 (any non-zero) = valid, 0 = hole; bool, uint8 or floating-point.
        scale: λ, the softmax scale; finite.
        radius: k, the propagation radius; 0 switches Eq. 8 off.
        renormalize: divide by Σ_q s'(p,q), so that the weights of every hole pixel add up to 1.
        variant: ``"paper"`` as above, or ``"released"``, the closed form of the authors' code: softmax over all q of
            ⟨Σ_δ φ(p+δ), k(q)⟩ with keys and values k = (mask·φ + 1e-7)/‖·‖; scale, renormalize and eps unused.
        eps: norms below it count as eps; features of zero norm are legal.
        backend: as for :func:`shift_attention`.

    Returns:
        (N, C, H, W) in the dtype of features. A sample without background, or without holes, comes back unchanged.

    Raises:
        ValueError, RuntimeError: as :func:`shift_attention`.

    Gradients flow to features through queries, keys and values. float16 and bfloat16 features (float32 ones under
    autocast too) are multiplied as such where tensor cores take them, which is on CUDA in the paper's variant;
    everything else is float32 or better. Memory, determinism and cost: see :func:`shift_attention`.
    """
    valid = _check_holes("hole_attention", features, mask, scale, radius, variant, eps)
    narrow = _operand_dtype(features, variant)
    # The Triton kernels do the paper's variant in one piece.
    if variant == "paper" and _chosen(backend, features, narrow) == "triton":
        with checks.without_autocast(features):
            options = float(scale), radius, renormalize, float(eps), narrow
            return torch.ops.msa_ops.hole_attention_triton_forward(features, valid, *options)[0]
    with checks.without_autocast(features):
        wide = features.to(statistics_dtype(features.dtype))
        query, key, value, keys, options = _hole_operands(wide, valid, scale, radius, variant, eps)
        if narrow != wide.dtype:  # the paper's variant, whose queries are its keys, and its values the features
            query = key = query.to(narrow)
            value = features.to(narrow)
        renormalize = renormalize and variant == "paper"
        attended = shift_attention(query, key, value, ~valid, keys, renormalize=renormalize, backend=backend, **options)
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
    """Where every hole pixel looks: the background pixel with the largest s' of :func:`hole_attention`.

    Args:
        features, mask, scale, radius, variant, eps, backend: as for :func:`hole_attention`; here always in float32 or
            better.

    Returns:
        (N, H, W) int64, the flat index y·W + x of that pixel (the first of equals); -1 at background pixels and where
        there is no background. Memory is linear in H·W, as :func:`shift_attention`'s. No gradient.

    Raises:
        ValueError: as :func:`hole_attention`.
    """
    valid = _check_holes("hole_attention_map", features, mask, scale, radius, variant, eps)
    with torch.no_grad(), checks.without_autocast(features):
        wide = features.to(statistics_dtype(features.dtype))
        query, key, _, _, options = _hole_operands(wide, valid, scale, radius, variant, eps)
        # The map points at background pixels only, also for the released variant, whose keys are all pixels.
        arguments = (query, key, ~valid, valid, float(options["scale"]), options["radius"])
        chosen = backends.choose("shift_attention", backend, query)
        if chosen == "reference":
            return reference.shift_attention_argmax(*arguments)
        return _operator("argmax", chosen)(*arguments)


def _check_options(op: str, scale: float, radius: int) -> None:
    if not isinstance(radius, int) or isinstance(radius, bool) or radius < 0:
        checks.fail(op, f"radius must be an integer of at least 0, got {radius!r}")
    if not abs(scale) < math.inf:  # a comparison, so that a symbolic scale compiles
        checks.fail(op, f"scale must be finite, got {scale!r}")


def _check_holes(
    op: str, features: Tensor, mask: Tensor, scale: float, radius: int, variant: str, eps: float
) -> Tensor:
    checks.check_features(op, "features", features)
    checks.check_mask(op, "mask", mask, "features", features, (1,))
    _check_options(op, scale, radius)
    if not eps > 0:
        checks.fail(op, f"eps must be positive, got {eps!r}")
    if variant not in VARIANTS:
        checks.fail(op, f"variant must be one of {', '.join(map(repr, VARIANTS))}, got {variant!r}")
    return mask if mask.dtype == torch.bool else mask != 0


def _operand_dtype(features: Tensor, variant: str) -> torch.dtype:
    """The dtype of hole_attention's products. Unit vectors are safe in any; the released variant's queries, sums of
    raw features, overflow float16."""
    (cast,) = checks.autocast(features)
    narrow = variant == "paper" and features.device.type == "cuda" and cast.dtype in backends.HALVES
    return cast.dtype if narrow else statistics_dtype(features.dtype)


def _chosen(backend: str, features: Tensor, narrow: torch.dtype) -> str:
    return backends.choose("shift_attention", backend, features.new_empty(0, dtype=narrow))


def _hole_operands(
    x: Tensor, valid: Tensor, scale: float, radius: int, variant: str, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, dict]:
    """Query, key, value, key mask (None: all) and options that make shift_attention the hole attention."""
    if variant == "paper":
        unit = x / torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min(eps)
        return unit, unit, x, valid, {"scale": scale, "radius": radius}
    keys = torch.where(valid, x, 0.0) + 1e-7
    keys = keys / torch.linalg.vector_norm(keys, dim=1, keepdim=True)
    box = x.new_ones(x.shape[1], 1, 2 * radius + 1, 2 * radius + 1)
    return F.conv2d(x, box, padding=radius, groups=x.shape[1]), keys, keys, None, {"scale": 1.0, "radius": 0}


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


# ---- the operators behind it ---------------------------------------------------------------------------------------


def _fake_forward(query, key, value, query_mask, key_mask, scale, radius, renormalize):
    per_pixel = query.shape[0], query.shape[2] * query.shape[3], 3
    return fake_map(value, value.shape), query.new_empty(per_pixel, dtype=statistics_dtype(query.dtype))


def _fake_backward(
    grad_output,
    query,
    key,
    value,
    query_mask,
    key_mask,
    output,
    statistics,
    scale,
    radius,
    renormalize,
    needed,
):
    return tuple(fake_map(t, t.shape) if need else None for t, need in zip((query, key, value), needed, strict=True))


def _fake_argmax(query, key, query_mask, key_mask, scale, radius):
    return query.new_empty((query.shape[0], *query.shape[2:]), dtype=torch.int64)


def _setup_context(ctx, inputs, output):
    *tensors, scale, radius, renormalize = inputs
    result, statistics = output
    ctx.save_for_backward(*tensors, result, statistics)
    ctx.arguments = scale, radius, renormalize
    ctx.mark_non_differentiable(statistics)
    ctx.set_materialize_grads(False)


def _backward_with(backend: str):
    def backward(ctx, grad_output, grad_statistics):
        needed = list(ctx.needs_input_grad[:3])
        if grad_output is None or not any(needed):
            return (None,) * 8
        grads = _operator("backward", backend)(grad_output, *ctx.saved_tensors, *ctx.arguments, needed)
        return *grads, *(None,) * 5

    return backward


def _pairs(query_mask: Tensor, key_mask: Tensor) -> int:
    """Queries × keys, added up over samples; all pixels of a map whose masks hold no data (fake, meta)."""
    if query_mask.is_meta or isinstance(query_mask, torch._subclasses.FakeTensor):
        return query_mask[:, 0].numel() * query_mask.shape[2] * query_mask.shape[3]
    return int((query_mask.flatten(1).sum(1) * key_mask.flatten(1).sum(1)).sum())


def _flops_forward(query, key, value, query_mask, key_mask, *args, **kwargs) -> int:
    """Of the two products, Q Kᵀ and s' V; scores that a kernel makes again do not count."""
    return 2 * _pairs(query_mask, key_mask) * (query.shape[1] + value.shape[1])


def _flops_backward(grad_output, query, key, value, query_mask, key_mask, *args, **kwargs) -> int:
    """Of Q Kᵀ, made again, and the products of the asked-for gradients."""
    needed = args[-1]
    score_products = (1 + needed[0] + needed[1]) * query.shape[1]
    value_products = (bool(needed[0] or needed[1]) + needed[2]) * value.shape[1]
    return 2 * _pairs(query_mask, key_mask) * (score_products + value_products)


def _name(direction: str, backend: str) -> str:
    return f"shift_attention_{'triton_' if backend == 'triton' else ''}{direction}"


def _operator(direction: str, backend: str):
    """The registered operator: one for the compiled kernels, which dispatch on the device, one for Triton's."""
    return getattr(torch.ops.msa_ops, _name(direction, backend))


def _register(backend: str) -> None:
    from torch.utils.flop_counter import register_flop_formula

    directions = ("forward", "backward", "argmax")
    if backend == "triton":
        for direction in directions:
            like = _name(direction, "cuda")
            triton_operators.define(_name(direction, backend), like, "pixel_attention", direction)
    name = {direction: f"msa_ops::{_name(direction, backend)}" for direction in directions}
    torch.library.register_fake(name["forward"], _fake_forward)
    torch.library.register_fake(name["backward"], _fake_backward)
    torch.library.register_fake(name["argmax"], _fake_argmax)
    torch.library.register_autograd(name["forward"], _backward_with(backend), setup_context=_setup_context)
    refuse_second_order(_name("backward", backend))
    register_flop_formula(_operator("forward", backend), get_raw=True)(_flops_forward)
    register_flop_formula(_operator("backward", backend), get_raw=True)(_flops_backward)


# hole_attention's paper variant, on the Triton kernels: normalisation, attention and what passes by in one operator.
# The last argument is the dtype of the products' operands.
_HOLES = {
    "forward": "(Tensor features, Tensor valid, float scale, int radius, bool renormalize, float eps, "
    "ScalarType dtype) -> (Tensor, Tensor)",
    "backward": "(Tensor grad_output, Tensor features, Tensor valid, Tensor output, Tensor statistics, float scale, "
    "int radius, bool renormalize, float eps, ScalarType dtype) -> Tensor",
}


def _fake_holes_forward(features, valid, *options):
    per_pixel = features.shape[0], features.shape[2] * features.shape[3], 3
    return fake_map(features, features.shape), features.new_empty(per_pixel, dtype=torch.float32)


def _fake_holes_backward(grad_output, features, *args):
    return fake_map(features, features.shape)


def _setup_holes(ctx, inputs, output):
    features, valid, *ctx.options = inputs
    ctx.save_for_backward(features, valid, *output)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward_holes(ctx, grad_output, grad_statistics):
    if grad_output is None or not ctx.needs_input_grad[0]:
        return (None,) * 7
    backward = torch.ops.msa_ops.hole_attention_triton_backward
    return backward(grad_output, *ctx.saved_tensors, *ctx.options), *(None,) * 6


def _flops_holes_forward(features, valid, *args, **kwargs) -> int:
    return 2 * _pairs(~valid, valid) * 2 * features.shape[1]


def _flops_holes_backward(grad_output, features, valid, *args, **kwargs) -> int:
    return 2 * _pairs(~valid, valid) * 5 * features.shape[1]


def _register_holes() -> None:
    from torch.utils.flop_counter import register_flop_formula

    for direction, schema in _HOLES.items():
        triton_operators.define_new(f"hole_attention_triton_{direction}", schema, "attention_holes", direction)
    name = "msa_ops::hole_attention_triton_"
    torch.library.register_fake(name + "forward", _fake_holes_forward)
    torch.library.register_fake(name + "backward", _fake_holes_backward)
    torch.library.register_autograd(name + "forward", _backward_holes, setup_context=_setup_holes)
    refuse_second_order("hole_attention_triton_backward")
    operators = torch.ops.msa_ops.hole_attention_triton_forward, torch.ops.msa_ops.hole_attention_triton_backward
    for operator, formula in zip(operators, (_flops_holes_forward, _flops_holes_backward), strict=True):
        register_flop_formula(operator, get_raw=True)(formula)


if native.MISSING["cpu"] is None:
    _register("cuda")
    _register("triton")
    _register_holes()
