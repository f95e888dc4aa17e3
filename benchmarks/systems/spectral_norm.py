"""Convolutions with spectral norm (Miyato et al. 2018) that keep their accuracy under autocast.

Compiled by Inductor (torch 2.13), a layer in training mode may not be called again before the backward of its last
call: torch.compile recomputes from the singular vectors, which the second call has moved on, and autograd refuses. The
systems therefore give a discriminator real and fake images in one call, and finish its backward before the next.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm


class SpectralConv2d(nn.Conv2d):
    """``nn.Conv2d`` whose weight is divided by its largest singular value, which one power iteration per call in
    training mode follows.

    Args:
        init: writes the initial weight in place; None leaves torch's. The singular vectors start from that weight.
    """

    def __init__(self, *args, init: Callable[[Tensor], Tensor] | None = None, **options) -> None:
        super().__init__(*args, **options)
        _start(self, init)

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, _float32_weight(self, x), self.bias)


class SpectralConvTranspose2d(nn.ConvTranspose2d):
    """``nn.ConvTranspose2d``, in the same way as :class:`SpectralConv2d`."""

    def __init__(self, *args, init: Callable[[Tensor], Tensor] | None = None, **options) -> None:
        super().__init__(*args, **options)
        _start(self, init)

    def forward(self, x: Tensor) -> Tensor:
        weight = _float32_weight(self, x)
        return F.conv_transpose2d(x, weight, self.bias, self.stride, self.padding, self.output_padding)


def _start(layer: nn.Module, init: Callable[[Tensor], Tensor] | None) -> None:
    if init is not None:
        init(layer.weight)
    spectral_norm(layer)


def _float32_weight(layer: nn.Module, x: Tensor) -> Tensor:
    # The power iteration in half precision would leave the norm three digits.
    with torch.autocast(x.device.type, enabled=False):
        return layer.weight
