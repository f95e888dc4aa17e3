"""Attention with shift propagation (Eqs. 6-8 of the paper): the general operator, and the attention of holes over
background that stands on it."""

from .functional import shift_attention
from .hole import hole_attention, hole_attention_map
from .module import HoleAttention

__all__ = ["HoleAttention", "hole_attention", "hole_attention_map", "shift_attention"]
