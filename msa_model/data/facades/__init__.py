"""Renders building facades: an endless set of images with repetition and edges, for training without data."""

from .scene import render_facade

__all__ = ["render_facade"]
