"""Computes contextual attention (Yu et al., "Generative Image Inpainting with Contextual Attention", CVPR 2018) with
`msa_ops.shift_attention` and torch's unfold and fold. It builds no score matrix: memory is linear in the map.

    python docs/examples/contextual_attention.py
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

import msa_ops


def contextual_attention(
    foreground: Tensor,
    background: Tensor,
    mask: Tensor,
    *,
    scale: float = 10.0,
    radius: int = 1,
    propagate: str = "scores",
    backend: str = "auto",
) -> Tensor:
    r"""Rebuilds every patch of the foreground as a mixture of those patches of the background that contain no hole.

    Let f and b be every second pixel of foreground and background; P(x)(p) the 3×3 patch of x around p (zero outside
    the map); R(q) the 4×4 patch of background, at full resolution, around the 2×2 pixels that q stands for. K holds
    those q whose 6×6 surroundings, the extent of both patches, contain no hole::

        s(p,q) = ⟨P(f)(p), P(b)(q)⟩ / (‖P(f)(p)‖ · ‖P(b)(q)‖)                  norms below 1e-4 count as 1e-4
        "scores":   a(p,q) = softmax over q∈K of  scale · Σ_δ s(p+δ, q+δ)       δ∈{-radius..radius}²
        "weights":  a(p,q) = Σ_δ s*(p+δ, q+δ),  s* = softmax over q∈K of scale · s,  divided by its sum over q∈K
        output     = the patches Σ_{q∈K} a(p,q) R(q) put in their places p, averaged where they overlap

    Terms whose p+δ or q+δ leaves the map are zero; in "weights", so are those whose q+δ is not in K. Radius 0 switches
    propagation off, and the two forms are then the same.

    The authors' code propagates "scores". Their Eq. 3 says "weights", which `shift_attention` does by itself. A sum of
    scores needs no propagation: Σ_δ s(p+δ, q+δ) is the inner product of the normalised patches of all p+δ, laid end to
    end, with those of all q+δ, so one more unfold of query and key gives it exactly.

    The authors' code differs in five ways: it sums along the diagonals of the flattened score matrix (two convolutions
    with an identity kernel), which wraps around the ends of rows and columns; it leaves P(f) unnormalised; it takes
    every second pixel of the mask too, and so misses holes of one pixel; masked keys stay in its softmax, with score 0;
    and it always divides overlaps by 4, although only 2 or 1 patches meet at a border.

    Args:
        foreground: (N, C, H, W), floating-point, H and W even; its hole contains a first guess.
        background: like foreground; most networks pass the same tensor twice.
        mask: (N, 1, H, W), 1 (any non-zero) = valid, 0 = hole.
        scale, radius: λ of the softmax and k of the propagation.
        propagate: "scores" or "weights".
        backend: as for :func:`msa_ops.shift_attention`.

    Returns:
        (N, C, H, W). Zero for a sample without any patch clear of the hole.

    Raises:
        ValueError: odd sizes, an unknown ``propagate``, or what :func:`msa_ops.shift_attention` refuses.

    Extra memory per pixel of the half-resolution map: 18 (2·radius+1)² C numbers for "scores" or 18 C for "weights",
    and 16 C for the values.
    """
    height, width = foreground.shape[2:]
    if height % 2 or width % 2:
        raise ValueError(f"contextual_attention: height and width must be even, got {height}x{width}")
    if propagate not in ("scores", "weights"):
        raise ValueError(f"contextual_attention: propagate must be 'scores' or 'weights', got {propagate!r}")

    query, key = (unit(neighbours(x[:, :, ::2, ::2], radius=1)) for x in (foreground, background))
    if propagate == "scores":
        query, key = neighbours(query, radius), neighbours(key, radius)
    patches = F.unfold(background, 4, stride=2, padding=1)
    touches_hole = F.max_pool2d((mask == 0).to(background.dtype), 6, stride=2, padding=2) != 0
    attended = msa_ops.shift_attention(
        query,
        key,
        patches.unflatten(2, key.shape[2:]),
        key_mask=~touches_hole,
        scale=scale,
        radius=radius if propagate == "weights" else 0,
        renormalize=propagate == "weights",
        backend=backend,
    )
    overlaps = F.fold(torch.ones_like(patches[:1, :16]), (height, width), 4, stride=2, padding=1)
    return F.fold(attended.flatten(2), (height, width), 4, stride=2, padding=1) / overlaps


def neighbours(x: Tensor, radius: int) -> Tensor:
    """Stacks all pixels around every pixel: (N, C, H, W) to (N, C·(2·radius+1)², H, W), zero outside the map."""
    return F.unfold(x, 2 * radius + 1, padding=radius).unflatten(2, x.shape[2:])


def unit(x: Tensor) -> Tensor:
    return x / torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min(1e-4)


def main() -> None:
    """Adds noise to the middle of a woven texture, and prints the error that each form leaves there."""
    torch.manual_seed(0)
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    truth = torch.stack([torch.sin(y * 0.8 + x * 0.4), torch.cos(x * 0.8), torch.sin(y * 0.4)])[None]
    mask = torch.ones(1, 1, 64, 64)
    mask[..., 20:44, 20:44] = 0
    guess = torch.where(mask == 0, truth + 0.5 * torch.randn(truth.shape), truth)

    def error(filled: Tensor) -> float:
        return ((filled - truth).abs() * (1 - mask)).sum().item() / (3 * 24 * 24)

    print(f"mean absolute error in the hole: first guess {error(guess):.3f}")
    for propagate, radius in (("scores", 0), ("weights", 1), ("scores", 1)):
        filled = contextual_attention(guess, guess, mask, radius=radius, propagate=propagate)
        name = f"{propagate} propagated" if radius else "no propagation"
        print(f"  {name:<20} {error(filled):.3f}")


if __name__ == "__main__":
    main()
