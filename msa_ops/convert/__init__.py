"""Replacement of other projects' layers by this package's."""

from .partial_convs import convert_partial_convs

__all__ = ["convert_partial_convs"]
