"""The first three blocks of VGG-16, whose features the perceptual and style losses compare."""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn

from . import state_dicts

NORMALIZATIONS = ("imagenet", "none")
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_WHERE = (
    "; wanted is torchvision's vgg16-397923af.pth, which torchvision.models.vgg16(weights='IMAGENET1K_V1') downloads "
    "and keeps in torch.hub's checkpoint folder"
)


class VGG16Features(nn.Module):
    """Computes pool1, pool2 and pool3 of VGG-16.

    The network is frozen and always in evaluation mode; only the image gets gradients.

    3×3 convolutions with padding 1 and ReLU, 2 × 64, 2 × 128, 3 × 256 channels, a 2×2 maximum pool after each group.
    The names of the state dict are torchvision's (``features.0.weight`` … ``features.14.bias``).

    Args:
        path: torchvision's VGG-16 weights, a file of ``torch.save``; layers beyond pool3 in it are ignored. None:
            random weights, which are useful for timing and tests only.
        normalization: ``"imagenet"`` subtracts ImageNet's mean from the image and divides by its deviation, as in the
            training of the weights; ``"none"`` feeds [0, 1] as it is, as the paper's released code does.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another kind of file, or weights missing in it or of another shape, by name.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, path: str | os.PathLike | None, normalization: str = "imagenet") -> None:
        super().__init__()
        if normalization not in NORMALIZATIONS:
            wanted = " or ".join(map(repr, NORMALIZATIONS))
            raise ValueError(f"msa_model.VGG16Features: normalization must be {wanted}, got {normalization!r}")
        self.normalization = normalization
        layers: list[nn.Module] = []
        width = 3
        for next_width, depth in ((64, 2), (128, 2), (256, 3)):
            for _ in range(depth):
                layers += [nn.Conv2d(width, next_width, kernel_size=3, padding=1), nn.ReLU(inplace=True)]
                width = next_width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        # Not persistent, so that the state dict stays torchvision's.
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_STD).view(1, 3, 1, 1), persistent=False)
        if path is not None:
            self._read(path)
        self.requires_grad_(False)
        self.eval()

    def _read(self, path: str | os.PathLike) -> None:
        who = "msa_model.VGG16Features"
        found = state_dicts.state_dict(state_dicts.read(path, who, _WHERE), path, who, _WHERE)
        wanted = self.state_dict()
        wrong = state_dicts.differences({name: t for name, t in found.items() if name in wanted}, wanted)
        if wrong:
            raise ValueError(f"{who}: {path} is not VGG-16's: {wrong}{_WHERE}")
        used = {name: found[name] for name in wanted}
        if wrong := state_dicts.not_finite(used):
            raise ValueError(f"{who}: {path} holds weights that are not finite: {wrong}{_WHERE}")
        self.load_state_dict(used)

    def train(self, mode: bool = True) -> VGG16Features:
        """Keeps evaluation mode, so that a loss that holds this network may be put in training mode."""
        return super().train(False)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Computes the three feature maps.

        Args:
            image: (N, 3, H, W), floating-point, values around [0, 1]; H and W at least 8.

        Returns:
            pool1 (N, 64, H/2, W/2), pool2 (N, 128, H/4, W/4), pool3 (N, 256, H/8, W/8), sizes rounded down; in the
            dtype of the weights, or of autocast.

        Raises:
            ValueError: another shape, or an image too small.
        """
        if image.dim() != 4 or image.shape[1] != 3 or min(image.shape[2:]) < 8:
            raise ValueError(
                "msa_model.VGG16Features: image must have shape (N, 3, H, W) with H and W at least 8, "
                f"got {tuple(image.shape)}"
            )
        x = image.to(self.mean.dtype)
        if self.normalization == "imagenet":
            x = (x - self.mean) / self.std
        pools = []
        for layer in self.features:
            x = layer(x)
            if isinstance(layer, nn.MaxPool2d):
                pools.append(x)
        return pools
