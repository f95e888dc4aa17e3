"""What a user could run instead of hole_attention, each built the best way we know, from Eqs. 6-8 of the paper.

All take features (N,C,H,W) and mask (N,1,H,W) bool, True = valid, and return (N,C,H,W); every sample needs both holes
and background. The fold forms let Eq. 8 act on the values: its shift sum over the scores is the fold of
softmax · unfold(values), with im2col's window 2·radius+1 and zero padding.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

#: Pixels per side of a FlexAttention tile: its default.
TILE = 128


def dense_hole_attention(x: Tensor, mask: Tensor, scale: float = 10.0, radius: int = 1) -> Tensor:
    """Computes Eqs. 6-8 with the N×N matrix, as they are written down in PyTorch."""
    n, _, h, w = x.shape
    flat, valid = x.flatten(2), mask.flatten(2)
    unit = _unit(x)
    scores = scale * unit.transpose(1, 2) @ unit
    weights = scores.masked_fill(~valid, -torch.inf).softmax(2).nan_to_num() * ~valid.transpose(1, 2)
    # Shifting both pixels by (dy, dx): rows first, then columns, since the window is a square.
    weights = _shift_sum(weights.view(n, h, w, h, w), radius, (2, 4))
    weights = _shift_sum(weights, radius, (1, 3)).reshape(n, h * w, h * w) * valid
    attended = (weights @ flat.transpose(1, 2)).transpose(1, 2).view_as(x)
    return torch.where(mask | ~mask.flatten(1).any(1)[:, None, None, None], x, attended)


def _unit(x: Tensor) -> Tensor:
    """Returns (N,C,H·W): features of length one."""
    return F.normalize(x.flatten(2), dim=1, eps=1e-6)


def _shift_sum(weights: Tensor, radius: int, dims: tuple[int, int]) -> Tensor:
    total = weights.clone()
    extent = weights.shape[dims[0]]
    for step in range(1, min(radius, extent - 1) + 1):
        for into, out_of in ((0, step), (step, 0)):
            target, source = total, weights
            for dim in dims:
                target = target.narrow(dim, into, extent - step)
                source = source.narrow(dim, out_of, extent - step)
            target += source
    return total


def sdpa_hole_attention(x: Tensor, mask: Tensor, scale: float = 10.0, radius: int = 1) -> Tensor:
    """Calls F.scaled_dot_product_attention over all pixels, with a mask that leaves holes out as keys; its values are
    patches."""
    window = dict(kernel_size=2 * radius + 1, padding=radius)
    unit = _unit(x).transpose(1, 2)[:, None]  # one head: (N, 1, H·W, C)
    patches = F.unfold(x * mask, **window).transpose(1, 2)[:, None]
    keys = mask.flatten(2)[:, :, None]
    attended = F.scaled_dot_product_attention(unit, unit, patches, keys, scale=scale)[:, 0].transpose(1, 2)
    # Background pixels are no queries, so their rows must not reach the holes beside them.
    folded = F.fold(attended * ~mask.flatten(2), x.shape[2:], **window)
    return torch.where(mask, x, folded)


def flex_hole_attention(
    x: Tensor, mask: Tensor, scale: float = 10.0, radius: int = 1, attend: Callable = flex_attention
) -> Tensor:
    """Calls FlexAttention over pixels sorted into holes and background, so that its block mask skips every tile that
    does not pair the two. Its kernels are made for heads of about 128 channels, so every place in the window is a head.
    `attend`: flex_attention, compiled or not."""
    n, c, h, w = x.shape
    window = dict(kernel_size=2 * radius + 1, padding=radius)
    places = (2 * radius + 1) ** 2
    order = mask.flatten(1).int().argsort(dim=1, stable=True)  # holes first
    unit = _take(_unit(x)[:, None], order).transpose(2, 3).expand(-1, places, -1, -1)
    patches = F.unfold(x * mask, **window).view(n, c, places, h * w).transpose(1, 2)
    patches = _take(patches, order).transpose(2, 3)
    blocks = _hole_blocks((~mask).flatten(1).sum(1), h * w)
    attended = attend(unit, unit, patches, scale=scale, block_mask=blocks).transpose(2, 3)
    attended = _take(attended, order.argsort(1)) * ~mask.flatten(2)[:, None]
    folded = F.fold(attended.transpose(1, 2).reshape(n, c * places, h * w), (h, w), **window)
    return torch.where(mask, x, folded)


def _take(pixels: Tensor, order: Tensor) -> Tensor:
    """Returns (N,A,C,H·W) with the pixels of each sample in `order`, (N,H·W)."""
    return pixels.gather(3, order[:, None, None].expand(pixels.shape))


def _hole_blocks(holes: Tensor, length: int) -> BlockMask:
    """Returns the mask whose queries are the first holes[n] pixels and whose keys are the rest, built from the counts,
    without a length × length mask."""
    starts = torch.arange(0, length, TILE, device=holes.device)
    stops = (starts + TILE).clamp(max=length)
    count = holes[:, None]
    touched = (starts < count)[:, :, None] & (stops > count)[:, None]
    full = (stops <= count)[:, :, None] & (starts >= count)[:, None]
    tiles = []
    for some in (touched & ~full, full):
        tiles += [some.sum(2)[:, None].int(), some.int().argsort(dim=2, descending=True, stable=True)[:, None].int()]
    return BlockMask.from_kv_blocks(
        *tiles,
        BLOCK_SIZE=TILE,
        mask_mod=lambda sample, head, query, key: (query < holes[sample]) & (key >= holes[sample]),
        seq_lengths=(length, length),
    )
