"""Fused, mask-aware operators for image inpainting."""

from .backends import not_supported_reasons
from .partial_conv import partial_conv2d
from .partial_conv_upcat import partial_conv2d_upcat

__version__ = "0.1.0"

__all__ = ["not_supported_reasons", "partial_conv2d", "partial_conv2d_upcat"]
