"""What torch needs to know of the operators behind partial_conv2d: shapes, gradients and FLOPs."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..core import backends, registration
from ..core.dtypes import statistics_dtype
from ..core.flops import convolution_flops
from ..core.layout import empty_map, is_channels_last_call
from .triton import conditions

OP = "partial_conv2d"


def _fake_forward(
    input: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    plane_channels: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    numerator: int,
    input_is_masked: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    sizes = [
        (size + 2 * pad - d * (k - 1) - 1) // step + 1
        for size, pad, d, k, step in zip(input.shape[2:], padding, dilation, weight.shape[2:], stride, strict=True)
    ]
    planes = (input.shape[0], 1, *sizes)
    return (
        empty_map(input, (input.shape[0], weight.shape[0], *sizes), is_channels_last_call(input, weight)),
        input.new_empty(planes, dtype=mask.dtype),
        input.new_empty(planes, dtype=statistics_dtype(input.dtype)),
    )


def _fake_backward(
    grad_output: Tensor,
    input: Tensor,
    mask: Tensor,
    weight: Tensor,
    ratio: Tensor,
    plane_channels: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    input_is_masked: bool,
    needed: list[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    return (
        empty_map(input, input.shape) if needed[0] else None,
        empty_map(weight, weight.shape, is_channels_last_call(input, weight)) if needed[1] else None,
        input.new_empty(weight.shape[0]) if needed[2] else None,
    )


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    input, mask, weight, _, plane_channels, stride, padding, dilation, groups, _, input_is_masked = inputs
    _, new_mask, ratio = output
    ctx.save_for_backward(input, mask, weight, ratio)
    ctx.arguments = plane_channels, stride, padding, dilation, groups, input_is_masked
    ctx.mark_non_differentiable(new_mask, ratio)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_output: Tensor | None, grad_new_mask: None, grad_ratio: None) -> tuple:
    needed = [ctx.needs_input_grad[i] for i in (0, 2, 3)]
    if grad_output is None or not any(needed):
        return (None,) * 11
    input, mask, weight, ratio = ctx.saved_tensors
    grad_input, grad_weight, grad_bias = registration.operator(f"{OP}_backward")(
        grad_output, input, mask, weight, ratio, *ctx.arguments, needed
    )
    return grad_input, None, grad_weight, grad_bias, *(None,) * 7


def _flops_forward(
    input: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    plane_channels: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    numerator: int,
    input_is_masked: bool,
    out_val: tuple[Tensor, Tensor, Tensor],
) -> int:
    return convolution_flops(out_val[0].shape, weight.shape)


def _flops_backward(
    grad_output: Tensor,
    input: Tensor,
    mask: Tensor,
    weight: Tensor,
    ratio: Tensor,
    plane_channels: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    input_is_masked: bool,
    needed: list[bool],
    out_val: tuple[Tensor, Tensor, Tensor],
) -> int:
    return (needed[0] + needed[1]) * convolution_flops(grad_output.shape, weight.shape)


backends.add_operator(OP, {"cpu": None, "cuda": None, "triton": conditions.reasons})
registration.register(
    f"{OP}_forward", fake=_fake_forward, flops=_flops_forward, setup_context=_setup_context, backward=_backward
)
registration.register(
    f"{OP}_triton_forward",
    triton="msa_ops.partial_conv.triton.operators:forward",
    like=f"{OP}_forward",
    fake=_fake_forward,
    flops=_flops_forward,
    setup_context=_setup_context,
    backward=_backward,
)
registration.register(f"{OP}_backward", fake=_fake_backward, flops=_flops_backward, gradient_of=OP)
