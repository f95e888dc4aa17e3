"""Fused partial convolution (Liu et al. 2018; Eqs. 1-5 of the paper): the public function, and what torch needs to know
of the operators behind it (shapes, gradients, FLOPs).

One box filter over the mask planes, one product x ⊙ m, the library's convolution, one in-place epilogue; for
channels_last maps, convolutions of our own where they win, which read the mask themselves: on the CPU, and in Triton.
`docs/partial_conv.md` says what runs when, `csrc/partial_conv/` holds the kernels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from . import backends, checks, native, triton_operators
from .reference import partial_conv as reference

GroupedMask = Sequence[tuple[int, Tensor]]

OP = "partial_conv2d"
TRITON_MOST_TAPS = 63  # of a window whose valid taps are the bits of one integer
MOST_GROUPS = 16  # planes of different widths that the CUDA kernels take; more become one plane per channel


def partial_conv2d(
    input: Tensor,
    mask: Tensor | GroupedMask,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    *,
    scale: str = "window",
    input_is_masked: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    r"""Partial convolution: a convolution of the valid pixels, renormalised by how many of them the window held.

    With s(p) the number of valid mask entries in the window at p (zero padding is hole) and E the number of entries of
    a full window (kernel height × width, times the channels of the mask)::

        output(p)   = conv(input ⊙ mask, weight)(p) · E/s(p) + bias     where s(p) > 0, else 0        (Eqs. 1, 2, 4)
        new_mask(p) = 1 where s(p) > 0, else 0                                                        (Eqs. 3, 5)

    Args:
        input: (N, C, H, W), float64, float32, float16 or bfloat16; contiguous, channels_last or any strides. Values
            under a hole are never used, not even NaN or inf.
        mask: 1 (any non-zero) = valid, 0 = hole; bool, uint8 or floating-point. One plane (N, 1, H, W); one per channel
            (N, C, H, W), where an expanded view of one plane costs no more than the plane; or *grouped*, for an input
            that is a concatenation: a list of ``(channels, (N, 1, H, W))`` pairs whose channels add up to C.
        weight: (C_out, C/groups, kH, kW), the dtype of input.
        bias: (C_out,) or None.
        stride, padding, dilation, groups: as in :func:`torch.nn.functional.conv2d`, with ``"same"`` and ``"valid"``.
        scale: ``"window"`` as above; ``"sum"`` divides by s(p) alone (checkpoints of a common community layer need it).
        input_is_masked: the caller knows that input is already 0 under every hole; the product input ⊙ mask is then
            skipped where it costs anything, and its counterpart in the gradient is: the result is that of
            conv(input)·E/s.
        backend: ``"auto"``, ``"reference"``, ``"cpu"``, ``"cuda"`` or ``"triton"``; see :mod:`msa_ops.backends`.

    Returns:
        ``(output, new_mask)``: (N, C_out, H', W') in the dtype of input, and (N, 1, H', W') in the dtype of the mask.

    Raises:
        ValueError: shapes, dtypes, devices or options that do not fit; named before any work is done.
        RuntimeError: a named backend that cannot take the inputs.

    Gradients flow to input, weight and bias; masks carry none; second order is refused. Deterministic wherever torch's
    convolution is (``torch.use_deterministic_algorithms`` is honoured); TF32 only where torch's own switch allows it.
    Under autocast, input, weight and bias are cast as conv2d's are. Extra memory beside the output: one copy of input
    (none with ``input_is_masked``) during the call, and a few planes; the backward makes the same copy again rather
    than keeping it. Where the CPU's own convolutions run (docs/partial_conv.md) and the mask is one plane, there is no
    copy of input; there are the transformed weight, up to 2.8 times its size (in the backward twice), and a block of
    tiles, 4 MiB or a row of tiles. The Triton kernel, which ``auto`` takes for float16 and bfloat16 on CUDA, makes no
    copy of input in the forward; small maps take the float32 parts of a split sum. It is compiled when a combination of
    shapes is first met, which takes a second or two and is kept on disk. An empty batch gives an empty result.
    """
    checks.check_features(OP, "input", input)
    checks.check_features(OP, "weight", weight)
    input, weight, bias = checks.autocast(input, weight, bias)
    checks.check_like(OP, "weight", weight, "input", input)
    checks.check_bias(OP, bias, weight)
    checks.check_scale(OP, scale)
    strides, dilations = checks.pair(OP, "stride", stride, 1), checks.pair(OP, "dilation", dilation, 1)
    _check_groups(input, weight, groups)
    planes, plane_channels, entries = _mask_planes(mask, input)
    mask_dtype = mask.dtype if isinstance(mask, Tensor) else mask[0][1].dtype
    kernel = weight.shape[2:]
    if isinstance(padding, str):
        input, planes, paddings = _pad_by_name(padding, input, planes, kernel, strides, dilations)
    else:
        paddings = checks.pair(OP, "padding", padding, 0)
    for axis, name in ((0, "height"), (1, "width")):
        reach, size = dilations[axis] * (kernel[axis] - 1) + 1, input.shape[2 + axis] + 2 * paddings[axis]
        if kernel[axis] < 1 or reach > size:
            checks.fail(OP, f"the dilated kernel's {name}, {reach}, must not exceed that of the padded input, {size}")

    chosen = backends.choose(OP, backend, input, planes, weight, bias, strides, paddings, dilations, groups)
    if chosen == "reference":
        full = planes if entries == 1 else _one_per_channel(planes, plane_channels)
        output, new_mask = reference.partial_conv2d(
            input, full, weight, bias, strides, paddings, dilations, groups, scale == "sum", input_is_masked
        )
        return output, new_mask.to(mask_dtype)
    if len(plane_channels) > MOST_GROUPS and len(set(plane_channels)) > 1:
        planes, plane_channels = _one_per_channel(planes, plane_channels), [1] * input.shape[1]
    # The kernels weigh each plane by the channels it covers, so their s is C/entries times the s of the definition.
    numerator = input.shape[1] // entries if scale == "sum" else kernel[0] * kernel[1] * input.shape[1]
    ops = torch.ops.msa_ops
    forward = ops.partial_conv2d_triton_forward if chosen == "triton" else ops.partial_conv2d_forward
    arguments = input, planes, weight, bias, plane_channels
    output, new_mask, _ = forward(*arguments, strides, paddings, dilations, groups, numerator, input_is_masked)
    return output, new_mask.to(mask_dtype)


def _check_groups(input: Tensor, weight: Tensor, groups: int) -> None:
    channels, out_channels = input.shape[1], weight.shape[0]
    if not isinstance(groups, int) or groups < 1:
        checks.fail(OP, f"groups must be a positive integer, got {groups!r}")
    if channels % groups or out_channels % groups:
        checks.fail(
            OP, f"groups={groups} must divide the channels of input and output, got {channels} and {out_channels}"
        )
    if weight.shape[1] * groups != channels:
        checks.fail(
            OP,
            f"weight must have shape (C_out, {channels // groups}, kH, kW) for {channels} input channels "
            f"and groups={groups}, got {checks.shape(weight)}",
        )


def _mask_planes(mask: Tensor | GroupedMask, input: Tensor) -> tuple[Tensor, list[int], int]:
    """A mask in any of its forms as bool planes (N, G, H, W), the channels that each plane covers, and the number of
    entries that the definition's mask has per pixel (1 for a plane, C otherwise)."""
    channels = input.shape[1]
    if isinstance(mask, Tensor):
        checks.check_mask(OP, "mask", mask, "input", input, (1, channels))
        if mask.shape[1] == 1:
            return _as_bool(mask), [channels], 1
        if mask.stride(1) == 0:
            return _as_bool(mask[:, :1]), [channels], channels
        return _as_bool(mask), [1] * channels, channels
    if not isinstance(mask, Sequence) or not mask or not all(isinstance(p, Sequence) and len(p) == 2 for p in mask):
        checks.fail(OP, "mask must be a tensor or a non-empty list of (channels, tensor) pairs")
    for index, (count, plane) in enumerate(mask):
        if not isinstance(count, int) or count < 1:
            checks.fail(OP, f"mask[{index}] must cover a positive number of channels, got {count!r}")
        checks.check_mask(OP, f"mask[{index}]", plane, "input", input, (1,))
    plane_channels = [count for count, _ in mask]
    if sum(plane_channels) != channels:
        checks.fail(OP, f"the grouped mask's channels must add up to {channels}, got {plane_channels}")
    return torch.cat([_as_bool(plane) for _, plane in mask], dim=1), plane_channels, channels


def _as_bool(mask: Tensor) -> Tensor:
    return mask if mask.dtype == torch.bool else mask != 0


def _one_per_channel(planes: Tensor, plane_channels: list[int]) -> Tensor:
    """The (N, C, H, W) mask that the planes stand for."""
    return torch.cat([planes[:, g : g + 1].expand(-1, c, -1, -1) for g, c in enumerate(plane_channels)], dim=1)


def _pad_by_name(
    name: str, input: Tensor, planes: Tensor, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """padding="valid" or "same"; an even kernel's "same" needs one more row or column at the end, made by a copy."""
    if name == "valid":
        return input, planes, (0, 0)
    if name != "same":
        checks.fail(OP, f"padding must be integers, 'valid' or 'same', got {name!r}")
    if tuple(strides) != (1, 1):
        checks.fail(OP, f"padding='same' needs stride 1, got {tuple(strides)}")
    total = [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)]
    odd = (0, total[1] % 2, 0, total[0] % 2)
    if any(odd):
        input, planes = F.pad(input, odd), F.pad(planes, odd)
    return input, planes, (total[0] // 2, total[1] // 2)


# ---- the operators behind it: shapes, gradients, FLOPs -------------------------------------------------------------


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def refuse_second_order(name: str) -> None:
    """Registers an autograd formula for the backward operator `name` that says why there is none."""
    op = name.removesuffix("_backward").removesuffix("_triton")

    def refuse(ctx, *grads):
        raise RuntimeError(f"msa_ops::{op}: second-order gradients are not supported")

    torch.library.register_autograd(f"msa_ops::{name}", refuse)


def _fake_forward(
    input, mask, weight, bias, plane_channels, stride, padding, dilation, groups, numerator, input_is_masked
):
    sizes = [
        (size + 2 * pad - d * (k - 1) - 1) // step + 1
        for size, pad, d, k, step in zip(input.shape[2:], padding, dilation, weight.shape[2:], stride, strict=True)
    ]
    planes = (input.shape[0], 1, *sizes)
    return (
        fake_map(input, (input.shape[0], weight.shape[0], *sizes), is_channels_last_call(input, weight)),
        input.new_empty(planes, dtype=torch.bool),
        input.new_empty(planes, dtype=statistics_dtype(input.dtype)),
    )


def wants_channels_last(like: Tensor) -> bool:
    """The rule of csrc for the layout of maps: channels_last where the channel of `like` is its fastest dimension."""
    return like.shape[1] > 1 and like.stride(1) == 1


def _torch_sees_channels_last(t: Tensor) -> bool:
    """torch's own rule, which tells a 1×1 weight in channels_last from a contiguous one by strides that nothing is
    read with."""
    if t.stride(1) == 0:
        return False
    least = 0
    for d in (1, 3, 2, 0):
        if t.stride(d) < least or (d == 0 and least == t.stride(1)):
            return False
        least = t.stride(d) * t.shape[d] if t.shape[d] > 1 else t.stride(d)
    return True


def is_channels_last_call(input: Tensor, weight: Tensor) -> bool:
    """The layout of a call's output and of its weight's gradient; gradients of maps have the layout of their map."""
    return wants_channels_last(input) or _torch_sees_channels_last(weight)


def fake_map(like: Tensor, shape: Sequence[int], channels_last: bool | None = None) -> Tensor:
    """What csrc's empty_map makes: in the layout of `like` where none is given."""
    channels_last = wants_channels_last(like) if channels_last is None else channels_last
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=memory_format)


def _fake_backward(
    grad_output, input, mask, weight, ratio, plane_channels, stride, padding, dilation, groups, input_is_masked, needed
):
    return (
        fake_map(input, input.shape) if needed[0] else None,
        fake_map(weight, weight.shape, is_channels_last_call(input, weight)) if needed[1] else None,
        input.new_empty(weight.shape[0]) if needed[2] else None,
    )


def _setup_context(ctx, inputs, output):
    input, mask, weight, _, plane_channels, stride, padding, dilation, groups, _, input_is_masked = inputs
    _, new_mask, ratio = output
    ctx.save_for_backward(input, mask, weight, ratio)
    ctx.arguments = plane_channels, stride, padding, dilation, groups, input_is_masked
    ctx.mark_non_differentiable(new_mask, ratio)
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_output, grad_new_mask, grad_ratio):
    needed = [ctx.needs_input_grad[i] for i in (0, 2, 3)]
    if grad_output is None or not any(needed):
        return (None,) * 11
    input, mask, weight, ratio = ctx.saved_tensors
    grad_input, grad_weight, grad_bias = torch.ops.msa_ops.partial_conv2d_backward(
        grad_output, input, mask, weight, ratio, *ctx.arguments, needed
    )
    return grad_input, None, grad_weight, grad_bias, *(None,) * 7


def convolution_flops(output_shape: Sequence[int], weight_shape: Sequence[int]) -> int:
    """2 × multiply-adds of a convolution, counted as the direct one also where minimal filtering does with fewer."""
    per_output = 2
    for extent in weight_shape[1:]:
        per_output *= extent
    for extent in output_shape:
        per_output *= extent
    return per_output


def _flops_forward(input_shape, mask_shape, weight_shape, *args, out_shape=None, **kwargs) -> int:
    return convolution_flops(out_shape[0], weight_shape)


def _flops_backward(grad_shape, input_shape, mask_shape, weight_shape, *args, out_shape=None, **kwargs) -> int:
    needed = args[-1]
    return (needed[0] + needed[1]) * convolution_flops(grad_shape, weight_shape)


def triton_map_reasons(*maps: Tensor) -> list[str]:
    """Why the Triton kernels of the partial convolution do not read these maps."""
    reasons = []
    if not all(map_.dim() == 4 and wants_channels_last(map_) for map_ in maps):
        reasons.append("it reads and writes maps in channels_last only")
    if any(map_.dim() == 4 and max(map_[:1].numel(), map_[:, :1].numel()) >= 2**31 for map_ in maps):
        reasons.append("it counts the elements of a sample, and the pixels of a batch, in 32 bits")
    return reasons


def _triton_reasons(input, mask=None, weight=None, bias=None, stride=1, padding=0, dilation=1, groups=1, *_) -> list:
    reasons = triton_map_reasons(input)
    if groups != 1:
        reasons.append("it has no groups")
    if isinstance(mask, Sequence) or (mask is not None and mask.shape[1] != 1 and mask.stride(1) != 0):
        reasons.append("it takes masks of one plane")
    if weight is not None and weight[0, 0].numel() > TRITON_MOST_TAPS:
        reasons.append(f"it has no windows of more than {TRITON_MOST_TAPS} taps")
    return reasons


def _register() -> None:
    from torch.utils.flop_counter import register_flop_formula

    triton_operators.define("partial_conv2d_triton_forward", "partial_conv2d_forward", "partial_conv", "conv_forward")
    backends.CONDITIONS[OP, "triton"] = _triton_reasons
    for name in ("partial_conv2d_forward", "partial_conv2d_triton_forward"):
        torch.library.register_fake(f"msa_ops::{name}", _fake_forward)
        torch.library.register_autograd(f"msa_ops::{name}", _backward, setup_context=_setup_context)
        register_flop_formula(getattr(torch.ops.msa_ops, name))(_flops_forward)
    torch.library.register_fake("msa_ops::partial_conv2d_backward", _fake_backward)
    refuse_second_order("partial_conv2d_backward")
    register_flop_formula(torch.ops.msa_ops.partial_conv2d_backward)(_flops_backward)


if native.MISSING["cpu"] is None:
    _register()
