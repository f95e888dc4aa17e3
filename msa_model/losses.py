"""Reconstruction losses of the paper."""

from __future__ import annotations

import torch
from torch import Tensor


def reconstruction_loss(prediction: Tensor, truth: Tensor, mask: Tensor) -> Tensor:
    """The terms that need neither VGG nor discriminator, with the paper's weights: 6·hole + 1·valid + 0.1·TV.

    hole and valid (Eqs. 20, 21) are means over the whole tensor of the masked absolute difference; the total variation
    (Eq. 19) is that of the composite, over differences that touch the hole.

    Args:
        prediction, truth: (N, 3, H, W).
        mask: (N, 1, H, W), 1 = valid, 0 = hole.

    Returns:
        A scalar.
    """
    valid = mask != 0
    difference = (prediction - truth).abs()
    hole_term = torch.where(valid, 0.0, difference).mean()
    valid_term = torch.where(valid, difference, 0.0).mean()
    return 6 * hole_term + valid_term + 0.1 * hole_total_variation(torch.where(valid, truth, prediction), valid)


def hole_total_variation(composite: Tensor, valid: Tensor) -> Tensor:
    """Mean absolute difference of vertical plus that of horizontal neighbours, where either is a hole pixel."""
    hole = ~valid
    vertical = (composite[:, :, 1:] - composite[:, :, :-1]).abs() * (hole[:, :, 1:] | hole[:, :, :-1])
    horizontal = (composite[..., 1:] - composite[..., :-1]).abs() * (hole[..., 1:] | hole[..., :-1])
    return vertical.mean() + horizontal.mean()
