"""The layers suite: the generator's 16 partial convolutions against a bare convolution on a ready input, and against
the published formulation."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from msa_model.masks import free_form_mask
from msa_ops import partial_conv2d, partial_conv2d_upcat

from .competitors import ChannelMaskPartialConv
from .contest import OURS, Call, Contest, Contestant, Settings, Truth
from .generator_layers import Layer, generator_layers, layer_masks, upsample
from .harness import significant
from .suites import Case, Suite

BARE, CHANNEL_MASKS, COMPILED = "bare conv", "channel masks", "channel masks, compiled"
HOLE = (0.2, 0.3)
#: Rows of sums: all layers, and the two whose three channels leave a library's convolution weak.
SUMS = {"16 layers": None, "Encode_1 + Decode_1": ("Encode_1", "Decode_1")}


class Operands:
    """What a layer computes from.

    Args:
        masks: (N,1,h,w) bool, 1 = valid; of the input, or in the decoder of low and skip.
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
        """In channels_last."""
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

    def call(self, backend: str) -> Call:
        """The layer as the network calls it."""
        layer, maps, masks = self.layer, self.maps, self.masks
        if layer.in_decoder:
            parts = maps[0], masks[0], maps[1], masks[1]
            known = dict(skip_is_masked=layer.is_masked, backend=backend)
            return Call(lambda: partial_conv2d_upcat(*parts, *self.weights, **known)[0], self.leaves)
        known = dict(input_is_masked=layer.is_masked, backend=backend)
        geometry = layer.stride, layer.padding
        return Call(lambda: partial_conv2d(*maps, *masks, *self.weights, *geometry, **known)[0], self.leaves)

    def truth(self) -> Truth:
        return Truth(self.call("reference"), self.double().call("reference"))

    def others(self) -> dict[str, Call]:
        """What is run on a ready input instead: the concatenation that the decoder's two maps stand for."""
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
        return {
            BARE: Call(lambda: F.conv2d(ready, *self.weights, *geometry), leaves),
            CHANNEL_MASKS: Call(lambda: published(ready, mask)[0], leaves),
            COMPILED: Call(lambda: compiled(ready, mask)[0], leaves),
        }


def _joined(maps: list[Tensor]) -> Tensor:
    return torch.cat([upsample(maps[0]), maps[1]], 1) if len(maps) == 2 else maps[0]


def layer_contest(layer: Layer, masks: list[Tensor], settings: Settings) -> Contest:
    """`masks`: (N,1,h,w) bool, of the layer's inputs."""
    torch.compiler.reset()
    operands = Operands.random(layer, masks, settings)
    truth, others = operands.truth(), operands.others()
    # Through (raw - bias) · ratio + bias the bias's gradient loses digits, whoever computes it: not strict.
    contestants = {
        BARE: Contestant(others[BARE]),
        OURS: Contestant(operands.call("auto"), truth),
        CHANNEL_MASKS: Contestant(others[CHANNEL_MASKS], truth, strict=False),
    }
    if settings.compiled:
        contestants[COMPILED] = Contestant(others[COMPILED], truth, strict=False)
    batch = len(masks[0])
    grad = torch.randn(batch, layer.out_channels, *[layer.side // layer.stride] * 2, device=settings.device)
    return Contest(
        contestants,
        layer.work(batch, settings.dtype.itemsize),
        grad=grad.to(settings.dtype, memory_format=torch.channels_last),
    )


@functools.lru_cache(maxsize=1)
def _network_masks(size: int, batch: int) -> dict[str, list[Tensor]]:
    return layer_masks(torch.stack([free_form_mask(size, size, HOLE, 7 + i) for i in range(batch)]))


def cases(settings: Settings) -> list[Case]:
    """At 256, on a GPU also at 512 and 1024, or at the sizes that are asked for."""
    names = (BARE, OURS, CHANNEL_MASKS, *((COMPILED,) if settings.compiled else ()))

    def prepare(layer: Layer, size: int, settings: Settings) -> Contest:
        return layer_contest(layer, _network_masks(size, settings.batch)[layer.name], settings)

    return [
        Case(
            f"{layer.name} {size}",
            "partial_conv2d_upcat" if layer.in_decoder else "partial_conv2d",
            layer.shape(settings.batch),
            names,
            functools.partial(prepare, layer, size),
            layer.name,
            {"layer": layer.name, "size": size, "batch": settings.batch, "hole": list(HOLE)},
        )
        for size in settings.sizes or ((256, 512, 1024) if settings.on_cuda else (256,))
        for layer in generator_layers(size)
    ]


def sums(records: Mapping[str, dict], dtype: str) -> dict:
    """Per size and group of layers, the contestants' summed times; only of groups that are complete."""
    result: dict[str, dict] = {}
    measured = [record for record in records.values() if "layer" in record]
    for size in dict.fromkeys(record["size"] for record in measured):
        rows = {record["layer"]: record["contestants"] for record in measured if record["size"] == size}
        for name, members in SUMS.items():
            members = members or tuple(layer.name for layer in generator_layers(size))
            if rows.keys() >= set(members):
                result[f"{name} {size}"] = {"contestants": _sum({member: rows[member] for member in members})}
    return {"sums": result}


def _sum(rows: Mapping[str, dict]) -> dict[str, dict]:
    """Per contestant and direction the sum of the rows' times, or in which rows there is none."""
    total: dict[str, dict] = {}
    for name, way in dict.fromkeys((name, way) for row in rows.values() for name, ways in row.items() for way in ways):
        entries = {layer: row.get(name, {}).get(way, {}) for layer, row in rows.items()}
        missing = [layer for layer, entry in entries.items() if "ms" not in entry]
        sums = {
            key: significant(sum(entry[key] for entry in entries.values()))
            for key in ("ms", "eager_ms")
            if all(key in entry for entry in entries.values())
        }
        total.setdefault(name, {})[way] = {"unavailable": f"not measured in {', '.join(missing)}"} if missing else sums
    for ways in total.values():
        for way, entry in ways.items():
            if "ms" in entry and "ms" in total.get(OURS, {}).get(way, {}):
                entry["ratio"] = significant(entry["ms"] / total[OURS][way]["ms"])
    return total


SUITE = Suite("the generator's 16 partial convolutions, with the masks they see in the network", cases, conclude=sums)
