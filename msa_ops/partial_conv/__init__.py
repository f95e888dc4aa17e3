"""Partial convolution (Liu et al. 2018; Eqs. 1-5 of the paper): the function, the layer, and everything behind them."""

from .functional import GroupedMask, partial_conv2d
from .module import PartialConv2d

__all__ = ["GroupedMask", "PartialConv2d", "partial_conv2d"]
