"""The attention of holes over background as a module."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .hole import hole_attention


class HoleAttention(nn.Module):
    """Applies :func:`msa_ops.hole_attention`; has no parameters.

    Args:
        scale: as for :func:`msa_ops.hole_attention`.
        radius: as for :func:`msa_ops.hole_attention`.
        renormalize: as for :func:`msa_ops.hole_attention`.
        variant: as for :func:`msa_ops.hole_attention`.
        eps: as for :func:`msa_ops.hole_attention`.
        backend: as for :func:`msa_ops.hole_attention`.
    """

    def __init__(
        self,
        scale: float = 10.0,
        radius: int = 1,
        renormalize: bool = False,
        variant: str = "paper",
        eps: float = 1e-6,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.options: dict[str, Any] = dict(
            scale=scale, radius=radius, renormalize=renormalize, variant=variant, eps=eps, backend=backend
        )

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """Fills the hole pixels.

        Args:
            features: (N, C, H, W), floating-point.
            mask: (N, 1, H, W), 1 = valid, 0 = hole.

        Returns:
            (N, C, H, W) in the dtype of features.
        """
        return hole_attention(features, mask, **self.options)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())
