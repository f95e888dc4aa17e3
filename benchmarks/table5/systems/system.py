"""What the systems of Table 5 have in common: their batch, and what a training step of theirs is."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from ...model import free_form_mask, render_facade

#: Every mask's share of hole pixels lies in this range.
HOLE = (0.2, 0.3)
_LUMA = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)  # ITU-R BT.601


@dataclasses.dataclass(frozen=True)
class Batch:
    """The images of a step, on its device; every system takes from it what it needs.

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
    """Renders facades and draws brush masks with 20-30 % hole; the same arguments give the same batch."""
    from skimage.feature import canny

    pixels = np.stack([render_facade(size, seed + i) for i in range(batch)])
    image = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div_(255)
    mask = torch.stack([free_form_mask(size, size, HOLE, seed + i) for i in range(batch)])
    grey = (image * _LUMA).sum(1, keepdim=True)
    # EdgeConnect was trained with this deviation of 2.
    edges = torch.from_numpy(np.stack([canny(plane.numpy(), sigma=2.0) for plane in grey[:, 0]]))[:, None].float()
    image = image.to(device, memory_format=torch.channels_last)
    return Batch(image, mask.to(device), grey.to(device), edges.to(device))


class System:
    """Networks with their losses and optimisers. A subclass sets the attributes and implements `step`.

    Args:
        device: of the networks and of every batch.
        precision: float32, or a half type: forward and losses then run under autocast, weights stay float32.

    Attributes:
        networks: name -> network, of all that are trained.
        features: the frozen networks that the losses use.
    """

    networks: dict[str, nn.Module]
    features: tuple[nn.Module, ...] = ()

    def __init__(self, device: torch.device, precision: torch.dtype = torch.float32) -> None:
        self.device, self.precision = device, precision

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Runs one full training step: forward, all losses, every backward, every optimiser step.

        Returns:
            The loss terms, without their weights: scalars on the device, detached, not read by the host.
        """
        raise NotImplementedError

    def compile(self) -> None:
        """Compiles the forward of every network with ``torch.compile``, in place."""
        for network in (*self.networks.values(), *self.features):
            network.compile(dynamic=False)

    def place(self, *networks: nn.Module) -> None:
        """Moves networks to the device, their weights in channels_last."""
        for network in networks:
            network.to(self.device, memory_format=torch.channels_last)

    def autocast(self) -> contextlib.AbstractContextManager:
        if self.precision == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.precision)


def update(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def detached(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: term.detach() for name, term in terms.items()}


@contextlib.contextmanager
def without_gradients(network: nn.Module) -> Iterator[None]:
    """Keeps gradients off a network's weights: they flow through it, to its input only."""
    network.requires_grad_(False)
    try:
        yield
    finally:
        network.requires_grad_(True)
