"""What torch needs to know of the operators that compute hole_attention in one piece, which only Triton has: the
normalisation of the features, the attention, and the valid pixels, which pass unchanged."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..core import registration
from ..core.layout import empty_map
from .autograd import count_pairs

OP = "hole_attention"


def _fake_forward(
    features: Tensor, valid: Tensor, scale: float, radius: int, renormalize: bool, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    per_pixel = features.shape[0], features.shape[2] * features.shape[3], 3
    return empty_map(features, features.shape), features.new_empty(per_pixel, dtype=torch.float32)


def _fake_backward(
    grad_output: Tensor,
    features: Tensor,
    valid: Tensor,
    output: Tensor,
    statistics: Tensor,
    scale: float,
    radius: int,
    renormalize: bool,
    eps: float,
    dtype: torch.dtype,
) -> Tensor:
    return empty_map(features, features.shape)


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    features, valid, scale, radius, renormalize, eps, dtype = inputs
    result, statistics = output
    ctx.save_for_backward(features, valid, result, statistics)
    ctx.options = scale, radius, renormalize, eps, dtype
    ctx.mark_non_differentiable(statistics)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_output: Tensor | None, grad_statistics: None) -> tuple:
    if grad_output is None or not ctx.needs_input_grad[0]:
        return (None,) * 7
    features, valid, output, statistics = ctx.saved_tensors
    backward = registration.operator(f"{OP}_triton_backward")
    return backward(grad_output, features, valid, output, statistics, *ctx.options), *(None,) * 6


def _flops_forward(
    features: Tensor,
    valid: Tensor,
    scale: float,
    radius: int,
    renormalize: bool,
    eps: float,
    dtype: torch.dtype,
    out_val: tuple[Tensor, Tensor],
) -> int:
    return 2 * count_pairs(~valid, valid) * 2 * features.shape[1]


def _flops_backward(
    grad_output: Tensor,
    features: Tensor,
    valid: Tensor,
    output: Tensor,
    statistics: Tensor,
    scale: float,
    radius: int,
    renormalize: bool,
    eps: float,
    dtype: torch.dtype,
    out_val: Tensor,
) -> int:
    return 2 * count_pairs(~valid, valid) * 5 * features.shape[1]


# The last argument is the dtype of the products' operands.
registration.register(
    f"{OP}_triton_forward",
    triton="msa_ops.shift_attention.triton.holes:forward",
    schema="(Tensor features, Tensor valid, float scale, int radius, bool renormalize, float eps, ScalarType dtype)"
    " -> (Tensor, Tensor)",
    fake=_fake_forward,
    flops=_flops_forward,
    setup_context=_setup_context,
    backward=_backward,
)
registration.register(
    f"{OP}_triton_backward",
    triton="msa_ops.shift_attention.triton.holes:backward",
    schema="(Tensor grad_output, Tensor features, Tensor valid, Tensor output, Tensor statistics, float scale, "
    "int radius, bool renormalize, float eps, ScalarType dtype) -> Tensor",
    fake=_fake_backward,
    flops=_flops_backward,
    gradient_of=OP,
)
