"""The paper's hole attention in Triton: the features' normalisation, its gradient, and what passes by, in one kernel
each way around the general attention of pixel_attention."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention_layout import pixel_of, store_tile, tile_of_map
from .attention_plan import ROWS, pitch
from .pixel_attention import Call, _attend, _attend_backward, _empty_map, _pixels_last, _strides


@triton.jit
def _norm(map_, stride_channel, row_offset, present, channels, PIXELS_LAST: tl.constexpr, ROWS: tl.constexpr,
          DEPTH: tl.constexpr, PITCH: tl.constexpr):  # fmt: skip
    squares = tl.zeros([ROWS], tl.float32)
    for first in range(0, PITCH, DEPTH):
        c = first + tl.arange(0, DEPTH)
        x = tile_of_map(map_, stride_channel, row_offset, present, c, channels, PIXELS_LAST).to(tl.float32)
        squares += tl.sum(x * x, 1)
    return tl.sqrt(squares)


@triton.jit
def hole_image_kernel(
    map_, sn, sc, sh, sw, valid, mask_sn, mask_sh, mask_sw, unit, value, keys, eps, h, w, width, halo, length, channels,
    PIXELS_LAST: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr, PITCH: tl.constexpr,
):  # fmt: skip
    """Images of n = φ/max(‖φ‖, eps), and of φ at the valid pixels."""
    sample = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    y, x, present = pixel_of(at, h, w, width, halo)
    y, x = y.to(tl.int64), x.to(tl.int64)
    is_key = tl.load(valid + sample * mask_sn + y * mask_sh + x * mask_sw, mask=present, other=0) != 0
    tl.store(keys + sample * length + at, is_key.to(tl.uint8))
    map_ += sample * sn
    offset = y * sh + x * sw
    norm = tl.maximum(_norm(map_, sc, offset, present, channels, PIXELS_LAST, ROWS, DEPTH, PITCH), eps)
    to = (sample * length + at)[:, None] * PITCH
    for first in range(0, PITCH, DEPTH):
        c = first + tl.arange(0, DEPTH)
        features = tile_of_map(map_, sc, offset, present, c, channels, PIXELS_LAST)
        tl.store(unit + to + c[None, :], (features.to(tl.float32) / norm[:, None]).to(unit.dtype.element_ty))
        features = tl.where(is_key[:, None], features, 0.0)
        tl.store(value + to + c[None, :], features.to(value.dtype.element_ty))


@triton.jit
def hole_gradient_kernel(
    map_, sn, sc, sh, sw, grad, grad_sn, grad_sc, grad_sh, grad_sw, result, result_sn, result_sc, result_sh, result_sw,
    valid, mask_sn, mask_sh, mask_sw, unit_gradient, value_gradient, counts, eps, h, w, width, halo, length, channels,
    PIXELS_LAST: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr, PITCH: tl.constexpr,
):  # fmt: skip
    """dφ = dO where φ passed by, + dV, + (g - n (n·g)) / ‖φ‖ with g the gradient of n; g / eps below eps, where n is
    linear in φ."""
    sample = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    present = pixel < h * w
    y, x = (pixel // w).to(tl.int64), (pixel % w).to(tl.int64)
    is_valid = tl.load(valid + sample * mask_sn + y * mask_sh + x * mask_sw, mask=present, other=0) != 0
    queries = tl.load(counts + sample + tl.zeros([ROWS], tl.int32))
    passed = present & (is_valid | (queries == 0))
    image = (sample * length + halo + y * width + x)[:, None] * PITCH
    map_ += sample * sn
    offset = y * sh + x * sw
    squares = tl.zeros([ROWS], tl.float32)
    product = tl.zeros([ROWS], tl.float32)
    for first in range(0, PITCH, DEPTH):
        c = first + tl.arange(0, DEPTH)
        features = tile_of_map(map_, sc, offset, present, c, channels, PIXELS_LAST).to(tl.float32)
        g = tl.load(unit_gradient + image + c[None, :], mask=present[:, None], other=0.0)
        squares += tl.sum(features * features, 1)
        product += tl.sum(features * g, 1)
    norm = tl.sqrt(squares)
    clamped = tl.maximum(norm, eps)
    # (n·g)/‖φ‖, one division after the other: the square of a norm may leave the range of float32.
    along = tl.where((norm >= eps) & (norm > 0), product / clamped / clamped, 0.0)
    for first in range(0, PITCH, DEPTH):
        c = first + tl.arange(0, DEPTH)
        features = tile_of_map(map_, sc, offset, present, c, channels, PIXELS_LAST).to(tl.float32)
        g = tl.load(unit_gradient + image + c[None, :], mask=present[:, None], other=0.0)
        total = tl.load(value_gradient + image + c[None, :], mask=is_valid[:, None], other=0.0)
        total += g / clamped[:, None] - features / clamped[:, None] * along[:, None]
        total += tile_of_map(
            grad + sample * grad_sn, grad_sc, y * grad_sh + x * grad_sw, passed, c, channels, PIXELS_LAST
        ).to(tl.float32)
        store_tile(
            result + sample * result_sn, result_sc, y * result_sh + x * result_sw, present, c, channels, total,
            PIXELS_LAST,
        )  # fmt: skip


def _map_of(image: Tensor, call: Call) -> Tensor:
    """An image (N, length, PITCH) as a map (N, PITCH, H, W)."""
    lay = call.layout
    pixels = image[:, lay.halo : lay.halo + lay.h * lay.width].unflatten(1, (lay.h, lay.width))
    return pixels[:, :, : lay.w].permute(0, 3, 1, 2)


def _call(features: Tensor, valid: Tensor, scale: float, radius: int, eps: float, dtype: torch.dtype):
    """The call, and its images of unit features and of values."""
    call = Call(features, ~valid, valid, scale, radius, dtype)
    lay, channels = call.layout, features.shape[1]
    unit, value = (call.empty(lay.samples, lay.length, pitch(channels), dtype=dtype) for _ in range(2))
    call.launch(
        hole_image_kernel, (lay.length // ROWS, lay.samples), map_=features, **_strides(features), **_valid(call),
        unit=unit, value=value, eps=eps, channels=channels, PIXELS_LAST=_pixels_last(features), **_block(channels),
    )  # fmt: skip
    return call, unit, value


def _valid(call: Call) -> dict:
    return {"valid": call.key_mask} | call.mask_strides


def _block(channels: int) -> dict[str, int]:
    return {"DEPTH": min(64, pitch(channels)), "PITCH": pitch(channels), "num_warps": 4}


def forward(
    features: Tensor, valid: Tensor, scale: float, radius: int, renormalize: bool, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    output = _empty_map(features).copy_(features)
    statistics = torch.zeros(features.shape[0], features.shape[2] * features.shape[3], 3, device=features.device)
    if features.numel() > 0:
        call, unit, value = _call(features, valid, scale, radius, eps, dtype)
        channels = features.shape[1]
        query = call.rows(_map_of(unit, call))
        _attend(call, query, unit, channels, value, channels, statistics, output, renormalize)
    return output, statistics


def backward(
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
    result = _empty_map(features)
    if features.numel() == 0:
        return result
    call, unit, value = _call(features, valid, scale, radius, eps, dtype)
    lay, channels = call.layout, features.shape[1]
    query = call.rows(_map_of(unit, call))
    grad, offsets = call.grad_rows(grad_output, output, statistics, renormalize)
    # Queries and keys are different pixels, so one image holds the gradients of both.
    unit_gradient, value_gradient = torch.zeros(2, *unit.shape, device=unit.device)
    targets = [_map_of(unit_gradient, call), unit_gradient, value_gradient]
    _attend_backward(call, query, unit, channels, value, channels, grad, statistics, offsets, targets)
    call.launch(
        hole_gradient_kernel, (triton.cdiv(lay.size, ROWS), lay.samples), map_=features, **_strides(features),
        grad=grad_output, **_strides(grad_output, "grad_s"), result=result, **_strides(result, "result_s"),
        **_valid(call), unit_gradient=unit_gradient, value_gradient=value_gradient, eps=eps, channels=channels,
        PIXELS_LAST=_pixels_last(features), **_block(channels),
    )  # fmt: skip
    return result
