"""Layers of the compared networks that torch lacks, or has with a fault that matters here."""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

Network = TypeVar("Network", bound=nn.Module)


class Sum(nn.Module):
    """Adds the results of two branches."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) + self.second(x)


def instance_norm(channels: int) -> nn.GroupNorm:
    """Returns instance norm without scale and shift, as group norm of one channel per group.

    ``nn.InstanceNorm2d`` computes the same, but on the CPU (torch 2.13) its gradients are wrong for a batch of one
    channels_last image.
    """
    return nn.GroupNorm(channels, channels, affine=False)


class _WithoutAutocast(nn.Module):
    """Runs a parametrization in float32: a power iteration in half precision leaves three digits of the norm."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):
            return self.inner(weight)


def spectral_norm(layer: Network) -> Network:
    """Applies torch's spectral norm (Miyato et al. 2018) to a convolution, in float32 even under autocast.

    Compiled by Inductor (torch 2.13), a layer in training mode may not be called again before the backward of its last
    call: torch.compile recomputes from the singular vectors, which the second call has updated, and autograd raises an
    error. The systems therefore give a discriminator real and fake images in one call.
    """
    parametrizations.spectral_norm(layer)
    layer.parametrizations.weight[0] = _WithoutAutocast(layer.parametrizations.weight[0])
    return layer


def with_he_weights(network: Network) -> Network:
    """Gives the convolutions random weights that keep the scale of the features (He et al. 2015).

    They stand for trained VGG weights: features take the same time, and losses have a sensible size.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)
    return network


class VGG19Features(nn.Module):
    """All sixteen activations of VGG-19 (Simonyan & Zisserman 2015): frozen, with random weights.

    3×3 convolutions with padding 1 and ReLU, a 2×2 maximum pool between groups. The image is taken as it is, in [0, 1].
    """

    #: Channels and number of convolutions of every group.
    GROUPS = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.ModuleDict()
        width = 3
        for group, (channels, depth) in enumerate(self.GROUPS, 1):
            for layer in range(1, depth + 1):
                self.convolutions[f"relu{group}_{layer}"] = nn.Conv2d(width, channels, kernel_size=3, padding=1)
                width = channels
        with_he_weights(self).requires_grad_(False)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Maps (N, 3, H, W), H and W at least 16, to "relu1_1" … "relu5_4" -> (N, C, H/s, W/s); C is 64, 128, 256, 512,
        512 and s is 1, 2, 4, 8, 16 in groups 1 to 5, sizes rounded down."""
        features = {}
        x = image
        for name, convolution in self.convolutions.items():
            if name.endswith("_1") and name != "relu1_1":
                x = F.max_pool2d(x, 2)
            x = features[name] = F.relu(convolution(x))
        return features
