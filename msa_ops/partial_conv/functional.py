"""The public function of the partial convolution (Liu et al. 2018; Eqs. 1-5 of the paper).

The kernels run one box filter over the mask planes, one product x ⊙ m, the library's convolution, and one in-place
epilogue. For channels_last maps they run convolutions of our own where those are faster, which read the mask
themselves: on the CPU, and in Triton. `docs/operators/partial_conv.md` says what runs when; `csrc/partial_conv/` holds
the compiled kernels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core import backends, checks, eager, native, registration
from . import reference
from .autograd import OP

#: A mask for an input that is a concatenation: (channels, plane) pairs.
GroupedMask = Sequence[tuple[int, Tensor]]

MOST_GROUPS = 16  # planes of different widths that the CUDA kernels take; more become one plane per channel


def partial_conv2d(
    input: Tensor,
    mask: Tensor | GroupedMask,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    scale: str = "window",
    input_is_masked: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    r"""Convolves the valid pixels only and renormalises by how many of them each window held (partial convolution).

    With s(p) the number of valid mask entries in the window at p (zero padding is hole) and E the number of entries of
    a full window (kernel height × width, times the channels of the mask)::

        output(p)   = conv(input ⊙ mask, weight)(p) · E/s(p) + bias     where s(p) > 0, else 0        (Eqs. 1, 2, 4)
        new_mask(p) = 1 where s(p) > 0, else 0                                                        (Eqs. 3, 5)

    Gradients flow to input, weight and bias; masks have none, and second-order gradients are refused. The result is
    deterministic wherever torch's convolution is (``torch.use_deterministic_algorithms`` is honoured). TF32 is used
    only where torch's own switch allows it. Under autocast, input, weight and bias are cast as those of conv2d are. An
    empty batch gives an empty result.

    Extra memory beside the output: one copy of input (none with ``input_is_masked``) during the call, and a few planes;
    the backward makes the same copy again rather than keeping it. Where the CPU's own convolutions run
    (docs/operators/partial_conv.md) and the mask is one plane, there is no copy of input; there are the transformed
    weight, up to 2.8 times its size (in the backward twice), and a block of tiles, 4 MiB or a row of tiles. The Triton
    kernel, which ``auto`` takes for float16 and bfloat16 on CUDA, makes no copy of input in the forward; small maps
    take the float32 parts of a split sum. It is compiled when a combination of shapes is first met, which takes a
    second or two, and is then kept on disk.

    Args:
        input: (N, C, H, W), float64, float32, float16 or bfloat16; contiguous, channels_last or any strides. Values
            under a hole are never used, not even NaN or inf.
        mask: 1 (any non-zero) = valid, 0 = hole; bool, uint8 or floating-point. One plane (N, 1, H, W); one per channel
            (N, C, H, W), where an expanded view of one plane costs no more than the plane; or *grouped*, for an input
            that is a concatenation: a list of ``(channels, (N, 1, H, W))`` pairs whose channels add up to C.
        weight: (C_out, C/groups, kH, kW), the dtype of input.
        bias: (C_out,) or None.
        stride: as in :func:`torch.nn.functional.conv2d`.
        padding: as in :func:`torch.nn.functional.conv2d`, with ``"same"`` and ``"valid"``.
        dilation: as in :func:`torch.nn.functional.conv2d`.
        groups: as in :func:`torch.nn.functional.conv2d`.
        scale: ``"window"`` as above; ``"sum"`` divides by s(p) alone (checkpoints of a common community layer need it).
        input_is_masked: the caller knows that input is already 0 under every hole. The product input ⊙ mask is then
            skipped where it costs anything, and so is its counterpart in the gradient: the result is that of
            conv(input)·E/s.
        backend: ``"auto"``, ``"reference"``, ``"cpu"``, ``"cuda"`` or ``"triton"``; see
            :func:`msa_ops.not_supported_reasons`.

    Returns:
        ``(output, new_mask)``: (N, C_out, H', W') in the dtype of input, and (N, 1, H', W') in the dtype of the mask.

    Raises:
        ValueError: if shapes, dtypes, devices or options do not fit; before any work is done.
        RuntimeError: if a named backend cannot take the inputs.
    """
    if backend == "auto" and scale == "window" and eager.is_plain():
        result = _unchecked(input, mask, weight, bias, stride, padding, dilation, groups, input_is_masked)
        if result is not None:
            return result
    checks.check_features(OP, "input", input)
    checks.check_features(OP, "weight", weight)
    input, weight, bias = checks.autocast(input, weight, bias)
    checks.check_like(OP, "weight", weight, "input", input)
    bias = checks.check_bias(OP, bias, weight)
    checks.check_scale(OP, scale)
    checks.check_flag(OP, "input_is_masked", input_is_masked)
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
    forward = registration.operator(f"{OP}_triton_forward" if chosen == "triton" else f"{OP}_forward")
    arguments = input, planes, weight, bias, plane_channels
    output, new_mask, _ = forward(*arguments, strides, paddings, dilations, groups, numerator, input_is_masked)
    return output, new_mask.to(mask_dtype)


def _unchecked(
    input: Tensor,
    mask: Tensor | GroupedMask,
    weight: Tensor,
    bias: Tensor | None,
    stride: int | Sequence[int],
    padding: int | Sequence[int] | str,
    dilation: int | Sequence[int],
    groups: int,
    input_is_masked: bool,
) -> tuple[Tensor, Tensor] | None:
    """Makes the usual call at once, since the compiled operator makes all checks itself. Returns None where the call is
    not of the usual kind or is refused; what is wrong with it is then said in the caller's terms."""
    if not (
        eager.is_tensor(input)
        and type(mask) is Tensor
        and eager.is_tensor(weight)
        and input.is_cpu
        and mask.is_cpu
        and weight.is_cpu
        and (bias is None or (eager.is_tensor(bias) and bias.is_cpu))
        and type(groups) is int
        and type(input_is_masked) is bool
        and not torch.is_autocast_enabled("cpu")
        and native.MISSING["cpu"] is None
    ):
        return None
    steps, margins, dilations = _pair(stride), _pair(padding), _pair(dilation)
    if steps is None or margins is None or dilations is None:
        return None
    dtype = mask.dtype
    if dtype != torch.bool and dtype in checks.MASK_DTYPES and torch.is_grad_enabled():
        mask = mask != 0  # a copy, so that the caller may change the mask before the backward
    try:
        output, new_mask, _ = registration.operator(f"{OP}_forward").plain(
            input, mask, weight, bias, (), steps, margins, dilations, groups, 0, input_is_masked
        )
    except (RuntimeError, TypeError):
        return None
    return output, new_mask if new_mask.dtype == dtype else new_mask.to(dtype)


def _pair(value: object) -> tuple[int, int] | None:
    """Returns the two integers of a stride and the like where they are given in the usual way."""
    if type(value) is int:
        return value, value
    if type(value) is tuple and len(value) == 2 and type(value[0]) is int and type(value[1]) is int:
        return value
    return None


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
    """Returns a mask in any of its forms as bool planes (N, G, H, W), the channels that each plane covers, and the
    number of entries that the definition's mask has per pixel (1 for a plane, C otherwise)."""
    channels = input.shape[1]
    if isinstance(mask, Tensor):
        checks.check_mask(OP, "mask", mask, "input", input, (1, channels))
        if mask.shape[1] == 1:
            return checks.as_bool(mask), [channels], 1
        if mask.stride(1) == 0:
            return checks.as_bool(mask[:, :1]), [channels], channels
        return checks.as_bool(mask), [1] * channels, channels
    if not isinstance(mask, Sequence) or not mask or not all(isinstance(p, Sequence) and len(p) == 2 for p in mask):
        checks.fail(OP, "mask must be a tensor or a non-empty list of (channels, tensor) pairs")
    for index, (count, plane) in enumerate(mask):
        if not isinstance(count, int) or count < 1:
            checks.fail(OP, f"mask[{index}] must cover a positive number of channels, got {count!r}")
        checks.check_mask(OP, f"mask[{index}]", plane, "input", input, (1,))
    plane_channels = [count for count, _ in mask]
    if sum(plane_channels) != channels:
        checks.fail(OP, f"the grouped mask's channels must add up to {channels}, got {plane_channels}")
    return torch.cat([checks.as_bool(plane) for _, plane in mask], dim=1), plane_channels, channels


def _one_per_channel(planes: Tensor, plane_channels: list[int]) -> Tensor:
    """Returns the (N, C, H, W) mask that the planes represent."""
    return torch.cat([planes[:, g : g + 1].expand(-1, c, -1, -1) for g, c in enumerate(plane_channels)], dim=1)


def _pad_by_name(
    name: str, input: Tensor, planes: Tensor, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """Resolves padding="valid" or "same"; an even kernel's "same" needs one more row or column at the end, which is
    added by a copy."""
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
