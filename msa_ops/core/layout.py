"""Memory layout of the maps that the operators return. The compiled kernels follow the same rules (csrc/common)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def wants_channels_last(like: Tensor) -> bool:
    """Tells whether results laid out like this map are channels_last: where the channel is its fastest dimension."""
    return like.shape[1] > 1 and like.stride(1) == 1


def is_channels_last_call(input: Tensor, weight: Tensor) -> bool:
    """Tells whether a convolution's output and its weight's gradient are channels_last. The gradient of a map always
    has the layout of that map."""
    return wants_channels_last(input) or _torch_sees_channels_last(weight)


def empty_map(like: Tensor, shape: Sequence[int], channels_last: bool | None = None) -> Tensor:
    """Returns an uninitialised map, laid out like `like` unless `channels_last` says otherwise."""
    channels_last = wants_channels_last(like) if channels_last is None else channels_last
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=memory_format)


def _torch_sees_channels_last(t: Tensor) -> bool:
    """Applies torch's own rule. It distinguishes a 1×1 weight in channels_last from a contiguous one, by strides of
    dimensions that hold a single element."""
    if t.stride(1) == 0:
        return False
    least = 0
    for d in (1, 3, 2, 0):
        if t.stride(d) < least or (d == 0 and least == t.stride(1)):
            return False
        least = t.stride(d) * t.shape[d] if t.shape[d] > 1 else t.stride(d)
    return True
