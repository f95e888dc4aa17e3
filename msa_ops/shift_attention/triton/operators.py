"""Attention with shift propagation (Eqs. 6-8) in Triton, for the tensor cores: the operators' host side."""

from __future__ import annotations

import torch
from torch import Tensor

from ...core.layout import empty_map
from . import planning
from .attend import attend, attend_backward
from .call import Call


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
    """Returns the output (N, Cv, H, W) and the statistics (N, H·W, 3) that the backward needs."""
    output = empty_map(value, value.shape).zero_()
    statistics = torch.zeros(query.shape[0], query.shape[2] * query.shape[3], 3, device=query.device)
    if statistics.numel() == 0 or value.shape[1] == 0:
        return output, statistics
    call = Call(query, query_mask, key_mask, scale, radius)
    keys, values, queries = call.image(key, writes_keys=True), call.image(value, masked=True), call.rows(query)
    attend(call, queries, keys, query.shape[1], values, value.shape[1], statistics, output, renormalize)
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
    """Returns the gradients of query, key and value, None where not needed."""
    grad_query, grad_key, grad_value = (
        empty_map(t, t.shape) if need else None for t, need in zip((query, key, value), needed, strict=True)
    )
    if grad_query is not None:
        grad_query.zero_()
    if statistics.numel() == 0 or value.shape[1] == 0 or query.shape[1] == 0:
        for grad in (grad_key, grad_value):
            if grad is not None:
                grad.zero_()
        return grad_query, grad_key, grad_value
    call = Call(query, query_mask, key_mask, scale, radius)
    # The gradient of the queries is a product with the keys, in which NaN · 0 would be NaN where there is no key.
    keys, values = call.image(key, masked=True, writes_keys=True), call.image(value, masked=True)
    grads, offsets = call.grad_rows(grad_output, output, statistics, renormalize)
    of_keys = None if grad_key is None else torch.zeros(keys.shape, device=keys.device)
    of_values = None if grad_value is None else torch.zeros(values.shape, device=values.device)
    attend_backward(
        call,
        call.rows(query),
        keys,
        query.shape[1],
        values,
        value.shape[1],
        grads,
        statistics,
        offsets,
        grad_query,
        of_keys,
        of_values,
    )
    for image, map_ in ((of_keys, grad_key), (of_values, grad_value)):
        if image is not None and map_ is not None:
            call.spread(image, map_)
    return grad_query, grad_key, grad_value


def argmax(query: Tensor, key: Tensor, query_mask: Tensor, key_mask: Tensor, scale: float, radius: int) -> Tensor:
    """Returns, per query, the flat index of the key with the largest s' (N, H, W); -1 where there is none."""
    best = torch.full((query.shape[0], *query.shape[2:]), -1, dtype=torch.int64, device=query.device)
    if best.numel() == 0:
        return best
    call = Call(query, query_mask, key_mask, scale, radius)
    lay, size = call.layout, query.element_size()
    keys, queries = call.image(key, writes_keys=True), call.rows(query)
    statistics = call.empty(lay.samples, lay.size, 3)
    call.softmax_statistics(queries, keys, query.shape[1], statistics)
    plan = planning.plan(lay, 2 * size, size, planning.scratch_bytes(lay.samples, size))
    weights, shifted = (call.scratch(plan, query.dtype, halo=halo) for halo in (True, False))
    largest = torch.zeros(lay.samples, lay.size, device=query.device)
    for band in plan.bands:
        for cut, step in enumerate(band):
            call.pair_weights(queries, keys, query.shape[1], weights, plan, step, statistics)
            call.propagate(weights, shifted, plan, step, cut, masked=True)
            call.argmax(shifted, largest, best, plan, step)
    return best
