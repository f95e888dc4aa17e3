"""Partial convolution in its decoder form: of cat(nearest_up2(low), skip), where it pays with neither the upsampled map
nor the concatenation built.

A 3×3 convolution of a nearest-upsampled map reads every small pixel up to four times. Its four output phases (even or
odd row, even or odd column) are 2×2 convolutions of the small map whose taps are sums of the 3×3 taps: 16 instead of
36 multiplications per small pixel and channel pair. All four together are one 2×2 convolution with 4·C_out channels.
On the CPU minimal filtering needs 9 (docs/partial_conv.md). For small maps the operator builds the concatenation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import backends, checks, native, triton_operators
from .partial_conv import (
    convolution_flops,
    fake_map,
    is_channels_last_call,
    refuse_second_order,
    statistics_dtype,
    triton_map_reasons,
)
from .reference import partial_conv as reference

OP = "partial_conv2d_upcat"

#: The phases save 20 multiply-adds per small pixel and pair of channels (minimal filtering 27), and cost the sums of
#: the taps, which is memory traffic and does not depend on the map's size. So they win from some number of small pixels
#: N·h·w on, by backend: on the CPU measured by `python -m benchmarks.operators --suite upcat-rule` on 2 cores; the
#: others on the network's layers on an H100. Triton's kernel builds no concatenation in either form.
MIN_SMALL_PIXELS = {"cpu": 32, "cuda": 4096, "triton": 1536}


def phases_win(low: Tensor, backend: str | None = None) -> bool:
    """Whether a backend (the device's compiled one if None) uses the four-phase form for this small map (N, C, h, w):
    N·h·w ≥ MIN_SMALL_PIXELS."""
    return low.shape[0] * low.shape[2] * low.shape[3] >= MIN_SMALL_PIXELS[backend or low.device.type]


def partial_conv2d_upcat(
    low: Tensor,
    low_mask: Tensor,
    skip: Tensor,
    skip_mask: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    scale: str = "window",
    low_is_masked: bool = False,
    skip_is_masked: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """``partial_conv2d(cat(nearest_up2(low), skip), grouped mask, weight, bias, padding=1)``, for all but small maps
    without the concatenation.

    Args:
        low: (N, C1, h, w), the decoder's map before upsampling; dtypes and strides as for :func:`partial_conv2d`.
        low_mask: (N, 1, h, w), 1 = valid, 0 = hole; bool, uint8 or floating-point.
        skip: (N, C2, 2h, 2w), the encoder's map.
        skip_mask: (N, 1, 2h, 2w).
        weight: (C_out, C1 + C2, 3, 3); the channels of low come first.
        bias: (C_out,) or None.
        scale: ``"window"`` or ``"sum"``, as for :func:`partial_conv2d` with a mask of C1 + C2 channels.
        low_is_masked, skip_is_masked: the caller knows that the map is already 0 under its holes.
        backend: ``"auto"``, ``"reference"``, ``"cpu"``, ``"cuda"`` or ``"triton"``.

    Returns:
        ``(output, new_mask)``: (N, C_out, 2h, 2w), and (N, 1, 2h, 2w) in the dtype of skip_mask.

    Raises:
        ValueError, RuntimeError: as :func:`partial_conv2d`.

    Gradients, determinism and autocast as :func:`partial_conv2d`. The taps are summed in float32 and rounded to the
    weight's dtype. Small maps (see :func:`phases_win`) go through the concatenation, which is then tiny, and built
    again in the backward. Extra memory of the others: one map of the output's size for the phases, and the products
    low ⊙ mask and skip ⊙ mask where they are needed; where the CPU's own convolutions run (docs/partial_conv.md) none
    of these, but the transformed weight, up to 1.8 times its size (in the backward twice), and a block of tiles, 4 MiB
    or a row of tiles.
    """
    for name, value in (("low", low), ("skip", skip), ("weight", weight)):
        checks.check_features(OP, name, value)
    low, skip, weight, bias = checks.autocast(low, skip, weight, bias)
    checks.check_like(OP, "skip", skip, "low", low)
    checks.check_like(OP, "weight", weight, "low", low)
    checks.check_bias(OP, bias, weight)
    checks.check_scale(OP, scale)
    n, c1, h, w = low.shape
    if skip.shape[0] != n or skip.shape[2] != 2 * h or skip.shape[3] != 2 * w:
        checks.fail(
            OP, f"skip must have shape (N, C, 2h, 2w) with N={n}, 2h={2 * h}, 2w={2 * w}, got {checks.shape(skip)}"
        )
    if tuple(weight.shape[1:]) != (c1 + skip.shape[1], 3, 3):
        checks.fail(OP, f"weight must have shape (C_out, {c1 + skip.shape[1]}, 3, 3), got {checks.shape(weight)}")
    checks.check_mask(OP, "low_mask", low_mask, "low", low, (1,))
    checks.check_mask(OP, "skip_mask", skip_mask, "skip", skip, (1,))
    low_valid = low_mask if low_mask.dtype == torch.bool else low_mask != 0
    skip_valid = skip_mask if skip_mask.dtype == torch.bool else skip_mask != 0

    chosen = backends.choose(OP, backend, low, low_valid, skip, skip_valid, weight, bias)
    if chosen == "reference":
        output, new_mask = reference.partial_conv2d_upcat(
            low, low_valid, skip, skip_valid, weight, bias, scale == "sum", low_is_masked, skip_is_masked
        )
    else:
        numerator = 1 if scale == "sum" else 9 * weight.shape[1]
        ops = torch.ops.msa_ops
        forward = ops.partial_conv2d_upcat_triton_forward if chosen == "triton" else ops.partial_conv2d_upcat_forward
        maps, known = (low, low_valid, skip, skip_valid), (low_is_masked, skip_is_masked)
        output, new_mask, _ = forward(*maps, weight, bias, numerator, *known, phases_win(low, chosen))
    return output, new_mask.to(skip_mask.dtype)


# ---- the operators behind it ---------------------------------------------------------------------------------------


def _fake_forward(low, low_mask, skip, skip_mask, weight, bias, numerator, low_is_masked, skip_is_masked, phases):
    sizes = skip.shape[2:]
    output = fake_map(skip, (skip.shape[0], weight.shape[0], *sizes), is_channels_last_call(skip, weight))
    planes = (skip.shape[0], 1, *sizes)
    ratio = skip.new_empty(planes, dtype=statistics_dtype(skip.dtype))
    return output, skip.new_empty(planes, dtype=torch.bool), ratio


def _fake_backward(
    grad_output, low, low_mask, skip, skip_mask, weight, ratio, low_is_masked, skip_is_masked, phases, needed
):
    return (
        fake_map(low, low.shape) if needed[0] else None,
        fake_map(skip, skip.shape) if needed[1] else None,
        fake_map(weight, weight.shape, is_channels_last_call(skip, weight)) if needed[2] else None,
        low.new_empty(weight.shape[0]) if needed[3] else None,
    )


def _setup_context(ctx, inputs, output):
    low, low_mask, skip, skip_mask, weight, _, _, low_is_masked, skip_is_masked, phases = inputs
    _, new_mask, ratio = output
    ctx.save_for_backward(low, low_mask, skip, skip_mask, weight, ratio)
    ctx.arguments = low_is_masked, skip_is_masked, phases
    ctx.mark_non_differentiable(new_mask, ratio)
    ctx.set_materialize_grads(False)


def _setup_triton_context(ctx, inputs, output):
    """What the Triton backward leaves to the compiled one goes by that one's rule."""
    _setup_context(ctx, (*inputs[:-1], phases_win(inputs[0])), output)


def _backward_with(operator: str):
    def backward(ctx, grad_output, grad_new_mask, grad_ratio):
        needed = [ctx.needs_input_grad[i] for i in (0, 2, 4, 5)]
        if grad_output is None or not any(needed):
            return (None,) * 10
        grads = getattr(torch.ops.msa_ops, operator)(grad_output, *ctx.saved_tensors, *ctx.arguments, needed)
        grad_low, grad_skip, grad_weight, grad_bias = grads
        return grad_low, None, grad_skip, None, grad_weight, grad_bias, None, None, None, None

    return backward


def _phases_flops(low_shape, skip_shape, weight_shape) -> tuple[int, int]:
    """FLOPs of the phase convolution and of the skip convolution."""
    n, c1, h, w = low_shape
    c2, c_out = skip_shape[1], weight_shape[0]
    phases = convolution_flops((n, 4 * c_out, h + 1, w + 1), (4 * c_out, c1, 2, 2))
    return phases, convolution_flops((n, c_out, *skip_shape[2:]), (c_out, c2, 3, 3))


def _concatenation_flops(skip_shape, weight_shape) -> int:
    return convolution_flops((skip_shape[0], weight_shape[0], *skip_shape[2:]), weight_shape)


def _flops_forward(low_shape, low_mask_shape, skip_shape, skip_mask_shape, weight_shape, *args, **kwargs) -> int:
    if not args[-1]:
        return _concatenation_flops(skip_shape, weight_shape)
    return sum(_phases_flops(low_shape, skip_shape, weight_shape))


def _flops_backward(
    grad_shape, low_shape, low_mask_shape, skip_shape, skip_mask_shape, weight_shape, *args, **kwargs
) -> int:
    with_phases, needed = args[-2:]
    if not with_phases:
        return ((needed[0] or needed[1]) + needed[2]) * _concatenation_flops(skip_shape, weight_shape)
    phases, skip = _phases_flops(low_shape, skip_shape, weight_shape)
    return (needed[0] + needed[2]) * phases + (needed[1] + needed[2]) * skip


def _triton_reasons(low, low_mask=None, skip=None, *_) -> list[str]:
    return triton_map_reasons(low, *([] if skip is None else [skip]))


def _register() -> None:
    from torch.utils.flop_counter import register_flop_formula

    backends.CONDITIONS[OP, "triton"] = _triton_reasons
    for direction in ("forward", "backward"):
        triton_operators.define(f"{OP}_triton_{direction}", f"{OP}_{direction}", "partial_conv", f"upcat_{direction}")
    for name, setup in ((OP, _setup_context), (f"{OP}_triton", _setup_triton_context)):
        forward, backward = f"{name}_forward", f"{name}_backward"
        torch.library.register_fake(f"msa_ops::{forward}", _fake_forward)
        torch.library.register_fake(f"msa_ops::{backward}", _fake_backward)
        torch.library.register_autograd(f"msa_ops::{forward}", _backward_with(backward), setup_context=setup)
        refuse_second_order(backward)
        register_flop_formula(getattr(torch.ops.msa_ops, forward))(_flops_forward)
        register_flop_formula(getattr(torch.ops.msa_ops, backward))(_flops_backward)


if native.MISSING["cpu"] is None:
    _register()
