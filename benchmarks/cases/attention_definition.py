"""Eqs. 6-8 at a few pixels, term by term: a reference for maps that are too large for any other."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor
from torch.nn.functional import normalize


def hole_attention_at(pixels: Tensor, x: Tensor, mask: Tensor, scale: float = 10.0, radius: int = 1) -> Tensor:
    """Computes hole attention at the flat indices `pixels`, (P,), of every sample, in memory P·H·W.

    Args:
        x: (N,C,H,W).
        mask: (N,1,H,W) bool, True = valid; every sample has a valid pixel.

    Returns:
        (N,C,P) in the dtype of x.
    """
    return torch.stack([_one_sample(pixels, *sample, scale, radius) for sample in zip(x, mask[:, 0], strict=True)])


def _one_sample(pixels: Tensor, x: Tensor, valid: Tensor, scale: float, radius: int) -> Tensor:
    flat, unit = x.flatten(1), normalize(x.flatten(1), dim=0, eps=1e-6)
    keys = valid.flatten().nonzero()[:, 0]
    total = x.new_zeros(len(pixels), len(x))
    window = range(-radius, radius + 1)
    for shift in product(window, window):
        # s*(p+δ, q+δ) for all keys q+δ, of which those count whose q is a key too.
        queries, inside = _shifted(pixels, shift, valid.shape)
        is_query = inside & ~valid.flatten()[queries]
        weights = torch.softmax(scale * (unit[:, queries].T @ unit[:, keys]), dim=1)
        sources, inside = _shifted(keys, (-shift[0], -shift[1]), valid.shape)
        is_key = inside & valid.flatten()[sources]
        total += (weights * is_query[:, None] * is_key) @ flat[:, sources].T
    return torch.where(valid.flatten()[pixels], flat[:, pixels], total.T)


def _shifted(pixels: Tensor, shift: tuple[int, int], shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Returns the flat indices (0 outside the map) of pixels + shift, and which of them are inside."""
    height, width = shape
    y, x = pixels // width + shift[0], pixels % width + shift[1]
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    return torch.where(inside, y * width + x, 0), inside


def sample_pixels(mask: Tensor, count: int = 128) -> Tensor:
    """Returns at most `count` flat indices, half spread evenly over the holes of the first sample, half over the
    background; on the device of mask."""
    flat = mask[0].flatten()
    parts = [(flat == value).nonzero()[:, 0] for value in (False, True)]
    return torch.cat([part[:: max(1, -(-len(part) // (count // 2)))] for part in parts])
