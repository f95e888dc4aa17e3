"""The patch discriminator of Table 3."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

#: The shortest side that leaves a logit: three layers halve it (to 3), and each of the last two takes one pixel.
SMALLEST_SIDE = 24


class Discriminator(nn.Module):
    """Tells real images from predicted ones, patch by patch (Table 3). It has 2.76 M parameters.

    Five 4×4 convolutions with padding 1, spectral norm and bias: 3→64→128→256 with stride 2, →512→1 with stride 1;
    LeakyReLU(0.2) after all but the last. The table's sigmoid belongs to the loss (`msa_model.InpaintingLoss`
    takes logits), where mixed precision cannot overflow it. The table gives Ori/8 for the last two outputs; with its
    own kernel, stride and padding they are Ori/8 - 1 and Ori/8 - 2.

    In training mode every call runs one step of the spectral norms' power iteration; in evaluation mode a call changes
    nothing.

    Args:
        base_width: channels of the first layer; the paper's 64.
    """

    def __init__(self, base_width: int = 64) -> None:
        super().__init__()
        if base_width < 1:
            raise ValueError(f"msa_model.Discriminator: base_width must be positive, got {base_width!r}")
        widths = (3, base_width, 2 * base_width, 4 * base_width, 8 * base_width, 1)
        self.layers = nn.ModuleList(
            spectral_norm(nn.Conv2d(widths[i], widths[i + 1], kernel_size=4, stride=2 if i < 3 else 1, padding=1))
            for i in range(5)
        )

    def forward(self, image: Tensor) -> Tensor:
        """Rates every patch of 70×70 pixels.

        Args:
            image: (N, 3, H, W), floating-point, values around [0, 1]; H and W at least 24.

        Returns:
            Logits (N, 1, ⌊H/8⌋ - 2, ⌊W/8⌋ - 2); positive means real.

        Raises:
            ValueError: another shape, or an image too small.
        """
        if image.dim() != 4 or image.shape[1] != 3:
            raise ValueError(f"msa_model.Discriminator: image must have shape (N, 3, H, W), got {tuple(image.shape)}")
        if min(image.shape[2:]) < SMALLEST_SIDE:
            raise ValueError(
                f"msa_model.Discriminator: image must be at least {SMALLEST_SIDE} pixels high and wide, "
                f"got {image.shape[2]}x{image.shape[3]}"
            )
        layers = cast(list[nn.Conv2d], list(self.layers))
        # In half precision the power iteration would give the norm with three digits only.
        with torch.autocast(image.device.type, enabled=False):
            weights = [layer.weight for layer in layers]
        x = image
        for i, (layer, weight) in enumerate(zip(layers, weights, strict=True)):
            assert not isinstance(layer.padding, str)
            x = F.conv2d(x, weight, layer.bias, layer.stride, layer.padding)
            if i < 4:
                x = F.leaky_relu(x, 0.2, inplace=True)
        return x
