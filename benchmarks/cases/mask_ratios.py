"""Holes of 0 to 60 %, forward, in the first three layers and in attention."""

from __future__ import annotations

import functools

import torch

from ..measure import FORWARD, OURS, Case, Prepared, Settings, Suite
from .attention import GATHERED, Map
from .generator_layers import Layer, brush_mask, generator_layers, layer_masks
from .layers import BARE, of_network, others, random_inputs, with_work

NO_HOLE = "ours, no hole"
RATIOS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)


def prepare(layer: Layer, share: float, settings: Settings) -> Prepared:
    images = torch.stack([brush_mask(settings.size, settings.size, share, 7 + i) for i in range(settings.batch)])
    inputs = random_inputs(layer, layer_masks(images)[layer.name], settings)
    no_hole = inputs | {"input mask": torch.ones_like(inputs["input mask"])}
    ours, ours_without = (of_network(layer, x, reference=of_network(layer, x, "reference")) for x in (inputs, no_hole))
    return with_work(layer, {BARE: others(layer, inputs)[BARE], OURS: ours, NO_HOLE: ours_without}, settings)


def cases(settings: Settings) -> list[Case]:
    names, found = (BARE, OURS, NO_HOLE), []
    for layer in generator_layers(settings.size)[:3]:
        for share in RATIOS:
            options = dict(passes=(FORWARD,), columns={"share": share})
            run = functools.partial(prepare, layer, share)
            shape = layer.shape(settings.batch)
            found.append(Case(f"{layer.name} {share:.0%}", "partial_conv2d", shape, names, run, **options))
    for share in RATIOS:
        name, options = f"attention 64×64 {share:.0%}", dict(passes=(FORWARD,), columns={"share": share})
        found.append(Map((1, 128, 64, 64), (share,)).case(name, (OURS, GATHERED), **options))
    return found


SUITE = Suite(
    "holes from none to most",
    "The first three layers against a bare convolution and against themselves without a hole, and attention, whose "
    "work is hole × background pixels, against the gathered form.",
    cases,
)
