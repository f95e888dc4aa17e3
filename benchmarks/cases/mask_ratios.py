"""Holes of 0 to 60 %, forward, in the first three layers and in attention."""

from __future__ import annotations

import functools

import torch

from ..measure import FORWARD, OURS, Case, Prepared, Settings
from .attention import GATHERED, Map
from .generator_layers import Layer, brush_mask, generator_layers, layer_masks
from .layers import BARE, Operands
from .suite import Suite

NO_HOLE = "ours, no hole"
RATIOS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
LAYERS = ("Encode_1", "Encode_2", "Encode_3")


def prepare(layer: Layer, share: float, settings: Settings) -> Prepared:
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


def cases(settings: Settings) -> list[Case]:
    names, found = (BARE, OURS, NO_HOLE), []
    for layer in (layer for layer in generator_layers(settings.size) if layer.name in LAYERS):
        shape = layer.shape(settings.batch)
        for share in RATIOS:
            options = dict(passes=(FORWARD,), family=layer.name, columns={"share": share})
            run = functools.partial(prepare, layer, share)
            found.append(Case(f"{layer.name} {share:.0%}", "partial_conv2d", shape, names, run, **options))
    for share in RATIOS:
        options = dict(passes=(FORWARD,), family="attention 64×64", columns={"share": share})
        found.append(Map((1, 128, 64, 64), (share,)).case(f"attention 64×64 {share:.0%}", (OURS, GATHERED), **options))
    return found


SUITE = Suite(
    "holes from none to most",
    "The first three layers against a bare convolution and against themselves without a hole, and attention, whose "
    "work is hole × background pixels, against the gathered form.",
    cases,
)
