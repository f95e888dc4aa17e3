"""The convolutions of VGG-19 (Simonyan & Zisserman 2015), as EdgeConnect's perceptual and style losses see them."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .system import with_he_weights

#: Channels and number of convolutions of every group.
GROUPS = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))


class VGG19Features(nn.Module):
    """All sixteen activations of VGG-19: frozen, with gradients to the image only.

    3×3 convolutions with padding 1 and ReLU, a 2×2 maximum pool between groups. The weights are random: the time of a
    step does not depend on their values. The image is taken as it is, in [0, 1].
    """

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.ModuleDict()
        width = 3
        for group, (channels, depth) in enumerate(GROUPS, 1):
            for layer in range(1, depth + 1):
                self.convolutions[f"relu{group}_{layer}"] = nn.Conv2d(width, channels, kernel_size=3, padding=1)
                width = channels
        with_he_weights(self)
        self.requires_grad_(False)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """
        Args:
            image: (N, 3, H, W), floating-point; H and W at least 16.

        Returns:
            "relu1_1" … "relu5_4" -> (N, C, H/s, W/s) with C = 64, 128, 256, 512, 512 and s = 1, 2, 4, 8, 16 in
            groups 1 to 5, sizes rounded down.
        """
        features = {}
        x = image
        for name, convolution in self.convolutions.items():
            if name.endswith("_1") and name != "relu1_1":
                x = F.max_pool2d(x, 2)
            x = features[name] = F.relu(convolution(x))
        return features
