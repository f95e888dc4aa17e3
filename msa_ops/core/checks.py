"""Argument checks that the operators share. A refusal names operator, argument, what was wanted and what came."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import NoReturn, TypeVarTuple, cast

import torch
from torch import Tensor

MASK_DTYPES = (torch.bool, torch.uint8, torch.float64, torch.float32, torch.float16, torch.bfloat16)

#: The largest stride, padding, dilation and radius that the kernels take.
LARGEST_SIZE = 2**31 - 1

Arguments = TypeVarTuple("Arguments")


def fail(op: str, message: str) -> NoReturn:
    """Raises the ValueError of a refused argument of msa_ops::op."""
    raise ValueError(f"msa_ops::{op}: {message}")


def shape(t: Tensor) -> str:
    """Returns the shape of a tensor as messages write it."""
    return "(" + ", ".join(str(int(s)) for s in t.shape) + ")"


def check_tensor(op: str, name: str, value: object) -> Tensor:
    """Refuses what is not a tensor; returns `value`."""
    if not isinstance(value, Tensor):
        fail(op, f"{name} must be a tensor, got {type(value).__name__}")
    return value


def check_features(op: str, name: str, value: object) -> None:
    """Refuses what is not a floating, real, dense map (N, C, H, W)."""
    map_ = check_tensor(op, name, value)
    if map_.dim() != 4:
        fail(op, f"{name} must have 4 dimensions (N, C, H, W), got shape {shape(map_)}")
    if not map_.dtype.is_floating_point:
        fail(op, f"{name} must have a real floating-point dtype, got {map_.dtype}")


def check_like(op: str, name: str, value: Tensor, like_name: str, like: Tensor) -> None:
    """Refuses a tensor whose device or dtype is not that of `like`."""
    if value.device != like.device:
        fail(op, f"{name} must be on the device of {like_name}, {like.device}, got {value.device}")
    if value.dtype != like.dtype:
        fail(op, f"{name} must have the dtype of {like_name}, {like.dtype}, got {value.dtype}")


def check_bias(op: str, bias: Tensor | None, weight: Tensor) -> Tensor | None:
    """Refuses a bias that is not (C_out,) with the dtype and device of the weight; returns it without gaps, which the
    kernels need."""
    if bias is None:
        return None
    check_tensor(op, "bias", bias)
    if bias.shape != weight.shape[:1]:
        fail(op, f"bias must have shape ({weight.shape[0]},), got {shape(bias)}")
    check_like(op, "bias", bias, "weight", weight)
    return bias.contiguous()


def check_mask(op: str, name: str, value: object, like_name: str, like: Tensor, channels: Sequence[int]) -> None:
    """Refuses what is not a mask for `like` with one of the given channel counts."""
    mask = check_tensor(op, name, value)
    n, _, h, w = like.shape
    letters = {1: "1", int(like.shape[1]): "C"}
    if mask.dim() != 4 or mask.shape[1] not in channels or (mask.shape[0], *mask.shape[2:]) != (n, h, w):
        forms = " or ".join(dict.fromkeys(f"(N, {letters.get(int(c), c)}, H, W)" for c in channels))
        sizes = f"N={n}, " + (f"C={like.shape[1]}, " if len(set(channels)) > 1 else "") + f"H={h}, W={w}"
        fail(op, f"{name} must have shape {forms} with {sizes}, got {shape(mask)}")
    if mask.dtype not in MASK_DTYPES:
        fail(op, f"{name} must be bool, uint8 or floating-point, got {mask.dtype}")
    if mask.device != like.device:
        fail(op, f"{name} must be on the device of {like_name}, {like.device}, got {mask.device}")


def as_bool(mask: Tensor) -> Tensor:
    """Returns the mask as bool: any value but zero is valid."""
    return mask if mask.dtype == torch.bool else mask != 0


def check_scale(op: str, scale: object) -> None:
    """Refuses a scale that partial convolution does not know."""
    if scale not in ("window", "sum"):
        fail(op, f"scale must be 'window' or 'sum', got {scale!r}")


def check_flag(op: str, name: str, value: object) -> None:
    """Refuses what is neither True nor False (nor 1 or 0)."""
    if isinstance(value, Tensor) or value not in (True, False):
        fail(op, f"{name} must be True or False, got {type(value).__name__}")


def check_number(op: str, name: str, value: object) -> None:
    """Refuses what is not one real number. Numbers of numpy and tensors of one element are."""
    is_python = isinstance(value, (int, float, torch.SymInt, torch.SymFloat))
    if not is_python and (not hasattr(value, "__float__") or getattr(value, "shape", ()) != ()):
        fail(op, f"{name} must be a number, got {type(value).__name__}")


def pair(op: str, name: str, value: object, minimum: int) -> tuple[int, int]:
    """Returns two integers of at least `minimum` from one or two of them, which is what conv2d takes."""
    values = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value, value)
    if len(values) != 2 or not all(isinstance(v, int) and not isinstance(v, bool) for v in values):
        fail(op, f"{name} must be an integer or two of them, got {value!r}")
    if min(values) < minimum:
        fail(op, f"{name} must be at least {minimum}, got {value!r}")
    if max(values) > LARGEST_SIZE:
        fail(op, f"{name} must be at most {LARGEST_SIZE}, got {value!r}")
    return cast("tuple[int, int]", values)


def autocast(*arguments: *Arguments) -> tuple[*Arguments]:
    """Casts to the autocast dtype of the first tensor's device where autocast is on, as torch does for its own
    convolutions: floating-point tensors except float64. Returns all arguments."""
    device_type = next(t.device.type for t in arguments if isinstance(t, Tensor))
    if device_type not in ("cpu", "cuda") or not torch.is_autocast_enabled(device_type):
        return arguments
    dtype = torch.get_autocast_dtype(device_type)

    def converted(t: object) -> object:
        eligible = isinstance(t, Tensor) and t.dtype.is_floating_point and t.dtype != torch.float64
        return cast("Tensor", t).to(dtype) if eligible else t

    return cast("tuple[*Arguments]", tuple(converted(t) for t in arguments))


def without_autocast(like: Tensor) -> contextlib.AbstractContextManager:
    """Returns a context that switches autocast off on the device of `like`, where there is such a thing."""
    device_type = like.device.type
    return torch.autocast(device_type, enabled=False) if device_type in ("cpu", "cuda") else contextlib.nullcontext()
