"""What torch needs to know of the operators behind shift_attention: shapes, gradients and FLOPs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..core import backends, registration
from ..core.dtypes import HALVES, statistics_dtype
from ..core.layout import empty_map

OP = "shift_attention"


def operator(direction: str, backend: str) -> Callable[..., Any]:
    """Returns the registered operator of a direction (``"forward"``, ``"backward"`` or ``"argmax"``): one for the
    compiled kernels, which torch dispatches on the device, and one for Triton's."""
    return registration.operator(_name(direction, backend))


def _name(direction: str, backend: str) -> str:
    return f"{OP}_triton_{direction}" if backend == "triton" else f"{OP}_{direction}"


def _fake_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_mask: Tensor,
    key_mask: Tensor,
    scale: float,
    radius: int,
    renormalize: bool,
) -> tuple[Tensor, Tensor]:
    per_pixel = query.shape[0], query.shape[2] * query.shape[3], 3
    return empty_map(value, value.shape), query.new_empty(per_pixel, dtype=statistics_dtype(query.dtype))


def _fake_backward(
    grad_output: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_mask: Tensor,
    key_mask: Tensor,
    output: Tensor,
    statistics: Tensor,
    scale: float,
    radius: int,
    renormalize: bool,
    needed: list[bool],
) -> tuple[Tensor | None, ...]:
    return tuple(empty_map(t, t.shape) if need else None for t, need in zip((query, key, value), needed, strict=True))


def _fake_argmax(query: Tensor, key: Tensor, query_mask: Tensor, key_mask: Tensor, scale: float, radius: int) -> Tensor:
    return query.new_empty((query.shape[0], *query.shape[2:]), dtype=torch.int64)


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    query, key, value, query_mask, key_mask, scale, radius, renormalize = inputs
    result, statistics = output
    ctx.save_for_backward(query, key, value, query_mask, key_mask, result, statistics)
    ctx.arguments = scale, radius, renormalize
    ctx.mark_non_differentiable(statistics)
    ctx.set_materialize_grads(False)


def _backward_of(backend: str) -> Callable[..., tuple]:
    def backward(ctx: Any, grad_output: Tensor | None, grad_statistics: None) -> tuple:
        needed = list(ctx.needs_input_grad[:3])
        if grad_output is None or not any(needed):
            return (None,) * 8
        query, key, value, query_mask, key_mask, output, statistics = ctx.saved_tensors
        grads = operator("backward", backend)(
            grad_output, query, key, value, query_mask, key_mask, output, statistics, *ctx.arguments, needed
        )
        return *grads, *(None,) * 5

    return backward


def count_pairs(query_mask: Tensor, key_mask: Tensor) -> int:
    """Returns queries × keys, added up over samples; all pixels of a map whose masks hold no data (fake, meta)."""
    if query_mask.is_meta or isinstance(query_mask, torch._subclasses.FakeTensor):
        return query_mask[:, 0].numel() * query_mask.shape[2] * query_mask.shape[3]
    return int((query_mask.flatten(1).sum(1) * key_mask.flatten(1).sum(1)).sum())


def _flops_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_mask: Tensor,
    key_mask: Tensor,
    scale: float,
    radius: int,
    renormalize: bool,
    out_val: tuple[Tensor, Tensor],
) -> int:
    """Counts the two products, Q Kᵀ and s' V; scores that a kernel computes again do not count."""
    return 2 * count_pairs(query_mask, key_mask) * (query.shape[1] + value.shape[1])


def _flops_backward(
    grad_output: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_mask: Tensor,
    key_mask: Tensor,
    output: Tensor,
    statistics: Tensor,
    scale: float,
    radius: int,
    renormalize: bool,
    needed: list[bool],
    out_val: tuple[Tensor | None, ...],
) -> int:
    """Counts Q Kᵀ, which is computed again, and the products of the gradients that are needed."""
    score_products = (1 + needed[0] + needed[1]) * query.shape[1]
    value_products = (bool(needed[0] or needed[1]) + needed[2]) * value.shape[1]
    return 2 * count_pairs(query_mask, key_mask) * (score_products + value_products)


def _register(backend: str) -> None:
    """Registers the operators of the compiled kernels or of Triton's."""

    def triton(direction: str) -> str | None:
        return f"msa_ops.shift_attention.triton.operators:{direction}" if backend == "triton" else None

    registration.register(
        _name("forward", backend),
        fake=_fake_forward,
        flops=_flops_forward,
        setup_context=_setup_context,
        backward=_backward_of(backend),
        triton=triton("forward"),
        like=f"{OP}_forward",
    )
    registration.register(
        _name("backward", backend),
        fake=_fake_backward,
        flops=_flops_backward,
        gradient_of=OP,
        triton=triton("backward"),
        like=f"{OP}_backward",
    )
    registration.register(_name("argmax", backend), fake=_fake_argmax, triton=triton("argmax"), like=f"{OP}_argmax")


backends.add_operator(OP, {"cpu": None, "cuda": None, "triton": None}, triton_first=(torch.float32, *HALVES))
_register("compiled")
_register("triton")
