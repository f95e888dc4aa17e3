"""Attention with shift propagation (Eqs. 6-8) in Triton, for the tensor cores.

The structure is that of csrc/pixel_attention/cuda.cu: query and key pixels are listed on the device, and every program
walks tiles of queries × keys. The shift of Eq. 8 never moves scores: the tile of s*(p+δ, q+δ) is made from the features
at p+δ and q+δ, and is added to the tile of (p, q). Products take operands in the dtype of the inputs and add up in
float32; weights are rounded to that dtype before the second product.

Masks are (N, H·W), features (N, H·W, channels). Statistics (N, H·W, 3) hold per query pixel the largest score, the log
of Σ exp(score - largest), and the row sum of s'. `masks`, `pixels` and `counts` hold those of the queries first, then
those of the keys.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 64  # queries, and keys, of a tile
WARPS = 8  # four would spill registers
INDEX_BLOCK = 1024

# ---- pieces of the kernels -----------------------------------------------------------------------------------------


@triton.jit
def _shifted(rows, present, mask, dy, dx, h, w):
    """The pixels at a shift, and which of them are in the map and in the mask."""
    y, x = rows // w + dy, rows % w + dx
    present = present & (y >= 0) & (y < h) & (x >= 0) & (x < w)
    at = tl.where(present, y * w + x, 0)
    return at, present & (tl.load(mask + at) != 0)


@triton.jit
def _product(a, a_rows, a_present, b, b_rows, b_present, channels, total, STEP: tl.constexpr, PRECISION: tl.constexpr):
    """total + A Bᵀ over all channels of the features at a_rows and b_rows; zero where they are not present."""
    a_rows, b_rows = a_rows.to(tl.int64) * channels, b_rows.to(tl.int64) * channels
    for first in range(0, channels, STEP):
        c = first + tl.arange(0, STEP)
        inside = c < channels
        left = tl.load(a + a_rows[:, None] + c[None, :], mask=a_present[:, None] & inside[None, :], other=0.0)
        right = tl.load(b + b_rows[None, :] + c[:, None], mask=b_present[None, :] & inside[:, None], other=0.0)
        total = tl.dot(left, right, total, input_precision=PRECISION)
    return total


@triton.jit
def _softmax(
    query, key, statistics, scale, q, has_q, k, has_k, channels, BLOCK: tl.constexpr, STEP: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """s* of the pixels q and k; zero where either is not present."""
    scores = tl.zeros([BLOCK, BLOCK], tl.float32)
    scores = scale * _product(query, q, has_q, key, k, has_k, channels, scores, STEP, PRECISION)
    at = statistics + 3 * q.to(tl.int64)
    top = tl.load(at, mask=has_q, other=0.0)
    log_sum = tl.load(at + 1, mask=has_q, other=0.0)
    # The maximum first: it cancels what is large, where a sum of both would have been rounded.
    scores = tl.where(has_q[:, None] & has_k[None, :], scores - top[:, None], -float("inf"))
    return tl.exp(scores - log_sum[:, None])


@triton.jit
def _shifted_weights(
    query, key, query_mask, key_mask, statistics, scale, q, has_q, k, has_k, h, w, radius_y, radius_x, channels,
    BLOCK: tl.constexpr, STEP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """s' of the pixels q and k: Eq. 8."""
    weights = tl.zeros([BLOCK, BLOCK], tl.float32)
    for dy in range(-radius_y, radius_y + 1):
        for dx in range(-radius_x, radius_x + 1):
            q_at, q_there = _shifted(q, has_q, query_mask, dy, dx, h, w)
            k_at, k_there = _shifted(k, has_k, key_mask, dy, dx, h, w)
            weights += _softmax(
                query, key, statistics, scale, q_at, q_there, k_at, k_there, channels, BLOCK, STEP, PRECISION
            )
    return weights


@triton.jit
def _softmax_and_gradient(
    query, key, value, grad, query_mask, key_mask, statistics, factors, offsets, scale, q, has_q, k, has_k, h, w,
    radius_y, radius_x, channels, value_channels, RENORMALIZE: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr,
    VALUE_STEP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """s* and ds* = Σ_δ ds'(p+δ, q+δ) of the pixels q and k; ds' = factor · (dO·V - offset) where renormalised."""
    gradient = tl.zeros([BLOCK, BLOCK], tl.float32)
    for dy in range(-radius_y, radius_y + 1):
        for dx in range(-radius_x, radius_x + 1):
            q_at, q_there = _shifted(q, has_q, query_mask, dy, dx, h, w)
            k_at, k_there = _shifted(k, has_k, key_mask, dy, dx, h, w)
            if RENORMALIZE:
                product = tl.zeros([BLOCK, BLOCK], tl.float32)
                product = _product(
                    grad, q_at, q_there, value, k_at, k_there, value_channels, product, VALUE_STEP, PRECISION
                )
                factor = tl.load(factors + q_at, mask=q_there, other=0.0)
                offset = tl.load(offsets + q_at, mask=q_there, other=0.0)
                gradient += tl.where(k_there[None, :], factor[:, None] * (product - offset[:, None]), 0.0)
            else:
                gradient = _product(
                    grad, q_at, q_there, value, k_at, k_there, value_channels, gradient, VALUE_STEP, PRECISION
                )
    weights = _softmax(query, key, statistics, scale, q, has_q, k, has_k, channels, BLOCK, STEP, PRECISION)
    return weights, gradient


@triton.jit
def _rows_at(pixels, first, count, BLOCK: tl.constexpr):
    """The pixels of rows [first, first + BLOCK) of a list, and which rows there are."""
    rows = first + tl.arange(0, BLOCK)
    return tl.load(pixels + rows, mask=rows < count, other=0), rows < count


@triton.jit
def _features(data, rows, present, first_channel, channels, CHANNELS: tl.constexpr):
    """A chunk of channels of the features at rows."""
    c = first_channel + tl.arange(0, CHANNELS)
    at = data + rows.to(tl.int64)[:, None] * channels + c[None, :]
    return tl.load(at, mask=present[:, None] & (c < channels)[None, :], other=0.0)


@triton.jit
def _store(data, rows, present, first_channel, channels, stride_pixel, stride_channel, values, CHANNELS: tl.constexpr):
    c = first_channel + tl.arange(0, CHANNELS)
    at = data + rows.to(tl.int64)[:, None] * stride_pixel + c.to(tl.int64)[None, :] * stride_channel
    tl.store(at, values.to(data.dtype.element_ty), mask=present[:, None] & (c < channels)[None, :])


# ---- kernels -------------------------------------------------------------------------------------------------------


@triton.jit
def index_kernel(masks, pixels, counts, size, BLOCK: tl.constexpr):
    """Lists the set pixels of each of the (2·N) masks in raster order."""
    which = tl.program_id(0).to(tl.int64)
    masks += which * size
    pixels += which * size
    before = 0
    for first in range(0, size, BLOCK):
        at = first + tl.arange(0, BLOCK)
        is_set = (tl.load(masks + at, mask=at < size, other=0) != 0).to(tl.int32)
        tl.store(pixels + before + tl.cumsum(is_set, 0) - 1, at, mask=is_set != 0)
        before += tl.sum(is_set, 0)
    tl.store(counts + which, before)


@triton.jit
def statistics_kernel(
    query, key, pixels, counts, statistics, scale, size, channels,
    BLOCK: tl.constexpr, STEP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """T(p) = max_q S(p,q) and log Σ_q exp(S(p,q) - T(p))."""
    sample, samples = tl.program_id(1).to(tl.int64), tl.num_programs(1)
    queries, keys = tl.load(counts + sample), tl.load(counts + samples + sample)
    first_query = tl.program_id(0) * BLOCK
    if (first_query >= queries) | (keys == 0):
        return
    query += sample * size * channels
    key += sample * size * channels
    q, has_q = _rows_at(pixels + sample * size, first_query, queries, BLOCK)
    top = tl.full([BLOCK], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for first_key in range(0, keys, BLOCK):
        k, has_k = _rows_at(pixels + (samples + sample) * size, first_key, keys, BLOCK)
        scores = tl.zeros([BLOCK, BLOCK], tl.float32)
        scores = _product(query, q, has_q, key, k, has_k, channels, scores, STEP, PRECISION)
        scores = tl.where(has_k[None, :], scale * scores, -float("inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        # Scores that overflow to -inf add nothing; a difference of infinities would be NaN.
        finite_top = tl.where(new_top == -float("inf"), 0.0, new_top)
        total = total * tl.exp(top - finite_top) + tl.sum(tl.exp(scores - finite_top[:, None]), 1)
        top = new_top
    at = statistics + 3 * (sample * size + q)
    tl.store(at, top, mask=has_q)
    tl.store(at + 1, tl.log(total), mask=has_q)


@triton.jit
def forward_kernel(
    query, key, value, masks, pixels, counts, statistics, output, stride_pixel, stride_channel, scale, h, w,
    radius_y, radius_x, channels, value_channels, RENORMALIZE: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr,
    CHANNELS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """O = s' V (divided by the row sums of s' where renormalised)."""
    sample, samples = tl.program_id(1).to(tl.int64), tl.num_programs(1)
    queries, keys = tl.load(counts + sample), tl.load(counts + samples + sample)
    first_query, first_channel, size = tl.program_id(0) * BLOCK, tl.program_id(2) * CHANNELS, h * w
    if first_query >= queries:
        return
    query += sample * size * channels
    key += sample * size * channels
    value += sample * size * value_channels
    q, has_q = _rows_at(pixels + sample * size, first_query, queries, BLOCK)
    total = tl.zeros([BLOCK, CHANNELS], tl.float32)
    row_sum = tl.zeros([BLOCK], tl.float32)
    for first_key in range(0, keys, BLOCK):
        k, has_k = _rows_at(pixels + (samples + sample) * size, first_key, keys, BLOCK)
        weights = _shifted_weights(
            query, key, masks + sample * size, masks + (samples + sample) * size, statistics + 3 * sample * size, scale,
            q, has_q, k, has_k, h, w, radius_y, radius_x, channels, BLOCK, STEP, PRECISION,
        )  # fmt: skip
        row_sum += tl.sum(weights, 1)
        chunk = _features(value, k, has_k, first_channel, value_channels, CHANNELS)
        total = tl.dot(weights.to(chunk.dtype), chunk, total, input_precision=PRECISION)
    if first_channel == 0:
        tl.store(statistics + 3 * (sample * size + q) + 2, row_sum, mask=has_q)
    if RENORMALIZE:
        total = total / tl.where(row_sum > 0, row_sum, 1.0)[:, None]
    output += sample * size * value_channels
    _store(output, q, has_q, first_channel, value_channels, stride_pixel, stride_channel, total, CHANNELS)


@triton.jit
def argmax_kernel(
    query, key, masks, pixels, counts, statistics, best, scale, h, w, radius_y, radius_x, channels,
    BLOCK: tl.constexpr, STEP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Per query the key with the largest s', the first of equals; nothing is written where all are zero."""
    sample, samples = tl.program_id(1).to(tl.int64), tl.num_programs(1)
    queries, keys = tl.load(counts + sample), tl.load(counts + samples + sample)
    first_query, size = tl.program_id(0) * BLOCK, h * w
    if first_query >= queries:
        return
    query += sample * size * channels
    key += sample * size * channels
    q, has_q = _rows_at(pixels + sample * size, first_query, queries, BLOCK)
    largest = tl.zeros([BLOCK], tl.float32)
    at = tl.full([BLOCK], -1, tl.int64)
    for first_key in range(0, keys, BLOCK):
        k, has_k = _rows_at(pixels + (samples + sample) * size, first_key, keys, BLOCK)
        weights = _shifted_weights(
            query, key, masks + sample * size, masks + (samples + sample) * size, statistics + 3 * sample * size, scale,
            q, has_q, k, has_k, h, w, radius_y, radius_x, channels, BLOCK, STEP, PRECISION,
        )  # fmt: skip
        tile_largest = tl.max(weights, 1)
        # Pixels are in raster order, so the first of equals has the smallest number.
        tile_at = tl.min(tl.where(weights == tile_largest[:, None], k[None, :], size), 1)
        at = tl.where(tile_largest > largest, tile_at.to(tl.int64), at)
        largest = tl.maximum(largest, tile_largest)
    tl.store(best + sample * size + q, at, mask=has_q)


@triton.jit
def mean_kernel(
    query, key, value, grad, masks, pixels, counts, statistics, factors, offsets, means, scale, h, w, radius_y,
    radius_x, channels, value_channels, RENORMALIZE: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr,
    VALUE_STEP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """D(p) = Σ_q s*(p,q) ds*(p,q)."""
    sample, samples = tl.program_id(1).to(tl.int64), tl.num_programs(1)
    queries, keys = tl.load(counts + sample), tl.load(counts + samples + sample)
    first_query, size = tl.program_id(0) * BLOCK, h * w
    if first_query >= queries:
        return
    q, has_q = _rows_at(pixels + sample * size, first_query, queries, BLOCK)
    mean = tl.zeros([BLOCK], tl.float32)
    for first_key in range(0, keys, BLOCK):
        k, has_k = _rows_at(pixels + (samples + sample) * size, first_key, keys, BLOCK)
        weights, gradient = _softmax_and_gradient(
            query + sample * size * channels, key + sample * size * channels, value + sample * size * value_channels,
            grad + sample * size * value_channels, masks + sample * size, masks + (samples + sample) * size,
            statistics + 3 * sample * size, factors + sample * size, offsets + sample * size, scale, q, has_q, k, has_k,
            h, w, radius_y, radius_x, channels, value_channels, RENORMALIZE, BLOCK, STEP, VALUE_STEP, PRECISION,
        )  # fmt: skip
        mean += tl.sum(weights * gradient, 1)
    tl.store(means + sample * size + q, mean, mask=has_q)


@triton.jit
def score_gradient_kernel(
    query, key, value, grad, masks, pixels, counts, statistics, factors, offsets, means, result, stride_pixel,
    stride_channel, scale, h, w, radius_y, radius_x, channels, value_channels, OF_KEYS: tl.constexpr,
    RENORMALIZE: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr, VALUE_STEP: tl.constexpr,
    CHANNELS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dQ = λ dS K, or (OF_KEYS) dK = λ dSᵀ Q, with dS = s* (ds* - D)."""
    sample, samples = tl.program_id(1).to(tl.int64), tl.num_programs(1)
    queries, keys = tl.load(counts + sample), tl.load(counts + samples + sample)
    first_own, first_channel, size = tl.program_id(0) * BLOCK, tl.program_id(2) * CHANNELS, h * w
    own, others = (keys, queries) if OF_KEYS else (queries, keys)
    if first_own >= own:
        return
    query += sample * size * channels
    key += sample * size * channels
    query_pixels, key_pixels = pixels + sample * size, pixels + (samples + sample) * size
    total = tl.zeros([BLOCK, CHANNELS], tl.float32)
    for first_other in range(0, others, BLOCK):
        q, has_q = _rows_at(query_pixels, first_other if OF_KEYS else first_own, queries, BLOCK)
        k, has_k = _rows_at(key_pixels, first_own if OF_KEYS else first_other, keys, BLOCK)
        weights, gradient = _softmax_and_gradient(
            query, key, value + sample * size * value_channels, grad + sample * size * value_channels,
            masks + sample * size, masks + (samples + sample) * size, statistics + 3 * sample * size,
            factors + sample * size, offsets + sample * size, scale, q, has_q, k, has_k, h, w, radius_y, radius_x,
            channels, value_channels, RENORMALIZE, BLOCK, STEP, VALUE_STEP, PRECISION,
        )  # fmt: skip
        mean = tl.load(means + sample * size + q, mask=has_q, other=0.0)
        gradient = scale * weights * (gradient - mean[:, None])
        if OF_KEYS:
            chunk = _features(query, q, has_q, first_channel, channels, CHANNELS)
            total = tl.dot(tl.trans(gradient.to(chunk.dtype)), chunk, total, input_precision=PRECISION)
        else:
            chunk = _features(key, k, has_k, first_channel, channels, CHANNELS)
            total = tl.dot(gradient.to(chunk.dtype), chunk, total, input_precision=PRECISION)
    rows, present = _rows_at(key_pixels if OF_KEYS else query_pixels, first_own, own, BLOCK)
    result += sample * size * channels
    _store(result, rows, present, first_channel, channels, stride_pixel, stride_channel, total, CHANNELS)


@triton.jit
def value_gradient_kernel(
    query, key, grad, masks, pixels, counts, statistics, factors, result, stride_pixel, stride_channel, scale, h, w,
    radius_y, radius_x, channels, value_channels, RENORMALIZE: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr,
    CHANNELS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dV = s'ᵀ dO, rows of s' divided by their sums where renormalised."""
    sample, samples = tl.program_id(1).to(tl.int64), tl.num_programs(1)
    queries, keys = tl.load(counts + sample), tl.load(counts + samples + sample)
    first_key, first_channel, size = tl.program_id(0) * BLOCK, tl.program_id(2) * CHANNELS, h * w
    if first_key >= keys:
        return
    query += sample * size * channels
    key += sample * size * channels
    grad += sample * size * value_channels
    k, has_k = _rows_at(pixels + (samples + sample) * size, first_key, keys, BLOCK)
    total = tl.zeros([BLOCK, CHANNELS], tl.float32)
    for first_query in range(0, queries, BLOCK):
        q, has_q = _rows_at(pixels + sample * size, first_query, queries, BLOCK)
        weights = _shifted_weights(
            query, key, masks + sample * size, masks + (samples + sample) * size, statistics + 3 * sample * size, scale,
            q, has_q, k, has_k, h, w, radius_y, radius_x, channels, BLOCK, STEP, PRECISION,
        )  # fmt: skip
        if RENORMALIZE:
            weights = weights * tl.load(factors + sample * size + q, mask=has_q, other=0.0)[:, None]
        chunk = _features(grad, q, has_q, first_channel, value_channels, CHANNELS)
        total = tl.dot(tl.trans(weights.to(chunk.dtype)), chunk, total, input_precision=PRECISION)
    result += sample * size * value_channels
    _store(result, k, has_k, first_channel, value_channels, stride_pixel, stride_channel, total, CHANNELS)


# ---- host ----------------------------------------------------------------------------------------------------------


class _Call:
    """Operands and launch arguments that the kernels of one call share; keyword names are the kernels'."""

    def __init__(self, query: Tensor, query_mask: Tensor, key_mask: Tensor, scale: float, radius: int) -> None:
        n, channels, h, w = query.shape
        self.device, self.tiles, self.samples = query.device, triton.cdiv(h * w, BLOCK), n
        masks = torch.stack([query_mask, key_mask]).view(2 * n, h * w).view(torch.uint8)
        # A shift of the map's size or more leaves the map.
        radii = {"radius_y": min(radius, h - 1), "radius_x": min(radius, w - 1)}
        precision = "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee"
        self.arguments = {
            "masks": masks,
            "pixels": torch.empty(masks.shape, dtype=torch.int32, device=self.device),
            "counts": torch.empty(2 * n, dtype=torch.int32, device=self.device),
            "scale": scale, "size": h * w, "h": h, "w": w, **radii, "channels": channels,
            "BLOCK": BLOCK, "STEP": _power(channels, 64), "PRECISION": precision,
        }  # fmt: skip
        with self._device():
            index = {name: self.arguments[name] for name in ("masks", "pixels", "counts", "size")}
            index_kernel[(2 * n,)](**index, BLOCK=INDEX_BLOCK)

    def _device(self):
        return torch.cuda.device(self.device) if self.device.type == "cuda" else torch.no_grad()

    def launch(self, kernel, channels: int | None = None, **arguments) -> None:
        """Runs a kernel over tiles, samples and, where `channels` is given, chunks of as many output channels."""
        chunks = ()
        if channels is not None:
            if channels == 0:
                return
            arguments["CHANNELS"] = _power(channels, 128)
            chunks = (triton.cdiv(channels, arguments["CHANNELS"]),)
        arguments = {name: value for name, value in (self.arguments | arguments).items() if name in kernel.arg_names}
        with self._device():
            kernel[(self.tiles, self.samples, *chunks)](**arguments, num_warps=WARPS)


def _power(channels: int, most: int) -> int:
    """A block of channels: tensor cores take 16 or more."""
    return min(most, max(16, triton.next_power_of_2(channels)))


def _rows(map_: Tensor) -> Tensor:
    """(N, C, H, W) as contiguous (N, H·W, C): a view where channels_last."""
    return map_.permute(0, 2, 3, 1).flatten(1, 2).contiguous()


def _zero_map(like: Tensor) -> tuple[Tensor, dict]:
    """Zeros in the layout of `like`, and their strides as kernel arguments."""
    channels_last = like.shape[1] > 1 and like.stride(1) == 1
    layout = torch.channels_last if channels_last else torch.contiguous_format
    zeros = torch.empty(like.shape, dtype=like.dtype, device=like.device, memory_format=layout).zero_()
    return zeros, {"stride_pixel": zeros.stride(3), "stride_channel": zeros.stride(1)}


def _per_pixel(query: Tensor, *count: int) -> Tensor:
    """Zeros (N, H·W, *count)."""
    return torch.zeros(query.shape[0], query.shape[2] * query.shape[3], *count, device=query.device)


def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_mask: Tensor,
    key_mask: Tensor,
    scale: float,
    radius: int,
    renormalize: bool,
) -> tuple[Tensor, Tensor]:
    output, strides = _zero_map(value)
    statistics = _per_pixel(query, 3)
    if statistics.numel() > 0:
        call = _Call(query, query_mask, key_mask, scale, radius)
        operands = {"query": _rows(query), "key": _rows(key), "statistics": statistics}
        call.launch(statistics_kernel, **operands)
        call.launch(
            forward_kernel, value.shape[1], **operands, value=_rows(value), output=output,
            **strides, value_channels=value.shape[1], RENORMALIZE=renormalize,
        )  # fmt: skip
    return output, statistics


def backward(
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
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    grads = [_zero_map(t) if need else (None, {}) for t, need in zip((query, key, value), needed, strict=True)]
    results = tuple(result for result, _ in grads)
    if statistics.numel() == 0:
        return results
    call = _Call(query, query_mask, key_mask, scale, radius)
    factors = offsets = statistics  # not read
    if renormalize:
        row_sums = statistics[:, :, 2]
        factors = torch.where(row_sums > 0, 1 / row_sums, 0.0)
        offsets = (grad_output.float() * output.float()).sum(1).flatten(1)
    operands = {
        "query": _rows(query), "key": _rows(key), "grad": _rows(grad_output), "statistics": statistics,
        "factors": factors, "offsets": offsets, "value_channels": value.shape[1], "RENORMALIZE": renormalize,
    }  # fmt: skip
    if needed[2]:
        call.launch(value_gradient_kernel, value.shape[1], **operands, result=results[2], **grads[2][1])
    if needed[0] or needed[1]:
        operands |= {"value": _rows(value), "means": _per_pixel(query), "VALUE_STEP": _power(value.shape[1], 64)}
        call.launch(mean_kernel, **operands)
        for i in (0, 1):
            if needed[i]:
                call.launch(
                    score_gradient_kernel, query.shape[1], **operands, result=results[i], **grads[i][1], OF_KEYS=i == 1
                )
    return results


def argmax(query: Tensor, key: Tensor, query_mask: Tensor, key_mask: Tensor, scale: float, radius: int) -> Tensor:
    best = torch.full((query.shape[0], *query.shape[2:]), -1, dtype=torch.int64, device=query.device)
    if best.numel() > 0:
        call = _Call(query, query_mask, key_mask, scale, radius)
        operands = {"query": _rows(query), "key": _rows(key), "statistics": _per_pixel(query, 3)}
        call.launch(statistics_kernel, **operands)
        call.launch(argmax_kernel, **operands, best=best)
    return best
