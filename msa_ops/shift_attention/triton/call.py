"""Attention with shift propagation (Eqs. 6-8) in Triton, for the tensor cores: the operators' host side.

Scores are made once, tile by tile, in scratch of a fixed size in global memory, for one sample about what the GPU's
second-level cache holds; the shift of Eq. 8 adds up rows there. attention_plan says how tiles are cut, attention_layout
how features lie, attention_scores and attention_products hold the kernels. Products take operands in the dtype of the
inputs and add up in float32; weights are rounded to that dtype before Eq. 8 and before the second product. Of float16
inputs, the scores' gradients, which would overflow, are float32, multiplied as TF32, which holds float16 exactly.
"""

from __future__ import annotations

import contextlib
import functools

import torch
import triton
from torch import Tensor

from ..partial_conv import fake_map
from . import attention_plan as planning
from .attention_layout import finish_kernel, image_kernel, index_kernel, rows_kernel, spread_kernel
from .attention_plan import ROWS, Layout, Step, pitch
from .attention_products import columns_product_kernel, rows_product_kernel
from .attention_scores import (
    argmax_kernel,
    combine_kernel,
    pair_kernel,
    propagate_kernel,
    score_gradient_kernel,
    statistics_kernel,
)


@functools.cache
def _names(kernel) -> frozenset[str]:
    return frozenset((*kernel.arg_names, "num_warps", "num_stages"))


def _strides(map_: Tensor, prefix: str = "s") -> dict[str, int]:
    return {f"{prefix}{name}": stride for name, stride in zip("nchw", map_.stride(), strict=True)}


def _mask_strides(mask: Tensor, prefix: str) -> dict[str, int]:
    return {f"{prefix}_s{name}": mask.stride(dimension) for name, dimension in (("n", 0), ("h", 2), ("w", 3))}


def _pixels_last(map_: Tensor) -> bool:
    """Whether neighbouring pixels lie closer to one another than neighbouring channels."""
    return abs(map_.stride(3)) < abs(map_.stride(1))


def _empty_map(like: Tensor) -> Tensor:
    """In the layout that the operators' fakes promise."""
    return fake_map(like, like.shape)


class Call:
    """Operands, scratch and launches of one call; keyword names are the kernels'."""

    def __init__(
        self, query: Tensor, query_mask: Tensor, key_mask: Tensor, scale: float, radius: int,
        dtype: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        """dtype: of the products' operands, where it is not the query's."""
        self.layout = Layout.of(query.shape, radius)
        self.device, self.dtype = query.device, dtype or query.dtype
        self.launch_table = planning.LAUNCH[self.dtype.itemsize]
        tf32 = torch.backends.cuda.matmul.allow_tf32
        lay = self.layout
        self.key_mask = key_mask.view(torch.uint8)
        self.mask_strides = _mask_strides(key_mask, "mask")
        self.shared = {
            "samples": lay.samples, "size": lay.size, "h": lay.h, "w": lay.w, "width": lay.width, "halo": lay.halo,
            "length": lay.length, "scale": scale, "ROWS": ROWS, "SAMPLES": triton.next_power_of_2(lay.samples),
            "SKEWED": lay.halo > 0, "RADIUS_Y": lay.radius_y, "RADIUS_X": lay.radius_x,
            "PRECISION": "tf32" if tf32 else "ieee",
            "pixels": self.empty(lay.samples, lay.size, dtype=torch.int32),
            "rank": self.empty(lay.samples, lay.size, dtype=torch.int32),
            "counts": self.empty(lay.samples, dtype=torch.int32),
            "keys": self.empty(lay.samples, lay.length, dtype=torch.uint8),
        }  # fmt: skip
        strides = _mask_strides(query_mask, "query") | _mask_strides(key_mask, "key")
        self.launch(
            index_kernel, (lay.samples,), query_mask=query_mask.view(torch.uint8), key_mask=self.key_mask, **strides,
            BLOCK=min(4096, max(128, triton.next_power_of_2(lay.size))), num_warps=8,
        )  # fmt: skip

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.device)

    def launch(self, kernel, grid: tuple[int, ...], **arguments) -> None:
        if min(grid) == 0:
            return
        names = _names(kernel)
        arguments = {name: value for name, value in (self.shared | arguments).items() if name in names}
        elsewhere = self.device.type == "cuda" and self.device.index != torch.cuda.current_device()
        with torch.cuda.device(self.device) if elsewhere else contextlib.nullcontext():
            kernel[grid](**arguments)

    def parameters(self, kernel: str, channels: int | None = None) -> dict[str, int]:
        """Of the launch table, with blocks of channels no larger than a row."""
        chosen = dict(self.launch_table[kernel])
        if channels is not None:
            for name in ("DEPTH", "CHANNELS"):
                if name in chosen and not (kernel in ("rows", "columns") and name == "DEPTH"):
                    chosen[name] = min(chosen[name], pitch(channels))
            chosen["PITCH"] = pitch(channels)
        return chosen

    # ---- features --------------------------------------------------------------------------------------------------

    def image(self, map_: Tensor, masked: bool = False, writes_keys: bool = False) -> Tensor:
        """(N, length, PITCH): the keys' side of a product."""
        channels, lay = map_.shape[1], self.layout
        image = self.empty(lay.samples, lay.length, pitch(channels), dtype=self.dtype)
        self.launch(
            image_kernel, (lay.length // ROWS, lay.samples), map_=map_, **_strides(map_), key_mask=self.key_mask,
            **self.mask_strides, image=image, channels=channels, MASKED=masked, WRITES_KEYS=writes_keys,
            PIXELS_LAST=_pixels_last(map_), DEPTH=min(64, pitch(channels)), PITCH=pitch(channels), num_warps=4,
        )  # fmt: skip
        return image

    def rows(self, map_: Tensor, **renormalized) -> Tensor:
        """(tiles · ROWS, PITCH): the queries' side of a product."""
        channels, lay = map_.shape[1], self.layout
        rows = self.empty(lay.tiles * ROWS, pitch(channels), dtype=self.dtype)
        other = renormalized.get("other", map_)
        arguments = {"other": other, "statistics": rows, "offsets": rows} | renormalized
        self.launch(
            rows_kernel, (lay.tiles,), map_=map_, **_strides(map_), **_strides(other, "other_s"), **arguments,
            rows=rows, channels=channels, RENORMALIZED=bool(renormalized), PIXELS_LAST=_pixels_last(map_),
            DEPTH=min(64, pitch(channels)), PITCH=pitch(channels), num_warps=4,
        )  # fmt: skip
        return rows

    def grad_rows(self, grad: Tensor, output: Tensor, statistics: Tensor, renormalize: bool) -> tuple[Tensor, dict]:
        """Rows of dO' and, as an argument of `pair`, where renormalised, the row constants c."""
        if not renormalize:
            return self.rows(grad), {}
        offsets = {"offsets": self.empty(self.layout.samples, self.layout.size)}
        return self.rows(grad, other=output, statistics=statistics, **offsets), offsets

    def spread(self, image: Tensor, map_: Tensor) -> None:
        channels, lay = map_.shape[1], self.layout
        depth = min(64, pitch(channels))
        self.launch(
            spread_kernel, (triton.cdiv(lay.size, ROWS), pitch(channels) // depth, lay.samples), image=image, map_=map_,
            **_strides(map_), channels=channels, PIXELS_LAST=_pixels_last(map_), DEPTH=depth, PITCH=pitch(channels),
            num_warps=4,
        )  # fmt: skip

    # ---- scores ----------------------------------------------------------------------------------------------------

    def softmax_statistics(self, query: Tensor, key: Tensor, channels: int, statistics: Tensor) -> None:
        lay, parameters = self.layout, self.parameters("statistics", channels)
        blocks = lay.length // parameters["BLOCK"]
        each = triton.cdiv(blocks, planning.splits(round(planning.QUERY_SHARE * lay.tiles), blocks))
        spans = triton.cdiv(blocks, each)
        partial = self.empty(spans, lay.samples, lay.size, 2)
        self.launch(
            statistics_kernel, (lay.tiles, spans), query=query, key=key, partial=partial,
            span=each * parameters["BLOCK"], **parameters,
        )  # fmt: skip
        self.launch(
            combine_kernel, (triton.cdiv(lay.size, 128), lay.samples), partial=partial, statistics=statistics,
            spans=spans, BLOCK=128, num_warps=4,
        )  # fmt: skip

    def pair(self, left: Tensor, right: Tensor, channels: int, scores: Tensor, plan, step: Step, **what) -> None:
        arguments = {"statistics": left, "offsets": left} | what
        parameters = self.parameters("pair", channels)
        span, spans = planning.spans(plan, parameters["BLOCK"])
        self.launch(
            pair_kernel, (step.tiles + 2 * plan.halo_tiles, spans), left=left, right=right, scores=scores,
            first_tile=step.first_tile - plan.halo_tiles, first_column=step.first_column, columns=plan.pitch, span=span,
            SOFTMAX="statistics" in what, WITH_OFFSETS="offsets" in what, **arguments, **parameters,
        )  # fmt: skip

    def propagate(self, source: Tensor, target: Tensor, plan, step: Step, cut: int, **what) -> None:
        parameters = self.parameters("propagate")
        span, spans = planning.spans(plan, parameters["BLOCK"])
        # Features are zero where there is no key, so that only who looks at weights themselves wants zeros there too.
        arguments = {"sums": source, "weights": source, "spans": 0, "MASKED": "sums" in what} | what
        if "sums" in what:
            arguments["spans"] = what["sums"].shape[1]
        self.launch(
            propagate_kernel, (step.tiles, spans), source=source, target=target, **_of(step, plan), span=span,
            first_span=cut * spans, GRADIENT="weights" in what, SUMS="sums" in what, **arguments, **parameters,
        )  # fmt: skip

    def sums(self, plan) -> Tensor:
        """Room for the shares of row sums of a band."""
        _, spans = planning.spans(plan, self.parameters("propagate")["BLOCK"])
        return self.empty(plan.tiles * ROWS, len(plan.bands[0]) * spans)

    # ---- products --------------------------------------------------------------------------------------------------

    def parts(self, plan, channels: int) -> Tensor:
        """Room for the parts of a sum over keys."""
        tiles = plan.tiles if len(plan.bands) > 1 else round(planning.QUERY_SHARE * plan.tiles)
        parameters = self.parameters("rows", channels)
        programs = tiles * (parameters["PITCH"] // parameters["CHANNELS"])
        each = plan.tiles * ROWS * pitch(channels) * 4
        slots = planning.splits(programs, plan.pitch // planning.COLUMNS)
        slots = min(slots, planning.parts_of_sums(self.layout.samples, each))
        return self.empty(max(1, slots), plan.tiles * ROWS, pitch(channels))

    def rows_product(
        self, scores: Tensor, image: Tensor, channels: int, parts: Tensor, plan, step: Step, cut: int
    ) -> None:
        parameters, slots = self._for_scores("rows", channels, scores), parts.shape[0]
        span = planning.up(triton.cdiv(plan.pitch, slots), parameters["DEPTH"])
        self.launch(
            rows_product_kernel, (step.tiles, parameters["PITCH"] // parameters["CHANNELS"], slots), scores=scores,
            image=image, parts=parts, span=span, ADDS=cut > 0, part_rows=parts.shape[1], **_of(step, plan),
            **parameters,
        )  # fmt: skip

    def finish(self, parts: Tensor, map_: Tensor, step: Step, **what) -> None:
        """Parts to the queries' pixels of a map."""
        channels = map_.shape[1]
        depth = min(64, pitch(channels))
        arguments = {"sums": parts, "statistics": parts, "blocks": 0, "RENORMALIZE": False} | what
        if "sums" in what:
            arguments["blocks"] = what["sums"].shape[1]
        self.launch(
            finish_kernel, (step.tiles, pitch(channels) // depth), parts=parts, map_=map_, **_strides(map_),
            first_tile=step.first_tile, part_rows=parts.shape[1], slots=parts.shape[0], channels=channels,
            WITH_SUMS="sums" in what, PIXELS_LAST=_pixels_last(map_), DEPTH=depth, PITCH=pitch(channels), **arguments,
            num_warps=4,
        )  # fmt: skip

    def columns_product(self, scores: Tensor, rows: Tensor, channels: int, image: Tensor, plan, step: Step) -> None:
        parameters = self._for_scores("columns", channels, scores)
        blocks = plan.pitch // parameters["BLOCK"]
        self.launch(
            columns_product_kernel, (blocks, parameters["PITCH"] // parameters["CHANNELS"], self.layout.samples),
            scores=scores, rows=rows, image=image, tiles=step.tiles, **_of(step, plan), **parameters,
        )  # fmt: skip

    def _for_scores(self, kernel: str, channels: int, scores: Tensor) -> dict:
        """Launch parameters by the dtype of the scores; float32 scores of float16 inputs are multiplied as TF32."""
        if scores.dtype == self.dtype:
            return self.parameters(kernel, channels)
        chosen = planning.LAUNCH[4][kernel]
        return self.parameters(kernel, channels) | chosen | {
            "CHANNELS": min(chosen["CHANNELS"], pitch(channels)), "PRECISION": "tf32"
        }  # fmt: skip


def _of(step: Step, plan) -> dict[str, int]:
    return {
        "first_tile": step.first_tile, "halo_tiles": plan.halo_tiles, "first_column": step.first_column,
        "columns": plan.pitch, "begin": step.begin, "end": step.end,
    }  # fmt: skip


def _scratch(call: Call, plan, *dtypes: torch.dtype, halo: bool) -> list[Tensor]:
    rows = plan.scratch_rows if halo else plan.tiles * ROWS
    return [call.empty(rows, plan.pitch, dtype=dtype) for dtype in dtypes]


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
    output = _empty_map(value).zero_()
    statistics = torch.zeros(query.shape[0], query.shape[2] * query.shape[3], 3, device=query.device)
    if statistics.numel() == 0 or value.shape[1] == 0:
        return output, statistics
    call = Call(query, query_mask, key_mask, scale, radius)
    key_image, value_image = call.image(key, writes_keys=True), call.image(value, masked=True)
    query_rows = call.rows(query)
    channels, value_channels = query.shape[1], value.shape[1]
    _attend(call, query_rows, key_image, channels, value_image, value_channels, statistics, output, renormalize)
    return output, statistics


def _attend(call, query, key, channels, value, value_channels, statistics, output, renormalize) -> None:
    """Statistics, and the output at the queries' pixels."""
    lay, size = call.layout, query.element_size()
    copies = 1 if lay.halo == 0 else 2
    plan = planning.plan(lay, copies * size, size, planning.scratch_bytes(lay.samples, size))
    call.softmax_statistics(query, key, channels, statistics)
    (weights,) = _scratch(call, plan, query.dtype, halo=True)
    shifted = weights if lay.halo == 0 else _scratch(call, plan, query.dtype, halo=False)[0]
    parts = call.parts(plan, value_channels)
    sums = {"sums": call.sums(plan)} if renormalize else {}
    for band in plan.bands:
        for cut, step in enumerate(band):
            call.pair(query, key, channels, weights, plan, step, statistics=statistics)
            if lay.halo > 0 or renormalize:
                call.propagate(weights, shifted, plan, step, cut, **sums)
            call.rows_product(shifted, value, value_channels, parts, plan, step, cut)
        extra = {**sums, "statistics": statistics, "RENORMALIZE": renormalize} if renormalize else {}
        call.finish(parts, output, band[0], **extra)


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
    grads = tuple(_empty_map(t) if need else None for t, need in zip((query, key, value), needed, strict=True))
    if statistics.numel() == 0 or value.shape[1] == 0 or query.shape[1] == 0:
        return tuple(None if grad is None else grad.zero_() for grad in grads)
    call = Call(query, query_mask, key_mask, scale, radius)
    key_image, value_image = call.image(key, writes_keys=True), call.image(value, masked=True)
    grad_rows, offsets = call.grad_rows(grad_output, output, statistics, renormalize)
    targets = [None if grads[0] is None else grads[0].zero_()]
    targets += [
        None if grad is None else torch.zeros(image.shape, device=image.device)
        for grad, image in zip(grads[1:], (key_image, value_image), strict=True)
    ]
    _attend_backward(
        call, call.rows(query), key_image, query.shape[1], value_image, value.shape[1], grad_rows, statistics, offsets,
        targets,
    )  # fmt: skip
    for grad, image in zip(grads[1:], targets[1:], strict=True):
        if grad is not None:
            call.spread(image, grad)
    return grads


def _attend_backward(call, query, key, channels, value, value_channels, grad, statistics, offsets, targets) -> None:
    """Gradients: a map of the queries' (written at their pixels), images of the keys' and values' (added to), each
    None where not asked for. `offsets` holds those of the renormalisation, if any."""
    lay, size = call.layout, query.element_size()
    grad_query, grad_key, grad_value = targets
    wants_scores = grad_query is not None or grad_key is not None
    wide = torch.float32 if query.dtype == torch.float16 else query.dtype
    halo_row_bytes = size + (wide.itemsize if wants_scores else 0)
    budget = planning.scratch_bytes(lay.samples, size, backward=wants_scores)
    cut_cost = 1.6 if wants_scores else 1.0  # see below
    plan = planning.plan(lay, 2 * halo_row_bytes, halo_row_bytes, budget, cut_cost)
    (weights,) = _scratch(call, plan, query.dtype, halo=True)
    (plain,) = _scratch(call, plan, wide if wants_scores else query.dtype, halo=False)
    # Weights and, later, their gradients; of different width where those of float16 are float32.
    shifted = plain if plain.dtype == query.dtype else plain.view(query.dtype).view(-1, plan.pitch)[: len(plain)]
    if lay.halo == 0:
        shifted = weights
    if wants_scores:
        pairs, propagated = *_scratch(call, plan, wide, halo=True), *_scratch(call, plan, wide, halo=False)
        sums = call.sums(plan)
    if grad_query is not None:
        parts = call.parts(plan, channels)

    def scores(step: Step, cut: int) -> None:
        call.pair(query, key, channels, weights, plan, step, statistics=statistics)
        if wants_scores:
            call.pair(grad, value, value_channels, pairs, plan, step, **offsets)
            call.propagate(pairs, propagated, plan, step, cut, weights=weights, sums=sums)

    for band in plan.bands:
        # Where keys are cut too, D is known after all cuts only, and scores are made again.
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
                block = call.parameters("propagate")
                span, spans = planning.spans(plan, block["BLOCK"])
                call.launch(
                    score_gradient_kernel, (step.tiles, spans), weights=weights, gradient=propagated, target=plain,
                    sums=sums, span=span, spans=sums.shape[1], **_of(step, plan), **block,
                )  # fmt: skip
            if grad_query is not None:
                call.rows_product(plain, key, channels, parts, plan, step, cut)
            if grad_key is not None:
                call.columns_product(plain, query, channels, grad_key, plan, step)
        if grad_query is not None:
            call.finish(parts, grad_query, band[0])


def argmax(query: Tensor, key: Tensor, query_mask: Tensor, key_mask: Tensor, scale: float, radius: int) -> Tensor:
    best = torch.full((query.shape[0], *query.shape[2:]), -1, dtype=torch.int64, device=query.device)
    if best.numel() == 0:
        return best
    call = Call(query, query_mask, key_mask, scale, radius)
    lay, size = call.layout, query.element_size()
    key_rows, query_rows = call.image(key, writes_keys=True), call.rows(query)
    statistics = call.empty(lay.samples, lay.size, 3)
    call.softmax_statistics(query_rows, key_rows, query.shape[1], statistics)
    plan = planning.plan(lay, 2 * size, size, planning.scratch_bytes(lay.samples, size))
    (weights,), (shifted,) = (_scratch(call, plan, query.dtype, halo=halo) for halo in (True, False))
    largest = torch.zeros(lay.samples, lay.size, device=query.device)
    for band in plan.bands:
        for cut, step in enumerate(band):
            call.pair(query_rows, key_rows, query.shape[1], weights, plan, step, statistics=statistics)
            call.propagate(weights, shifted, plan, step, cut, MASKED=True)
            call.launch(
                argmax_kernel, (step.tiles,), scores=shifted, largest=largest, best=best, **_of(step, plan), BLOCK=128,
                num_warps=8,
            )  # fmt: skip
    return best
