"""The options of a generator, and what they may be."""

from __future__ import annotations

import dataclasses
import numbers
import reprlib
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from msa_ops import not_supported_reasons

# Limits of the configuration. The paper's values are 64, 1 and 1.
_WIDEST = 1 << 20
_LARGEST_RADIUS = 65535
_LARGEST_SE_RATIO = 64


@dataclasses.dataclass(frozen=True)
class GeneratorConfig:
    """The options of a `Generator`. `Generator.save` writes them beside the weights.

    Args:
        base_width: channels of Encode_1; 64 in the paper. Deeper layers have 2, 4 and at most 8 times as many.
        depth: number of encoder layers; 8 in the paper. Images are padded (as hole) to a multiple of 2^depth.
        variant: ``"paper"`` or ``"released"`` attention.
        attention_levels: decoder layers followed by an attention stage; (4, 3) in the paper.
        scale, radius, renormalize: λ, k and the renormalisation of the attention.
        mask_reduction: how a stage's mask is made from the image's: ``"nearest"``, or ``"all_valid"`` (a cell is
            background only if all its pixels are).
        se_ratio: hidden width of the fusion block's squeeze-and-excitation, relative to its input.
        backend: backend of the operators; other values than ``"auto"`` are for comparisons.
        norm: ``"batch"``, or ``"region"``: `msa_model.normalization.RegionNorm2d` in place of every batch norm.
            In every layer its regions are the image's own mask, reduced to the layer's size as `mask_reduction` says.
            So known and predicted features stay apart throughout the network, whereas the mask of the partial
            convolutions is all valid after a few layers. Positions where that mask still has holes are in no region.
    """

    base_width: int = 64
    depth: int = 8
    variant: str = "paper"
    attention_levels: tuple[int, ...] = (4, 3)
    scale: float = 10.0
    radius: int = 1
    renormalize: bool = False
    mask_reduction: str = "nearest"
    se_ratio: float = 1.0
    backend: str = "auto"
    norm: str = "batch"

    def __post_init__(self) -> None:
        # A configuration may come from a file of unknown origin, so no type is taken for granted, and nothing is so
        # large that a product of sizes overflows.
        def refuse(name: str, wanted: str) -> NoReturn:
            raise ValueError(f"msa_model.Generator: {name} must be {wanted}, got {reprlib.repr(getattr(self, name))}")

        def whole(name: str, wanted: str, low: int, high: int) -> None:
            value = getattr(self, name)
            if not _is_number(value, numbers.Integral) or not low <= value <= high:
                refuse(name, wanted)
            object.__setattr__(self, name, int(value))

        def finite(name: str, wanted: str, low: float, high: float) -> None:
            value = getattr(self, name)
            if not _is_number(value, numbers.Real) or not low <= value <= high:
                refuse(name, wanted)

        whole("base_width", f"positive, a whole number up to {_WIDEST}", 1, _WIDEST)
        whole("depth", "between 2 and 12", 2, 12)
        whole("radius", f"a whole number from 0 to {_LARGEST_RADIUS}", 0, _LARGEST_RADIUS)
        finite("scale", "a finite number", -sys.float_info.max, sys.float_info.max)
        finite("se_ratio", f"a number from 0 to {_LARGEST_SE_RATIO}", 0, _LARGEST_SE_RATIO)
        if not isinstance(self.renormalize, bool):
            refuse("renormalize", "true or false")
        if self.variant not in ("paper", "released"):
            refuse("variant", "'paper' or 'released'")
        if self.mask_reduction not in ("nearest", "all_valid"):
            refuse("mask_reduction", "'nearest' or 'all_valid'")
        if self.norm not in ("batch", "region"):
            refuse("norm", "'batch' or 'region'")
        try:
            not_supported_reasons("partial_conv2d", self.backend)
        except ValueError as error:
            raise ValueError(f"msa_model.Generator: backend: {error}") from None
        levels = self.attention_levels
        wanted = f"decoder levels between 2 and depth={self.depth}"
        if isinstance(levels, str) or not isinstance(levels, Sequence) or len(levels) > self.depth:
            refuse("attention_levels", f"{wanted}, at most {self.depth} of them")
        if not all(_is_number(level, numbers.Integral) and 2 <= level <= self.depth for level in levels):
            refuse("attention_levels", wanted)
        object.__setattr__(self, "attention_levels", tuple(map(int, levels)))

    def encoder_width(self, level: int) -> int:
        """Output channels of Encode_level; level 0 is the image."""
        return 3 if level == 0 else self.base_width * min(8, 2 ** (level - 1))

    def decoder_width(self, level: int) -> int:
        """Output channels of Decode_level."""
        return self.encoder_width(level - 1)


def _is_number(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)
