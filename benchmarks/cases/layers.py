"""The generator's 16 partial convolutions against a bare convolution on a ready input, and against the published
formulation."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from msa_ops import partial_conv2d, partial_conv2d_upcat

from ..channel_masks import ChannelMaskPartialConv
from ..measure import BOTH, FORWARD, OURS, Alternative, Case, Prepared, Reference, Row, Settings, significant
from ..model import free_form_mask
from .generator_layers import Layer, generator_layers, layer_masks, upsample
from .suite import Suite

BARE, CHANNEL_MASKS, COMPILED = "bare conv", "channel masks", "channel masks, compiled"
HOLE = (0.2, 0.3)
#: Sums over layers: all, and the two whose three channels leave a library's convolution slow.
SUMS = {"16 layers": (), "Encode_1 + Decode_1": ("Encode_1", "Decode_1")}


class Operands:
    """Holds what a layer computes from.

    Args:
        masks: (N,1,h,w) bool, True = valid; of the input, or in the decoder of low and skip.
        maps: the inputs, zero in the holes of the last where the network knows it to be.
        weights: weight and bias.
    """

    def __init__(self, layer: Layer, masks: list[Tensor], maps: list[Tensor], weights: list[Tensor]) -> None:
        self.layer, self.masks, self.maps, self.weights = layer, masks, maps, weights
        names = ("low", "skip") if layer.in_decoder else ("input",)
        tensors = dict(zip((*names, "weight", "bias"), (*maps, *weights), strict=True))
        if layer.reads_image:
            del tensors[names[-1]]
        self.leaves = {name: tensor.requires_grad_() for name, tensor in tensors.items()}

    @classmethod
    def random(cls, layer: Layer, masks: list[Tensor], settings: Settings) -> Operands:
        """Draws maps and weights in channels_last."""
        layout = dict(device=settings.device, dtype=settings.dtype, memory_format=torch.channels_last)
        masks = [mask.to(settings.device) for mask in masks]
        maps = [
            torch.randn(len(mask), channels, *mask.shape[2:], device=settings.device).to(**layout)
            for channels, mask in zip(layer.channels, masks, strict=True)
        ]
        if layer.is_masked:
            maps[-1] *= masks[-1]
        weight = torch.randn(layer.out_channels, layer.in_channels, layer.kernel, layer.kernel)
        bias = torch.randn(layer.out_channels).to(settings.device, settings.dtype)
        return cls(layer, masks, maps, [(weight / weight[0].numel() ** 0.5).to(**layout), bias])

    def double(self) -> Operands:
        maps, weights = ([tensor.detach().double() for tensor in tensors] for tensors in (self.maps, self.weights))
        return Operands(self.layer, self.masks, maps, weights)

    def on(self, backend: str, reference: Reference | None = None) -> Alternative:
        """Returns the layer as the network calls it."""
        layer, maps, masks = self.layer, self.maps, self.masks
        if layer.in_decoder:
            parts = maps[0], masks[0], maps[1], masks[1]
            known = dict(skip_is_masked=layer.is_masked, backend=backend)
            return Alternative(lambda: partial_conv2d_upcat(*parts, *self.weights, **known)[0], self.leaves, reference)
        known = dict(input_is_masked=layer.is_masked, backend=backend)
        call = functools.partial(partial_conv2d, *maps, *masks, *self.weights, layer.stride, layer.padding, **known)
        return Alternative(lambda: call()[0], self.leaves, reference)

    def reference(self) -> Reference:
        return Reference(self.on("reference"), self.double().on("reference"))

    def others(self, reference: Reference | None) -> dict[str, Alternative]:
        """Returns what runs on a ready input: the concatenation that the decoder's two maps stand for."""
        layer, geometry = self.layer, (self.layer.stride, self.layer.padding)
        ready = _joined([x.detach() for x in self.maps]).contiguous(memory_format=torch.channels_last)
        per_channel = _joined([m.expand_as(x) for m, x in zip(self.masks, self.maps, strict=True)])
        mask = per_channel.to(ready.dtype, memory_format=torch.channels_last)
        leaves = {name: self.leaves[name] for name in ("weight", "bias")}
        if layer.in_decoder or not layer.reads_image:
            # Named like ours where it is the same: ours does not clear the holes' gradient of an input that is masked.
            leaves["ready" if layer.in_decoder or layer.is_masked else "input"] = ready.requires_grad_()
        published = ChannelMaskPartialConv(*self.weights, *geometry)
        compiled = torch.compile(published.__call__, fullgraph=True, dynamic=False)
        # Through (raw - bias) · ratio + bias the bias's gradient loses digits, whoever computes it: not strict.
        return {
            BARE: Alternative(lambda: F.conv2d(ready, *self.weights, *geometry), leaves),
            CHANNEL_MASKS: Alternative(lambda: published(ready, mask)[0], leaves, reference, is_strict=False),
            COMPILED: Alternative(lambda: compiled(ready, mask)[0], leaves, reference, is_strict=False),
        }


def _joined(maps: list[Tensor]) -> Tensor:
    return torch.cat([upsample(maps[0]), maps[1]], 1) if len(maps) == 2 else maps[0]


def prepare(layer: Layer, masks: list[Tensor], settings: Settings) -> Prepared:
    """Draws the tensors of a layer. `masks`: (N,1,h,w) bool, of its inputs."""
    torch.compiler.reset()
    operands = Operands.random(layer, masks, settings)
    reference = operands.reference()
    found = operands.others(reference) | {OURS: operands.on("auto", reference)}
    batch, side = len(masks[0]), layer.side // layer.stride
    grad = torch.randn(batch, layer.out_channels, side, side, device=settings.device)
    return Prepared(
        {name: found[name] for name in names(settings)},
        layer.work(batch, settings.dtype.itemsize),
        grad=grad.to(settings.dtype, memory_format=torch.channels_last),
    )


def names(settings: Settings) -> tuple[str, ...]:
    return (BARE, OURS, CHANNEL_MASKS, *((COMPILED,) if settings.compiled else ()))


@functools.lru_cache(maxsize=1)
def _network_masks(size: int, batch: int) -> dict[str, list[Tensor]]:
    return layer_masks(torch.stack([free_form_mask(size, size, HOLE, 7 + i) for i in range(batch)]))


def cases(settings: Settings) -> list[Case]:
    """Makes cases at 256, on a GPU also at 512 and 1024, or at the sizes that are asked for."""

    def prepare_layer(layer: Layer, size: int, settings: Settings) -> Prepared:
        return prepare(layer, _network_masks(size, settings.batch)[layer.name], settings)

    return [
        Case(
            f"{layer.name} {size}",
            "partial_conv2d_upcat" if layer.in_decoder else "partial_conv2d",
            layer.shape(settings.batch),
            names(settings),
            functools.partial(prepare_layer, layer, size),
            family=layer.name,
            columns={"layer": layer.name, "size": size, "batch": settings.batch},
        )
        for size in settings.sizes or ((256, 512, 1024) if settings.on_cuda else (256,))
        for layer in generator_layers(size)
    ]


def sums(rows: Sequence[Row]) -> list[Row]:
    """Returns rows of times summed over all layers of a size, and over the two at both ends; only those of alternatives
    and passes that were measured in every one of the layers."""
    result: list[Row] = []
    sizes, keys = (dict.fromkeys(row[name] for row in rows) for name in ("size", "alternative"))
    for size, group, name, which in itertools.product(sizes, SUMS, keys, (FORWARD, BOTH)):
        members = SUMS[group] or [layer.name for layer in generator_layers(size)]
        wanted = dict(size=size, alternative=name) | {"pass": which}
        some = [row for row in rows if wanted.items() <= row.items() and row["layer"] in members and "ms" in row]
        if len(some) == len(members):
            times = {key: [row[key] for row in some] for key in ("ms", "eager_ms") if all(key in row for row in some)}
            row = {"case": f"{group} {size}", "batch": some[0]["batch"], "alternative": name, "pass": which}
            result.append(row | {key: significant(sum(values)) for key, values in times.items()})
    own = {(row["case"], row["pass"]): row["ms"] for row in result if row["alternative"] == OURS}
    for row in result:
        if unit := own.get((row["case"], row["pass"])):
            row["ratio"] = significant(row["ms"] / unit)
    return result


SUITE = Suite(
    "the generator's 16 partial convolutions",
    "Brush masks with 20-30 % hole, as each layer sees them in the network; channels_last. *bare conv* is `F.conv2d` "
    "on a ready-made concatenation, which leaves the masks out; *channel masks* is the published formulation with one "
    "mask channel per feature channel, *compiled* under `torch.compile`.",
    cases,
    totals=sums,
)
