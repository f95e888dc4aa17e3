"""Building facades rendered on the fly: an endless set of images with repetition and edges."""

from .scene import render_facade

__all__ = ["render_facade"]
