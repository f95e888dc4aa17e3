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
from ..measure import BOTH, FORWARD, OURS, Alternative, Case, Prepared, Row, Settings, Suite, significant
from ..model import free_form_mask
from .generator_layers import Layer, generator_layers, layer_masks

BARE, CHANNEL_MASKS, COMPILED = "bare conv", "channel masks", "channel masks, compiled"
HOLE = (0.2, 0.3)
#: Sums over layers: all, and the two whose three channels leave a library's convolution slow.
SUMS = {"16 layers": (), "Encode_1 + Decode_1": ("Encode_1", "Decode_1")}


def random_inputs(layer: Layer, masks: Sequence[Tensor], settings: Settings) -> dict[str, Tensor]:
    """Draws the layer's arguments in channels_last: its maps, which are zero in the holes of the last where the network
    knows them to be, each with its mask, (N,1,h,w) bool, True = valid; weight and bias."""
    layout = dict(device=settings.device, dtype=settings.dtype, memory_format=torch.channels_last)
    inputs: dict[str, Tensor] = {}
    names = ("low", "skip") if layer.in_decoder else ("input",)
    for name, channels, mask in zip(names, layer.channels, masks, strict=True):
        x = torch.randn(len(mask), channels, *mask.shape[2:], device=settings.device).to(**layout)
        inputs |= {name: x, f"{name} mask": mask.to(settings.device)}
    if layer.is_masked:
        x *= inputs[f"{name} mask"]
    weight = torch.randn(layer.out_channels, layer.in_channels, layer.kernel, layer.kernel)
    inputs["weight"] = (weight / weight[0].numel() ** 0.5).to(**layout)
    inputs["bias"] = torch.randn(layer.out_channels).to(settings.device, settings.dtype)
    for tensor in inputs.values():
        tensor.requires_grad_(tensor.is_floating_point() and not (layer.reads_image and tensor is x))
    return inputs


def of_network(
    layer: Layer, inputs: dict[str, Tensor], backend: str = "auto", reference: Alternative | None = None
) -> Alternative:
    """Returns the layer as the network calls it."""

    def run(*tensors: Tensor) -> Tensor:
        if layer.in_decoder:
            return partial_conv2d_upcat(*tensors, skip_is_masked=layer.is_masked, backend=backend)[0]
        geometry = dict(stride=layer.stride, padding=layer.kernel // 2)
        return partial_conv2d(*tensors, **geometry, input_is_masked=layer.is_masked, backend=backend)[0]

    return Alternative(run, inputs, reference)


def others(layer: Layer, inputs: dict[str, Tensor], reference: Alternative | None = None) -> dict[str, Alternative]:
    """Returns what runs on a ready input: the concatenation that the decoder's two maps stand for."""
    *tensors, weight, bias = inputs.values()
    maps, masks, geometry = tensors[::2], tensors[1::2], (layer.stride, layer.kernel // 2)
    ready = _joined([x.detach() for x in maps]).contiguous(memory_format=torch.channels_last)
    per_channel = _joined([mask.expand_as(x) for mask, x in zip(masks, maps, strict=True)])
    mask = per_channel.to(ready.dtype, memory_format=torch.channels_last)
    # Named like ours where it is the same: ours does not clear the holes' gradient of an input that is masked.
    name = "ready" if layer.in_decoder or layer.is_masked else "input"
    bare = {name: ready.requires_grad_(layer.in_decoder or not layer.reads_image), "weight": weight, "bias": bias}
    published = ChannelMaskPartialConv(weight, bias, *geometry)
    compiled = torch.compile(published.__call__, fullgraph=True, dynamic=False)
    # Through (raw - bias) · ratio + bias the bias's gradient loses digits, whoever computes it: not strict.
    masked = dict(inputs=bare | {"mask": mask}, reference=reference, is_strict=False)
    return {
        BARE: Alternative(lambda x, weight, bias: F.conv2d(x, weight, bias, *geometry), bare),
        CHANNEL_MASKS: Alternative(lambda x, weight, bias, mask: published(x, mask)[0], **masked),
        COMPILED: Alternative(lambda x, weight, bias, mask: compiled(x, mask)[0], **masked),
    }


def _joined(maps: list[Tensor]) -> Tensor:
    """Returns the one map, or the concatenation of the first, upsampled ×2, and the second."""
    if len(maps) == 1:
        return maps[0]
    return torch.cat([maps[0].repeat_interleave(2, 2).repeat_interleave(2, 3), maps[1]], 1)


def prepare(layer: Layer, masks: list[Tensor], settings: Settings) -> Prepared:
    """Draws the tensors of a layer. `masks`: (N,1,h,w) bool, of its inputs."""
    torch.compiler.reset()
    inputs = random_inputs(layer, masks, settings)
    reference = of_network(layer, inputs, "reference")
    found = others(layer, inputs, reference) | {OURS: of_network(layer, inputs, reference=reference)}
    return with_work(layer, {name: found[name] for name in names(settings)}, settings)


def with_work(layer: Layer, alternatives: dict[str, Alternative], settings: Settings) -> Prepared:
    """Adds the output's gradient and what there is to compute."""
    grad = torch.randn(settings.batch, layer.out_channels, layer.out_side, layer.out_side, device=settings.device)
    grad = grad.to(settings.dtype, memory_format=torch.channels_last)
    return Prepared(alternatives, layer.flop(settings.batch), grad=grad, mask_bytes=grad[:, 0].numel())


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
            columns={"layer": layer.name, "size": size, "batch": settings.batch},
        )
        for size in settings.sizes or ((256, 512, 1024) if settings.on_cuda else (256,))
        for layer in generator_layers(size)
    ]


def sums(rows: Sequence[Row]) -> list[Row]:
    """Returns rows of times summed over all layers of a size, and over the two at both ends; only those of alternatives
    and passes that were measured in every one of the layers."""
    result: list[Row] = []
    sizes, alternatives = (dict.fromkeys(row[name] for row in rows) for name in ("size", "alternative"))
    for size, group, which in itertools.product(sizes, SUMS, (FORWARD, BOTH)):
        members = SUMS[group] or [layer.name for layer in generator_layers(size)]
        found: list[Row] = []
        for name in alternatives:
            wanted = {"size": size, "alternative": name, "pass": which}
            some = [row for row in rows if wanted.items() <= row.items() and row["layer"] in members and "ms" in row]
            if len(some) == len(members):
                columns = {"case": f"{group} {size}", "batch": some[0]["batch"], "alternative": name, "pass": which}
                quantities = [key for key in ("ms", "eager_ms") if key in some[0]]
                found.append(columns | {key: significant(sum(row[key] for row in some)) for key in quantities})
        own = [row["ms"] for row in found if row["alternative"] == OURS]
        result += [row | ({"ratio": significant(row["ms"] / own[0])} if own else {}) for row in found]
    return result


SUITE = Suite(
    "the generator's 16 partial convolutions",
    "Brush masks with 20-30 % hole, as each layer sees them in the network; channels_last. *bare conv* is `F.conv2d` "
    "on a ready-made concatenation, which leaves the masks out; *channel masks* is the published formulation with one "
    "mask channel per feature channel, *compiled* under `torch.compile`.",
    cases,
    totals=sums,
)
