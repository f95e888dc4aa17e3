"""What torch needs to know of the operators behind partial_conv2d_upcat: shapes, gradients and FLOPs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..core import backends, registration
from ..core.dtypes import statistics_dtype
from ..core.flops import convolution_flops
from ..core.layout import empty_map, is_channels_last_call
from . import form
from .triton import conditions

OP = "partial_conv2d_upcat"


def _fake_forward(
    low: Tensor,
    low_mask: Tensor,
    skip: Tensor,
    skip_mask: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    numerator: int,
    low_is_masked: bool,
    skip_is_masked: bool,
    phases: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    sizes = skip.shape[2:]
    output = empty_map(skip, (skip.shape[0], weight.shape[0], *sizes), is_channels_last_call(skip, weight))
    planes = (skip.shape[0], 1, *sizes)
    ratio = skip.new_empty(planes, dtype=statistics_dtype(skip.dtype))
    return output, skip.new_empty(planes, dtype=torch.bool), ratio


def _fake_backward(
    grad_output: Tensor,
    low: Tensor,
    low_mask: Tensor,
    skip: Tensor,
    skip_mask: Tensor,
    weight: Tensor,
    ratio: Tensor,
    low_is_masked: bool,
    skip_is_masked: bool,
    phases: bool,
    needed: list[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    return (
        empty_map(low, low.shape) if needed[0] else None,
        empty_map(skip, skip.shape) if needed[1] else None,
        empty_map(weight, weight.shape, is_channels_last_call(skip, weight)) if needed[2] else None,
        low.new_empty(weight.shape[0]) if needed[3] else None,
    )


def _setup_context_of(backend: str) -> Callable[..., None]:
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
        low, low_mask, skip, skip_mask, weight, _, _, low_is_masked, skip_is_masked, phases = inputs
        _, new_mask, ratio = output
        ctx.save_for_backward(low, low_mask, skip, skip_mask, weight, ratio)
        ctx.arguments = low_is_masked, skip_is_masked, form.gradient_uses_phases(phases, low, backend)
        ctx.mark_non_differentiable(new_mask, ratio)
        ctx.set_materialize_grads(False)

    return setup_context


def _backward_with(operator: str) -> Callable[..., tuple]:
    def backward(ctx: Any, grad_output: Tensor | None, grad_new_mask: None, grad_ratio: None) -> tuple:
        needed = [ctx.needs_input_grad[i] for i in (0, 2, 4, 5)]
        if grad_output is None or not any(needed):
            return (None,) * 10
        low, low_mask, skip, skip_mask, weight, ratio = ctx.saved_tensors
        grad_low, grad_skip, grad_weight, grad_bias = registration.operator(operator)(
            grad_output, low, low_mask, skip, skip_mask, weight, ratio, *ctx.arguments, needed
        )
        return grad_low, None, grad_skip, None, grad_weight, grad_bias, None, None, None, None

    return backward


def _phases_flops(low: Tensor, skip: Tensor, weight: Tensor) -> tuple[int, int]:
    """Returns the FLOPs of the phases' convolution and of the skip's."""
    n, c1, h, w = low.shape
    c2, c_out = skip.shape[1], weight.shape[0]
    phases = convolution_flops((n, 4 * c_out, h + 1, w + 1), (4 * c_out, c1, 2, 2))
    return phases, convolution_flops((n, c_out, *skip.shape[2:]), (c_out, c2, 3, 3))


def _concatenation_flops(skip: Tensor, weight: Tensor) -> int:
    return convolution_flops((skip.shape[0], weight.shape[0], *skip.shape[2:]), weight.shape)


def _flops_forward(
    low: Tensor,
    low_mask: Tensor,
    skip: Tensor,
    skip_mask: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    numerator: int,
    low_is_masked: bool,
    skip_is_masked: bool,
    phases: bool,
    out_val: tuple[Tensor, Tensor, Tensor],
) -> int:
    return sum(_phases_flops(low, skip, weight)) if phases else _concatenation_flops(skip, weight)


def _flops_backward(
    grad_output: Tensor,
    low: Tensor,
    low_mask: Tensor,
    skip: Tensor,
    skip_mask: Tensor,
    weight: Tensor,
    ratio: Tensor,
    low_is_masked: bool,
    skip_is_masked: bool,
    phases: bool,
    needed: list[bool],
    out_val: tuple[Tensor | None, ...],
) -> int:
    if not phases:
        return ((needed[0] or needed[1]) + needed[2]) * _concatenation_flops(skip, weight)
    of_phases, of_skip = _phases_flops(low, skip, weight)
    return (needed[0] + needed[2]) * of_phases + (needed[1] + needed[2]) * of_skip


def _register(backend: str) -> None:
    """Registers the operators of the compiled kernels or of Triton's."""
    name = f"{OP}_triton" if backend == "triton" else OP

    def triton(direction: str) -> str | None:
        return f"msa_ops.decoder_conv.triton.operators:{direction}" if backend == "triton" else None

    registration.register(
        f"{name}_forward",
        fake=_fake_forward,
        flops=_flops_forward,
        setup_context=_setup_context_of(backend),
        backward=_backward_with(f"{name}_backward"),
        triton=triton("forward"),
        like=f"{OP}_forward",
    )
    registration.register(
        f"{name}_backward",
        fake=_fake_backward,
        flops=_flops_backward,
        gradient_of=OP,
        triton=triton("backward"),
        like=f"{OP}_backward",
    )


backends.add_operator(OP, {"cpu": None, "cuda": None, "triton": conditions.reasons})
_register("compiled")
_register("triton")
