"""The mask-ratios suite: what holes of 0 to 60 % cost, forward, in the first three layers and in attention.

The layers against a bare convolution and against themselves without any hole; attention, whose work grows with hole ×
background pixels, against the gathered form.
"""

from __future__ import annotations

import functools

import torch

from msa_ops import hole_attention

from .attention_cases import GATHERED, Map, attention_call, attention_work, sampled_truth
from .contest import FORWARD, OURS, Contest, Contestant, Settings
from .generator_layers import Layer, brush_mask, generator_layers, layer_masks
from .layers import BARE, Operands
from .network import size_of
from .suites import Case, Suite

NO_HOLE = "ours, no hole"
RATIOS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
LAYERS, ATTENTION = ("Encode_1", "Encode_2", "Encode_3"), "attention 64×64"


def prepare_layer(layer: Layer, share: float, settings: Settings) -> Contest:
    size = size_of(settings)
    images = torch.stack([brush_mask(size, size, share, 7 + i) for i in range(settings.batch)])
    operands = Operands.random(layer, layer_masks(images)[layer.name], settings)
    no_hole = Operands(layer, [torch.ones_like(mask) for mask in operands.masks], operands.maps, operands.weights)
    contestants = {
        BARE: Contestant(operands.others()[BARE]),
        OURS: Contestant(operands.call("auto"), operands.truth()),
        NO_HOLE: Contestant(no_hole.call("auto"), no_hole.truth()),
    }
    work = {FORWARD: layer.work(settings.batch, settings.dtype.itemsize)[FORWARD]}
    return Contest(contestants, work)


def prepare_attention(share: float, settings: Settings) -> Contest:
    features, mask = _attention_map(share).tensors(settings)
    runs = {OURS: hole_attention, GATHERED: functools.partial(hole_attention, backend="reference")}
    truth = sampled_truth(features, mask)
    # Without a hole nothing is multiplied, and there is no rate to show.
    work = attention_work(features, mask)[FORWARD] if share else None
    return Contest(
        {name: Contestant(attention_call(run, features, mask), truth) for name, run in runs.items()},
        {FORWARD: work},
    )


def _attention_map(share: float) -> Map:
    return Map((1, 128, 64, 64), (share,))


def cases(settings: Settings) -> list[Case]:
    layers = [layer for layer in generator_layers(size_of(settings)) if layer.name in LAYERS]
    found = [
        Case(
            f"{layer.name} {share:.0%}",
            "partial_conv2d",
            layer.shape(settings.batch),
            (BARE, OURS, NO_HOLE),
            functools.partial(prepare_layer, layer, share),
            layer.name,
            {"family": layer.name, "share": share},
        )
        for layer in layers
        for share in RATIOS
    ]
    return found + [
        Case(
            f"{ATTENTION} {share:.0%}",
            "hole_attention",
            _attention_map(share).text,
            (OURS, GATHERED),
            functools.partial(prepare_attention, share),
            ATTENTION,
            {"family": ATTENTION, "share": share},
        )
        for share in RATIOS
    ]


SUITE = Suite("holes of 0 to 60 %: the first three layers against no hole, and attention; forward", cases)
