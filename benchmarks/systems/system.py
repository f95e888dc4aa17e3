"""What the compared systems of Table 5 have in common: the batch they are given and what a step of theirs is."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from msa_model.facades import render_facade
from msa_model.masks import free_form_mask

#: Range of the share of hole pixels in every mask.
HOLE = (0.2, 0.3)
_LUMA = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)  # ITU-R BT.601


@dataclasses.dataclass(frozen=True)
class Batch:
    """What is on the device when a step begins; every system takes of it what it needs.

    Attributes:
        image: (N, 3, H, W) float32 in [0, 1], channels_last.
        mask: (N, 1, H, W) bool, True = valid.
        grey: (N, 1, H, W) float32, luma of the image.
        edges: (N, 1, H, W) float32 of {0, 1}, Canny's edges of `grey`.
    """

    image: Tensor
    mask: Tensor
    grey: Tensor
    edges: Tensor

    def __len__(self) -> int:
        return self.image.shape[0]


def make_batch(size: int, batch: int, device: torch.device, seed: int = 0) -> Batch:
    """Rendered facades with brush masks of 20-30 % hole; the same arguments give the same batch."""
    from skimage.feature import canny

    pixels = np.stack([render_facade(size, seed + i) for i in range(batch)])
    image = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div_(255)
    mask = torch.stack([free_form_mask(size, size, HOLE, seed + i) for i in range(batch)])
    grey = (image * _LUMA).sum(1, keepdim=True)
    # Deviation 2 is that of EdgeConnect's training.
    edges = torch.from_numpy(np.stack([canny(plane.numpy(), sigma=2.0) for plane in grey[:, 0]]))[:, None].float()
    image = image.to(device, memory_format=torch.channels_last)
    return Batch(image, mask.to(device), grey.to(device), edges.to(device))


class System(Protocol):
    """A network with its losses and optimisers.

    Constructors take ``(device, precision=torch.float32)``; a half precision means autocast around forward and losses,
    weights stay float32.

    Attributes:
        networks: name -> everything that is trained; frozen features are not in it.
    """

    networks: dict[str, nn.Module]

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """One full training step (SPEC 10): forward, all losses, every backward, every optimiser step.

        Returns:
            The loss terms: scalars on the device, which the host has not read.
        """
        ...

    def compile(self) -> None:
        """Has ``torch.compile`` compile the forwards of the networks, and of frozen features, in place."""
        ...


def autocast(device: torch.device, precision: torch.dtype) -> contextlib.AbstractContextManager:
    """Autocast to a half precision; nothing for float32."""
    if precision == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, precision)


Network = TypeVar("Network", bound=nn.Module)


def with_he_weights(network: Network) -> Network:
    """The network with random weights that keep the scale of the features, in place of trained ones that are not at
    hand: VGG's features then take the time they always do, and give losses of a sensible size."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)
    return network
