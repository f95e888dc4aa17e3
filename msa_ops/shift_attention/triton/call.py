"""Operands, scratch and kernel launches of one call of the attention in Triton."""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton
from torch import Tensor

from ...core.triton.launch import launch, parameters
from . import planning
from .layout_kernels import finish_kernel, image_kernel, index_kernel, rows_kernel, spread_kernel
from .planning import ROWS, Layout, Plan, Step, pitch
from .product_kernels import columns_product_kernel, rows_product_kernel
from .score_kernels import (
    argmax_kernel,
    combine_kernel,
    pair_kernel,
    propagate_kernel,
    score_gradient_kernel,
    statistics_kernel,
)


def strides(map_: Tensor, prefix: str = "s") -> dict[str, int]:
    """Returns the strides of a map as the kernels' arguments, by default sn, sc, sh and sw."""
    return {f"{prefix}{name}": stride for name, stride in zip("nchw", map_.stride(), strict=True)}


def mask_strides(mask: Tensor, prefix: str) -> dict[str, int]:
    """Returns the strides of a mask as the kernels' arguments prefix_sn, prefix_sh and prefix_sw."""
    return {f"{prefix}_s{name}": mask.stride(dimension) for name, dimension in (("n", 0), ("h", 2), ("w", 3))}


def pixels_last(map_: Tensor) -> bool:
    """Tells whether neighbouring pixels lie closer to one another than neighbouring channels."""
    return abs(map_.stride(3)) < abs(map_.stride(1))


@functools.cache
def _parameter_names(kernel_function: Any) -> frozenset[str]:
    return frozenset(parameters(kernel_function))


class Call:
    """Operands, scratch and launches of one call.

    Args:
        query: (N, C, H, W); gives sizes, device and dtype.
        query_mask: bool (N, 1, H, W).
        key_mask: bool (N, 1, H, W).
        scale: factor of the scores.
        radius: of the propagation.
        dtype: of the products' operands, where it is not the query's.
    """

    def __init__(
        self,
        query: Tensor,
        query_mask: Tensor,
        key_mask: Tensor,
        scale: float,
        radius: int,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.layout = Layout.of(query.shape, radius)
        self.device, self.dtype = query.device, dtype or query.dtype
        self.launch_table = planning.LAUNCH[self.dtype.itemsize]
        self.precision = "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee"
        lay = self.layout
        self.key_mask = key_mask.view(torch.uint8)
        self.mask_strides = mask_strides(key_mask, "mask")
        self.shared: dict[str, Any] = {
            "samples": lay.samples,
            "size": lay.size,
            "h": lay.h,
            "w": lay.w,
            "width": lay.width,
            "halo": lay.halo,
            "length": lay.length,
            "scale": scale,
            "ROWS": ROWS,
            "SAMPLES": triton.next_power_of_2(lay.samples),
            "SKEWED": lay.halo > 0,
            "RADIUS_Y": lay.radius_y,
            "RADIUS_X": lay.radius_x,
            "pixels": self.empty(lay.samples, lay.size, dtype=torch.int32),
            "rank": self.empty(lay.samples, lay.size, dtype=torch.int32),
            "counts": self.empty(lay.samples, dtype=torch.int32),
            "keys": self.empty(lay.samples, lay.length, dtype=torch.uint8),
        }
        self.launch(
            index_kernel, (lay.samples,), query_mask=query_mask.view(torch.uint8), key_mask=self.key_mask,
            **mask_strides(query_mask, "query"), **mask_strides(key_mask, "key"),
            BLOCK=min(4096, max(128, triton.next_power_of_2(lay.size))), num_warps=8,
        )  # fmt: skip

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Returns an uninitialised tensor on the call's device."""
        return torch.empty(shape, dtype=dtype, device=self.device)

    def launch(self, kernel: Any, grid: tuple[int, ...], **arguments: Any) -> None:
        """Runs a kernel with these arguments and with the shared ones that it has."""
        names = _parameter_names(kernel.fn)
        shared = {name: value for name, value in self.shared.items() if name in names}
        launch(kernel, grid, self.device, **shared, **arguments)

    def parameters(self, kernel: str) -> dict[str, int]:
        """Returns a kernel's launch parameters from the table."""
        return dict(self.launch_table[kernel])

    def product_parameters(self, kernel: str, channels: int) -> dict[str, Any]:
        """Returns the launch parameters of a product over this many channels, whose blocks are no larger than a row."""
        chosen: dict[str, Any] = self.parameters(kernel)
        block = "CHANNELS" if kernel in ("rows", "columns") else "DEPTH"
        chosen[block] = min(chosen[block], pitch(channels))
        return chosen | {"PITCH": pitch(channels), "PRECISION": self.precision}

    # ---- features --------------------------------------------------------------------------------------------------

    def image(self, map_: Tensor, masked: bool = False, writes_keys: bool = False) -> Tensor:
        """Returns a map as an image (N, length, PITCH), the keys' side of a product."""
        channels, lay = map_.shape[1], self.layout
        image = self.empty(lay.samples, lay.length, pitch(channels), dtype=self.dtype)
        self.launch(
            image_kernel, (lay.length // ROWS, lay.samples), map_=map_, **strides(map_), key_mask=self.key_mask,
            **self.mask_strides, image=image, channels=channels, MASKED=masked, WRITES_KEYS=writes_keys,
            PIXELS_LAST=pixels_last(map_), DEPTH=min(64, pitch(channels)), PITCH=pitch(channels), num_warps=4,
        )  # fmt: skip
        return image

    def rows(
        self,
        map_: Tensor,
        other: Tensor | None = None,
        statistics: Tensor | None = None,
        offsets: Tensor | None = None,
    ) -> Tensor:
        """Returns the queries' features as rows (tiles · ROWS, PITCH), the queries' side of a product. With the other
        arguments the rows are divided by the row sums of s', and `offsets` is filled (see `rows_kernel`)."""
        channels, lay = map_.shape[1], self.layout
        rows = self.empty(lay.tiles * ROWS, pitch(channels), dtype=self.dtype)
        renormalized = other is not None
        other = map_ if other is None else other
        self.launch(
            rows_kernel, (lay.tiles,), map_=map_, **strides(map_), other=other, **strides(other, "other_s"),
            statistics=rows if statistics is None else statistics, offsets=rows if offsets is None else offsets,
            rows=rows, channels=channels, RENORMALIZED=renormalized, PIXELS_LAST=pixels_last(map_),
            DEPTH=min(64, pitch(channels)), PITCH=pitch(channels), num_warps=4,
        )  # fmt: skip
        return rows

    def grad_rows(
        self, grad: Tensor, output: Tensor, statistics: Tensor, renormalize: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Returns the rows of dO' and, where renormalised, the constants of the rows, which `pair_gradients` takes."""
        if not renormalize:
            return self.rows(grad), None
        offsets = self.empty(self.layout.samples, self.layout.size)
        return self.rows(grad, output, statistics, offsets), offsets

    def spread(self, image: Tensor, map_: Tensor) -> None:
        """Writes an image into a map."""
        channels, lay = map_.shape[1], self.layout
        depth = min(64, pitch(channels))
        self.launch(
            spread_kernel, (triton.cdiv(lay.size, ROWS), pitch(channels) // depth, lay.samples), image=image, map_=map_,
            **strides(map_), channels=channels, PIXELS_LAST=pixels_last(map_), DEPTH=depth, PITCH=pitch(channels),
            num_warps=4,
        )  # fmt: skip

    # ---- scores ----------------------------------------------------------------------------------------------------

    def softmax_statistics(self, query: Tensor, key: Tensor, channels: int, statistics: Tensor) -> None:
        """Fills the statistics (N, H·W, 3) with the maximum and the logarithm of the sum of every row of scores."""
        lay, parameters = self.layout, self.product_parameters("statistics", channels)
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

    def pair_weights(
        self, query: Tensor, key: Tensor, channels: int, weights: Tensor, plan: Plan, step: Step, statistics: Tensor
    ) -> None:
        """Computes the weights s* of one step."""
        self._pair(query, key, channels, weights, plan, step, statistics=statistics, offsets=None)

    def pair_gradients(
        self, grad: Tensor, value: Tensor, channels: int, scores: Tensor, plan: Plan, step: Step, offsets: Tensor | None
    ) -> None:
        """Computes the gradients of s' of one step."""
        self._pair(grad, value, channels, scores, plan, step, statistics=None, offsets=offsets)

    def _pair(
        self,
        left: Tensor,
        right: Tensor,
        channels: int,
        scores: Tensor,
        plan: Plan,
        step: Step,
        statistics: Tensor | None,
        offsets: Tensor | None,
    ) -> None:
        parameters = self.product_parameters("pair", channels)
        span, spans = planning.spans(plan, parameters["BLOCK"])
        self.launch(
            pair_kernel, (step.tiles + 2 * plan.halo_tiles, spans), left=left, right=right, scores=scores,
            statistics=left if statistics is None else statistics, offsets=left if offsets is None else offsets,
            first_tile=step.first_tile - plan.halo_tiles, first_column=step.first_column, columns=plan.pitch, span=span,
            SOFTMAX=statistics is not None, WITH_OFFSETS=offsets is not None, **parameters,
        )  # fmt: skip

    def propagate(
        self,
        source: Tensor,
        target: Tensor,
        plan: Plan,
        step: Step,
        cut: int,
        *,
        weights: Tensor | None = None,
        sums: Tensor | None = None,
        masked: bool = False,
    ) -> None:
        """Applies Eq. 8 to weights or, where `weights` is given, to gradients; `sums` gets shares of row sums.

        Features are zero where there is no key, so that zeros there are only needed (`masked`) by who reads the weights
        themselves, as the row sums do.
        """
        parameters = self.parameters("propagate")
        span, spans = planning.spans(plan, parameters["BLOCK"])
        self.launch(
            propagate_kernel, (step.tiles, spans), source=source, target=target,
            weights=source if weights is None else weights, sums=source if sums is None else sums,
            spans=0 if sums is None else sums.shape[1], first_tile=step.first_tile, halo_tiles=plan.halo_tiles,
            first_column=step.first_column, columns=plan.pitch, begin=step.begin, end=step.end, span=span,
            first_span=cut * spans, GRADIENT=weights is not None, SUMS=sums is not None,
            MASKED=masked or sums is not None, **parameters,
        )  # fmt: skip

    def score_gradient(
        self, weights: Tensor, gradient: Tensor, target: Tensor, sums: Tensor, plan: Plan, step: Step
    ) -> None:
        """Computes the gradients of the scores of one step from those of the weights."""
        parameters = self.parameters("propagate")
        span, spans = planning.spans(plan, parameters["BLOCK"])
        self.launch(
            score_gradient_kernel, (step.tiles, spans), weights=weights, gradient=gradient, target=target, sums=sums,
            first_tile=step.first_tile, halo_tiles=plan.halo_tiles, columns=plan.pitch, begin=step.begin, end=step.end,
            span=span, spans=sums.shape[1], **parameters,
        )  # fmt: skip

    def argmax(self, scores: Tensor, largest: Tensor, best: Tensor, plan: Plan, step: Step) -> None:
        """Updates the largest s' seen so far, and the key that has it."""
        self.launch(
            argmax_kernel, (step.tiles,), scores=scores, largest=largest, best=best, first_tile=step.first_tile,
            first_column=step.first_column, columns=plan.pitch, BLOCK=128, num_warps=8,
        )  # fmt: skip

    def scratch(self, plan: Plan, dtype: torch.dtype, halo: bool) -> Tensor:
        """Returns room for one step's tile of scores, with or without the halo's rows."""
        return self.empty(plan.scratch_rows if halo else plan.tiles * ROWS, plan.pitch, dtype=dtype)

    def sums(self, plan: Plan) -> Tensor:
        """Returns room for the shares of row sums of a band."""
        _, spans = planning.spans(plan, self.parameters("propagate")["BLOCK"])
        return self.empty(plan.tiles * ROWS, len(plan.bands[0]) * spans)

    # ---- products --------------------------------------------------------------------------------------------------

    def parts(self, plan: Plan, channels: int) -> Tensor:
        """Returns room for the parts of a sum over keys."""
        tiles = plan.tiles if len(plan.bands) > 1 else round(planning.QUERY_SHARE * plan.tiles)
        parameters = self.product_parameters("rows", channels)
        programs = tiles * (parameters["PITCH"] // parameters["CHANNELS"])
        each = plan.tiles * ROWS * pitch(channels) * 4
        slots = planning.splits(programs, plan.pitch // planning.COLUMNS)
        slots = min(slots, planning.parts_of_sums(self.layout.samples, each))
        return self.empty(max(1, slots), plan.tiles * ROWS, pitch(channels))

    def rows_product(
        self, scores: Tensor, image: Tensor, channels: int, parts: Tensor, plan: Plan, step: Step, cut: int
    ) -> None:
        """Adds scores · features, summed over the step's keys, to the parts."""
        parameters, slots = self._parameters_for("rows", channels, scores), parts.shape[0]
        span = planning.up(triton.cdiv(plan.pitch, slots), parameters["DEPTH"])
        self.launch(
            rows_product_kernel, (step.tiles, parameters["PITCH"] // parameters["CHANNELS"], slots), scores=scores,
            image=image, parts=parts, first_tile=step.first_tile, first_column=step.first_column, columns=plan.pitch,
            span=span, part_rows=parts.shape[1], ADDS=cut > 0, **parameters,
        )  # fmt: skip

    def finish(
        self,
        parts: Tensor,
        map_: Tensor,
        step: Step,
        *,
        sums: Tensor | None = None,
        statistics: Tensor | None = None,
        renormalize: bool = False,
    ) -> None:
        """Adds up the parts and writes the result to the queries' pixels of a map."""
        channels = map_.shape[1]
        depth = min(64, pitch(channels))
        self.launch(
            finish_kernel, (step.tiles, pitch(channels) // depth), parts=parts, map_=map_, **strides(map_),
            sums=parts if sums is None else sums, statistics=parts if statistics is None else statistics,
            blocks=0 if sums is None else sums.shape[1], first_tile=step.first_tile, part_rows=parts.shape[1],
            slots=parts.shape[0], channels=channels, WITH_SUMS=sums is not None, RENORMALIZE=renormalize,
            PIXELS_LAST=pixels_last(map_), DEPTH=depth, PITCH=pitch(channels), num_warps=4,
        )  # fmt: skip

    def columns_product(
        self, scores: Tensor, rows: Tensor, channels: int, image: Tensor, plan: Plan, step: Step
    ) -> None:
        """Adds scoresᵀ · rows, summed over the step's queries, to an image."""
        parameters = self._parameters_for("columns", channels, scores)
        grid = plan.pitch // parameters["BLOCK"], parameters["PITCH"] // parameters["CHANNELS"], self.layout.samples
        self.launch(
            columns_product_kernel, grid, scores=scores, rows=rows, image=image, first_tile=step.first_tile,
            tiles=step.tiles, first_column=step.first_column, columns=plan.pitch, **parameters,
        )  # fmt: skip

    def _parameters_for(self, kernel: str, channels: int, scores: Tensor) -> dict[str, Any]:
        """Returns launch parameters by the dtype of the scores; float32 scores of float16 inputs are multiplied as
        TF32, which holds float16 exactly."""
        if scores.dtype == self.dtype:
            return self.product_parameters(kernel, channels)
        wide = dict(planning.LAUNCH[scores.dtype.itemsize][kernel])
        wide["CHANNELS"] = min(wide["CHANNELS"], pitch(channels))
        return wide | {"PITCH": pitch(channels), "PRECISION": "tf32"}
