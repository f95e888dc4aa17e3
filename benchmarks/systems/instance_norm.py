"""Instance norm whose compiled gradients are right."""

from __future__ import annotations

from torch import nn


def instance_norm(channels: int) -> nn.GroupNorm:
    """Instance norm without scale and shift, as group norm of one channel per group.

    ``nn.InstanceNorm2d`` computes the same in the same time, but compiled by Inductor (torch 2.13, CPU) its gradients
    are wrong where the input is channels_last and the output is added to something, as in a residual block.
    """
    return nn.GroupNorm(channels, channels, affine=False)
