"""Holes of 0 to 60 %, forward, in the first three layers and in attention.

The layers against a bare convolution and against themselves without any hole; attention, whose work grows with hole ×
background pixels, against the gathered form.
"""

from __future__ import annotations

import functools

import torch

from ..measure import FORWARD, OURS, Case, Prepared, Settings
from . import attention
from .generator_layers import Layer, brush_mask, generator_layers, layer_masks
from .layers import BARE, Operands
from .suite import Suite

NO_HOLE = "ours, no hole"
RATIOS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
LAYERS = ("Encode_1", "Encode_2", "Encode_3")


def prepare_layer(layer: Layer, share: float, settings: Settings) -> Prepared:
    images = torch.stack([brush_mask(settings.size, settings.size, share, 7 + i) for i in range(settings.batch)])
    operands = Operands.random(layer, layer_masks(images)[layer.name], settings)
    no_hole = Operands(layer, [torch.ones_like(mask) for mask in operands.masks], operands.maps, operands.weights)
    return Prepared(
        {
            BARE: operands.others(None)[BARE],
            OURS: operands.on("auto", operands.reference()),
            NO_HOLE: no_hole.on("auto", no_hole.reference()),
        },
        layer.work(settings.batch, settings.dtype.itemsize),
    )


def prepare_attention(one: attention.Map, settings: Settings) -> Prepared:
    features, mask = one.tensors(settings)
    runs = {name: attention.implementations()[name] for name in (OURS, attention.GATHERED)}
    reference = attention.sampled_reference(features, mask)
    # Without a hole nothing is multiplied, and there is no rate to show.
    work = attention.work_of(features, mask) if any(one.holes) else {}
    return Prepared({name: attention.alternative(run, features, mask, reference) for name, run in runs.items()}, work)


def cases(settings: Settings) -> list[Case]:
    def case(family: str, share: float, operator: str, shape: str, names: tuple[str, ...], prepare: functools.partial):
        columns = {"family": family, "share": share}
        return Case(f"{family} {share:.0%}", operator, shape, names, prepare, (FORWARD,), family, columns)

    layers = [layer for layer in generator_layers(settings.size) if layer.name in LAYERS]
    maps = {share: attention.Map((1, 128, 64, 64), (share,)) for share in RATIOS}
    return [
        case(
            layer.name,
            share,
            "partial_conv2d",
            layer.shape(settings.batch),
            (BARE, OURS, NO_HOLE),
            functools.partial(prepare_layer, layer, share),
        )
        for layer in layers
        for share in RATIOS
    ] + [
        case(
            "attention 64×64",
            share,
            "hole_attention",
            one.text,
            (OURS, attention.GATHERED),
            functools.partial(prepare_attention, one),
        )
        for share, one in maps.items()
    ]


SUITE = Suite(
    "holes from none to most",
    "The first three layers against a bare convolution and against themselves without a hole, and attention, whose "
    "work is hole × background pixels, against the gathered form.",
    cases,
)
