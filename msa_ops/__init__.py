"""Fused, mask-aware operators for image inpainting."""

__version__ = "0.2.0"

from .convert import convert_partial_convs
from .core.backends import not_supported_reasons
from .decoder_conv import partial_conv2d_upcat
from .partial_conv import PartialConv2d, partial_conv2d
from .shift_attention import HoleAttention, hole_attention, hole_attention_map, shift_attention

__all__ = [
    "HoleAttention",
    "PartialConv2d",
    "convert_partial_convs",
    "hole_attention",
    "hole_attention_map",
    "not_supported_reasons",
    "partial_conv2d",
    "partial_conv2d_upcat",
    "shift_attention",
]
