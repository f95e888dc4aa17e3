"""Attention with shift propagation (Eqs. 6-8) in plain PyTorch, exact, without the N×N matrix.

Per sample, queries and keys are gathered, so that the score matrix has F×B elements; the propagation of Eq. 8 is
applied to the values instead of to the scores. With V = value·key_mask and U_δ(p) = Σ_q s*(p,q) V(q-δ), substituting
p+δ and q+δ gives

    output(p) = Σ_q Σ_δ s*(p+δ, q+δ) V(q) = Σ_δ U_δ(p+δ)

which is fold(s* · unfold(V)) with torch's pair of functions for windows of 2k+1; their zero padding makes the terms
that leave the map vanish."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

#: Elements of one block of scores. Queries are processed in blocks, so that memory without gradients stays linear.
SCORES_PER_BLOCK = 2**24


def shift_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_mask: Tensor,
    key_mask: Tensor,
    scale: float,
    radius: int,
    renormalize: bool,
) -> Tensor:
    """Computes Eqs. 6-8 for maps (N,C,H,W) and bool masks (N,1,H,W); returns (N,Cv,H,W), zero where query_mask is
    False."""
    if value.numel() == 0 or value.is_meta:
        return _zeros(query, key, value)
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    samples = zip(query.to(wide), key.to(wide), value.to(wide), query_mask, key_mask, strict=True)
    outputs = [_one_sample(*sample, scale, radius, renormalize) for sample in samples]
    return torch.stack(outputs).to(value.dtype)


def _one_sample(
    query: Tensor, key: Tensor, value: Tensor, query_mask: Tensor, key_mask: Tensor, scale: float, k: int, renorm: bool
) -> Tensor:
    c, h, w = value.shape
    k = min(k, max(h, w) - 1)  # further shifts leave the map
    queries, keys = query_mask.flatten().nonzero()[:, 0], key_mask.flatten().nonzero()[:, 0]
    if len(queries) == 0 or len(keys) == 0:
        return _zeros(query, key, value)
    # The mask is one more channel, which gives the row sums of s'.
    values = torch.cat([torch.where(key_mask, value, 0.0), key_mask.to(value.dtype)])
    window = dict(kernel_size=2 * k + 1, padding=k)
    unfolded = F.unfold(values[None], **window)[0].T[keys]  # (B, (C+1)(2k+1)²)
    q, key_columns = query.flatten(1).T, key.flatten(1)[:, keys]
    attended = torch.cat(
        [
            torch.softmax(scale * (q[rows] @ key_columns), dim=1) @ unfolded
            for rows in queries.split(max(1, SCORES_PER_BLOCK // len(keys)))
        ]
    )
    scattered = value.new_zeros(h * w, attended.shape[1]).index_copy(0, queries, attended)
    folded = F.fold(scattered.T[None], (h, w), **window)[0]
    result, row_sum = folded[:c], folded[c:]
    if renorm:
        result = result / torch.where(row_sum > 0, row_sum, 1.0)
    return torch.where(query_mask & (row_sum > 0), result, 0.0)


def _zeros(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Returns zeros like value that depend on all three maps, so that each of them has a gradient, of zeros. Sums of
    no elements do that without a product, in which inf · 0 would be NaN."""
    nothing = query[:0].sum() + key[:0].sum() + value[:0].sum()
    return torch.zeros_like(value) + nothing.to(value.dtype)


def shift_attention_argmax(
    query: Tensor, key: Tensor, query_mask: Tensor, key_mask: Tensor, scale: float, radius: int
) -> Tensor:
    """Returns (N,H,W) int64, per query the flat index of the key with the largest s', -1 where there is none. It adds
    up Eq. 8 term by term, for blocks of queries."""
    n, _, h, w = query.shape
    result = torch.full((n, h * w), -1, dtype=torch.int64, device=query.device)
    if query.is_meta:
        return result.view(n, h, w)
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    rows_per_block = max(1, SCORES_PER_BLOCK // max(1, h * w))
    for i in range(n):
        q, keys = query[i].to(wide).flatten(1).T, key[i].to(wide).flatten(1)
        is_query, is_key = query_mask[i].flatten(), key_mask[i].flatten()
        if not is_key.any():
            continue
        for block in is_query.nonzero()[:, 0].split(rows_per_block):
            y, x = block // w, block % w
            total = torch.zeros(len(block), h, w, dtype=wide, device=query.device)
            for dy in range(-min(radius, h), min(radius, h) + 1):
                for dx in range(-min(radius, w), min(radius, w) + 1):
                    inside = (y + dy >= 0) & (y + dy < h) & (x + dx >= 0) & (x + dx < w)
                    neighbour = torch.where(inside, (y + dy) * w + x + dx, 0)
                    scores = (scale * (q[neighbour] @ keys)).masked_fill(~is_key, -torch.inf).softmax(1)
                    scores = scores * (inside & is_query[neighbour])[:, None]
                    top, bottom, left, right = max(0, -dy), min(h, h - dy), max(0, -dx), min(w, w - dx)
                    if top < bottom and left < right:
                        shifted = scores.view(-1, h, w)[:, top + dy : bottom + dy, left + dx : right + dx]
                        total[:, top:bottom, left:right] += shifted
            best = (total.flatten(1) * is_key).max(1)
            result[i, block] = torch.where(best.values > 0, best.indices, -1)
    return result.view(n, h, w)
