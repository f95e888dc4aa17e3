"""Fused, mask-aware operators for image inpainting."""

__version__ = "0.1.0"

from .backends import not_supported_reasons
from .modules import PartialConv2d, convert_partial_convs
from .partial_conv import partial_conv2d
from .partial_conv_upcat import partial_conv2d_upcat
from .pixel_attention import HoleAttention, hole_attention, hole_attention_map, shift_attention

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
