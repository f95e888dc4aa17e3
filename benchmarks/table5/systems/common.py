"""What the systems of Table 5 have in common: their batch, what a training step of theirs is, and layers that torch
lacks, or has with a fault that matters here."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from ...model import free_form_mask, render_facade

#: Every mask's share of hole pixels lies in this range.
HOLE = (0.2, 0.3)
_LUMA = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)  # ITU-R BT.601


@dataclasses.dataclass(frozen=True)
class Batch:
    """The images of a step; every system takes from it what it needs."""

    image: Tensor  # (N, 3, H, W) float32 in [0, 1], channels_last
    mask: Tensor  # (N, 1, H, W) bool, True = valid
    grey: Tensor  # (N, 1, H, W) float32, luma of the image
    edges: Tensor  # (N, 1, H, W) float32 of {0, 1}, Canny's edges of `grey`


def make_batch(size: int, batch: int, device: torch.device) -> Batch:
    """Renders facades and draws brush masks with 20-30 % hole; the same arguments give the same batch."""
    from skimage.feature import canny

    pixels = np.stack([render_facade(size, seed) for seed in range(batch)])
    image = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div_(255)
    mask = torch.stack([free_form_mask(size, size, HOLE, seed) for seed in range(batch)])
    grey = (image * _LUMA).sum(1, keepdim=True)
    # EdgeConnect was trained with this deviation of 2.
    edges = torch.from_numpy(np.stack([canny(plane.numpy(), sigma=2.0) for plane in grey[:, 0]]))[:, None].float()
    image = image.to(device, memory_format=torch.channels_last)
    return Batch(image, mask.to(device), grey.to(device), edges.to(device))


class System:
    """Trained networks, by name, with their losses and optimisers, and the frozen networks that the losses use.

    A subclass implements `step`. In a half `precision` forward and losses run under autocast, and weights stay float32.
    """

    def __init__(
        self, device: torch.device, precision: torch.dtype, networks: dict[str, nn.Module], *frozen: nn.Module
    ) -> None:
        self.device = device
        self.networks, self.frozen = nn.ModuleDict(networks), nn.ModuleList(frozen)
        for modules in (self.networks, self.frozen):
            modules.to(device, memory_format=torch.channels_last)
        self.autocast = functools.partial(torch.autocast, device.type, precision, precision != torch.float32)

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Runs one full training step: forward, all losses, every backward, every optimiser step. Returns the loss
        terms without their weights: scalars on the device, not read by the host."""
        raise NotImplementedError

    def compile(self) -> None:
        """Compiles the forward of every network with ``torch.compile``, in place."""
        for network in (*self.networks.values(), *self.frozen):
            network.compile(dynamic=False)


def update(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@contextlib.contextmanager
def without_gradients(network: nn.Module) -> Iterator[None]:
    """Keeps gradients off a network's weights: they flow through it, to its input only."""
    network.requires_grad_(False)
    yield
    network.requires_grad_(True)


def with_he_weights(network: nn.Module) -> nn.Module:
    """Gives the convolutions random weights that keep the scale of the features (He et al. 2015).

    They stand for trained VGG weights: features take the same time, and losses have a sensible size.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)
    return network


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


def spectral_norm(layer: nn.Module) -> nn.Module:
    """Applies torch's spectral norm (Miyato et al. 2018) to a convolution, in float32 even under autocast."""
    parametrizations.spectral_norm(layer)
    layer.parametrizations.weight[0] = _WithoutAutocast(layer.parametrizations.weight[0])
    return layer
