"""Runs the U-Net of https://github.com/fepegar/unet with partial convolutions. Its code, parameters and checkpoints
stay as they are.

    pip install unet
    python docs/examples/foreign_network.py

Torch accepts any object in place of a tensor if the object defines, in `__torch_function__`, what torch's functions do
with it. `Masked` holds features together with their mask; `RULES` defines every function that a plain U-Net calls. (In
a network of your own, write `msa_ops.PartialConv2d` where `nn.Conv2d` was, and pass the masks along.)
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from unet import UNet2D

import msa_ops
from msa_model import free_form_mask
from msa_model.data import Facades


class Masked:
    """Features (N, C, H, W), and their mask as (channels, (N, 1, H, W)) groups in channel order; 1 = valid, 0 = hole.

    After the first convolution, features are 0 in holes.
    """

    def __init__(self, features: Tensor, mask: list[tuple[int, Tensor]]) -> None:
        self.features, self.mask, self.shape = features, mask, features.shape

    def map(self, function) -> Masked:
        return Masked(function(self.features), [(channels, function(plane)) for channels, plane in self.mask])

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function not in RULES:
            raise TypeError(f"no rule for masks in {function.__name__}; only in {sorted(f.__name__ for f in RULES)}")
        return RULES[function](*args, **(kwargs or {}))


def conv2d(x: Masked, weight: Tensor, bias: Tensor | None = None, *args, **kwargs) -> Masked:
    """Takes the arguments of torch's conv2d. Zero padding counts as hole; the factor E/s(p) compensates for it."""
    output, valid = msa_ops.partial_conv2d(x.features, x.mask, weight, bias, *args, **kwargs)
    return Masked(output, [(output.shape[1], valid)])


def conv_transpose2d(x: Masked, weight: Tensor, bias: Tensor | None, stride: tuple[int, int], *args) -> Masked:
    """Upsamples with a kernel as large as its stride. Windows do not overlap, so holes only grow with the map."""
    if weight.shape[2:] != stride or len(x.mask) > 1:
        raise TypeError("conv_transpose2d has a rule for masks only where kernel = stride, after a single convolution")
    valid = F.interpolate(x.mask[0][1], scale_factor=stride)
    return Masked(F.conv_transpose2d(x.features, weight, bias, stride, *args) * valid, [(weight.shape[1], valid)])


def cat(parts: list[Masked], dim: int) -> Masked:
    return Masked(torch.cat([part.features for part in parts], dim), [group for part in parts for group in part.mask])


RULES = {
    F.conv2d: conv2d,
    F.conv_transpose2d: conv_transpose2d,
    torch.cat: cat,
    F.relu: lambda x, inplace=False: Masked(F.relu(x.features, inplace), x.mask),
    # After a ReLU no value is less than a hole's 0, so a window's largest value is that of its valid pixels.
    F.max_pool2d: lambda x, *args, **kwargs: x.map(lambda t: F.max_pool2d(t, *args, **kwargs)),
    F.pad: lambda x, *args, **kwargs: x.map(lambda t: F.pad(t, *args, **kwargs)),
}


def run(network: nn.Module, image: Tensor, mask: Tensor) -> Tensor:
    """Returns network(image) with partial convolutions; mask (N, 1, H, W), floating-point, 1 = valid, 0 = hole."""
    return network(Masked(image, [(image.shape[1], mask)])).features


def train(network: nn.Module, image: Tensor, mask: Tensor, steps: int) -> list[float]:
    """Trains on one batch; returns the loss of every step, the mean absolute error over all pixels."""
    optimizer, losses = torch.optim.Adam(network.parameters(), lr=2e-3), []
    for _ in range(steps):
        loss = F.l1_loss(run(network, image, mask), image)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def main() -> None:
    torch.manual_seed(0)
    facades = Facades(64, 4)
    image = torch.from_numpy(np.stack([facades.load(i) for i in range(4)])).permute(0, 3, 1, 2) / 255
    mask = torch.stack([free_form_mask(64, 64, (0.2, 0.3), seed) for seed in range(4)]).float()
    options = dict(in_channels=3, out_classes=3, num_encoding_blocks=3, out_channels_first_layer=8)

    with torch.no_grad():
        network = UNet2D(**options)  # no padding, as U-Net was published
        difference = run(network, image, torch.ones_like(mask)) - network(image)
        print(f"all pixels valid: the output differs from the plain network's by at most {difference.abs().max():.1e}")
        network = UNet2D(**options, padding=1)
        outputs = [run(network, image.masked_fill(mask == 0, value), mask) for value in (0.0, float("nan"))]
        print(f"NaN in the holes instead of 0: the output is {'the same' if torch.equal(*outputs) else 'another'}")
    losses = train(network, image, mask, steps=40)
    print(f"training: loss {losses[0]:.3f} in the first step, {losses[-1]:.3f} in step {len(losses)}")


if __name__ == "__main__":
    main()
