"""Partial convolution of cat(nearest_up2(low), skip), as a U-Net's decoder needs it, without building either."""

from .functional import partial_conv2d_upcat

__all__ = ["partial_conv2d_upcat"]
