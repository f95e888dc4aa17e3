"""Pixelwise attention of holes over background (Eqs. 6-8) in plain PyTorch, exact, without the N×N matrix.

Per sample, hole queries and background keys are gathered, so that the score matrix is F×B; the propagation of Eq. 8
acts on the values instead of on the scores. With V = φ·mask and U_δ(p) = Σ_q s*(p,q) V(q-δ), substituting p+δ and q+δ
gives

    φ_att(p) = Σ_q Σ_δ s*(p+δ, q+δ) φ(q) = Σ_δ U_δ(p+δ)

which is fold(s* · unfold(V)) with the im2col pair of window 2k+1: its zero padding is what makes terms that leave the
map vanish.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

#: Elements of one block of scores; queries are taken in blocks so that memory without gradients stays linear.
SCORES_PER_BLOCK = 2**24


def hole_attention(
    features: Tensor, mask: Tensor, scale: float, radius: int, renormalize: bool, variant: str, eps: float
) -> Tensor:
    """Eqs. 6-8 (``paper``) or the released closed form, for features (N,C,H,W) and a bool mask (N,1,H,W)."""
    if features.numel() == 0:
        return features.clone()
    one_sample = _paper if variant == "paper" else _released
    statistics = features.to(torch.float64 if features.dtype == torch.float64 else torch.float32)
    samples = [one_sample(statistics[i], mask[i], scale, radius, renormalize, eps) for i in range(features.shape[0])]
    return torch.where(mask, features, torch.stack(samples).to(features.dtype))


def _paper(x: Tensor, mask: Tensor, scale: float, k: int, renormalize: bool, eps: float) -> Tensor:
    c, h, w = x.shape
    valid = mask.flatten()
    holes, background = (~valid).nonzero()[:, 0], valid.nonzero()[:, 0]
    if len(holes) == 0 or len(background) == 0:
        return x
    unit = (x / torch.linalg.vector_norm(x, dim=0).clamp_min(eps)).flatten(1)  # n of Eq. 6
    # One more channel, the mask itself, carries the row sums of s'.
    values = torch.cat([torch.where(mask, x, 0.0), mask.to(x.dtype)])
    window = dict(kernel_size=2 * k + 1, padding=k)
    unfolded = F.unfold(values[None], **window)[0].T[background]  # (B, (C+1)(2k+1)²)
    attended = torch.cat(
        [
            torch.softmax(scale * (unit[:, rows].T @ unit[:, background]), dim=1) @ unfolded
            for rows in holes.split(max(1, SCORES_PER_BLOCK // len(background)))
        ]
    )
    scattered = x.new_zeros(h * w, attended.shape[1]).index_copy(0, holes, attended)
    folded = F.fold(scattered.T[None], (h, w), **window)[0]
    result, row_sum = folded[:c], folded[c:]
    if renormalize:
        result = result / torch.where(row_sum > 0, row_sum, 1.0)
    return torch.where(row_sum > 0, result, x)


def _released(x: Tensor, mask: Tensor, scale: float, k: int, renormalize: bool, eps: float) -> Tensor:
    """Keys are values, from all pixels; the propagation filters the raw queries; no λ, no renormalisation."""
    c, h, w = x.shape
    holes = (~mask.flatten()).nonzero()[:, 0]
    if len(holes) == 0 or len(holes) == h * w:
        return x
    keys = torch.where(mask, x, 0.0).flatten(1) + 1e-7
    keys = keys / torch.linalg.vector_norm(keys, dim=0)
    queries = F.conv2d(x[:, None], x.new_ones(1, 1, 2 * k + 1, 2 * k + 1), padding=k).flatten(1)
    attended = torch.cat(
        [
            torch.softmax(queries[:, rows].T @ keys, dim=1) @ keys.T
            for rows in holes.split(max(1, SCORES_PER_BLOCK // (h * w)))
        ]
    )
    return x.flatten(1).T.index_copy(0, holes, attended).T.reshape(c, h, w)
