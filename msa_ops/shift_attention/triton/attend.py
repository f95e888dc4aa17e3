"""The attention on operands that already lie in the kernels' layout, and its gradient.

The scores are made once, tile by tile, in scratch of a fixed size in global memory, which for one sample is about what
the GPU's second-level cache holds; there the shift of Eq. 8 adds up rows. `planning` says how tiles are cut,
`layout_kernels` how features lie; `score_kernels` and `product_kernels` do the work. Products take operands in the
dtype of the inputs and add up in float32; weights are rounded to that dtype before Eq. 8 and before the second product.
The scores' gradients of float16 inputs would overflow; they are float32, multiplied as TF32, which holds float16
exactly.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import planning
from .call import Call
from .planning import Step


def attend(
    call: Call,
    query: Tensor,
    key: Tensor,
    channels: int,
    value: Tensor,
    value_channels: int,
    statistics: Tensor,
    output: Tensor,
    renormalize: bool,
) -> None:
    """Fills the statistics, and the output at the queries' pixels.

    Args:
        call: sizes, masks and scratch.
        query: rows of queries.
        key: image of keys.
        channels: of query and key.
        value: image of values.
        value_channels: of value.
        statistics: (N, H·W, 3), zeros.
        output: map (N, value_channels, H, W).
        renormalize: whether to divide by the row sums of s'.
    """
    lay, size = call.layout, query.element_size()
    copies = 1 if lay.halo == 0 else 2
    plan = planning.plan(lay, copies * size, size, planning.scratch_bytes(lay.samples, size))
    call.softmax_statistics(query, key, channels, statistics)
    weights = call.scratch(plan, query.dtype, halo=True)
    shifted = weights if lay.halo == 0 else call.scratch(plan, query.dtype, halo=False)
    parts = call.parts(plan, value_channels)
    sums = call.sums(plan) if renormalize else None
    for band in plan.bands:
        for cut, step in enumerate(band):
            call.pair_weights(query, key, channels, weights, plan, step, statistics)
            if lay.halo > 0 or renormalize:
                call.propagate(weights, shifted, plan, step, cut, sums=sums)
            call.rows_product(shifted, value, value_channels, parts, plan, step, cut)
        call.finish(
            parts, output, band[0], sums=sums, statistics=statistics if renormalize else None, renormalize=renormalize
        )


def attend_backward(
    call: Call,
    query: Tensor,
    key: Tensor,
    channels: int,
    value: Tensor,
    value_channels: int,
    grad: Tensor,
    statistics: Tensor,
    offsets: Tensor | None,
    grad_query: Tensor | None,
    grad_key: Tensor | None,
    grad_value: Tensor | None,
) -> None:
    """Computes the gradients that are not None.

    Args:
        call: sizes, masks and scratch.
        query: rows of queries.
        key: image of keys.
        channels: of query and key.
        value: image of values.
        value_channels: of value.
        grad: rows of the output's gradient.
        statistics: those of the forward.
        offsets: the constants of the rows, where the forward renormalised.
        grad_query: map of the queries' gradients, written at the queries' pixels.
        grad_key: image of the keys' gradients, added to.
        grad_value: image of the values' gradients, added to.
    """
    lay, size = call.layout, query.element_size()
    wants_scores = grad_query is not None or grad_key is not None
    wide = torch.float32 if query.dtype == torch.float16 else query.dtype
    halo_row_bytes = size + (wide.itemsize if wants_scores else 0)
    budget = planning.scratch_bytes(lay.samples, size, backward=wants_scores)
    cut_cost = 1.6 if wants_scores else 1.0  # where keys are cut, scores are made again, see below
    plan = planning.plan(lay, 2 * halo_row_bytes, halo_row_bytes, budget, cut_cost)
    weights = call.scratch(plan, query.dtype, halo=True)
    plain = call.scratch(plan, wide if wants_scores else query.dtype, halo=False)
    # Weights and, later, their gradients; of different width where those of float16 are float32.
    shifted = plain if plain.dtype == query.dtype else plain.view(query.dtype).view(-1, plan.pitch)[: len(plain)]
    if lay.halo == 0:
        shifted = weights
    if wants_scores:
        pairs, propagated = call.scratch(plan, wide, halo=True), call.scratch(plan, wide, halo=False)
        sums = call.sums(plan)
    if grad_query is not None:
        parts = call.parts(plan, channels)

    def scores(step: Step, cut: int) -> None:
        call.pair_weights(query, key, channels, weights, plan, step, statistics)
        if wants_scores:
            call.pair_gradients(grad, value, value_channels, pairs, plan, step, offsets)
            call.propagate(pairs, propagated, plan, step, cut, weights=weights, sums=sums)

    for band in plan.bands:
        # Where keys are cut too, the row term D is known only after all cuts, and scores are made again.
        if len(band) > 1 and wants_scores:
            for cut, step in enumerate(band):
                scores(step, cut)
        for cut, step in enumerate(band):
            scores(step, cut)
            if grad_value is not None:
                if lay.halo > 0:
                    call.propagate(weights, shifted, plan, step, cut)
                call.columns_product(shifted, grad, value_channels, grad_value, plan, step)
            if wants_scores:
                call.score_gradient(weights, propagated, plain, sums, plan, step)
            if grad_query is not None:
                call.rows_product(plain, key, channels, parts, plan, step, cut)
            if grad_key is not None:
                call.columns_product(plain, query, channels, grad_key, plan, step)
        if grad_query is not None:
            call.finish(parts, grad_query, band[0])
