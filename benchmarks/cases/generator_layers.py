"""The shapes, work and masks of the generator's 16 partial convolutions."""

from __future__ import annotations

import dataclasses
import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from msa_model import Generator

from ..measure import BOTH, FORWARD, Work
from ..model import free_form_mask


@dataclasses.dataclass(frozen=True)
class Layer:
    """One partial convolution of the generator. The encoder's have one input; the decoder's have two, which stand for
    the concatenation of the first, upsampled ×2, and the second."""

    name: str
    channels: tuple[int, ...]
    side: int  # of the input, in the decoder of the second
    out_channels: int
    kernel: int
    stride: int
    is_masked: bool  # what the network knows of its (last) input
    reads_image: bool  # as its last input, which then needs no gradient

    @property
    def in_channels(self) -> int:
        return sum(self.channels)

    @property
    def in_decoder(self) -> bool:
        return len(self.channels) == 2

    @property
    def padding(self) -> int:
        return self.kernel // 2

    def shape(self, batch: int) -> str:
        window = f"{self.kernel}×{self.kernel}/{self.stride}"
        return f"{batch}×{self.in_channels}×{self.side}×{self.side} → {self.out_channels}, {window}"

    def work(self, batch: int, element: int) -> dict[str, Work]:
        """Counts the FLOP of the bare convolution's products: the output, and each gradient that is asked for. Counts
        bytes, `element` per number and one per pixel of a mask: in the forward inputs, weight and output; in the
        backward the output's gradient, inputs and weight again, and their gradients."""
        taps = self.kernel**2
        wanted = self.in_channels - (self.channels[-1] if self.reads_image else 0)  # channels that need a gradient
        per_channel = 2 * batch * self.out_channels * (self.side // self.stride) ** 2 * taps
        planes = [batch * self.side**2 // (4 if self.in_decoder and i == 0 else 1) for i in range(len(self.channels))]
        sizes = [channels * plane for channels, plane in zip(self.channels, planes, strict=True)]
        inputs, gradients = sum(sizes), sum(sizes[:-1] if self.reads_image else sizes)
        weight = self.out_channels * (self.in_channels * taps + 1)
        out_plane = batch * (self.side // self.stride) ** 2
        output = self.out_channels * out_plane
        forward = element * (inputs + weight + output) + sum(planes) + out_plane
        backward = element * (output + inputs + weight + gradients + weight)
        return {
            FORWARD: Work(per_channel * self.in_channels, forward),
            BOTH: Work(per_channel * (2 * self.in_channels + wanted), forward + backward),
        }


@functools.cache
def generator_layers(size: int) -> list[Layer]:
    """Returns Encode_1 … Encode_8, Decode_8 … Decode_1, for images of this side.

    Raises:
        ValueError: a side that the network would pad.
    """
    if size < 1 or size % 256:
        raise ValueError(f"the layers' size must be a multiple of 256, got {size}")
    with torch.device("meta"):
        generator = Generator()
    layers = []
    for level, encoder in enumerate(generator.encoder, 1):
        conv, side = encoder.conv, size >> (level - 1)
        facts = (side, conv.out_channels, conv.kernel_size[0], 2, encoder.input_is_masked, level == 1)
        layers.append(Layer(f"Encode_{level}", (conv.in_channels,), *facts))
    for name, decoder in generator.decoder.items():
        conv, level = decoder.conv, int(name)
        skip, side = generator.config.encoder_width(level - 1), size >> (level - 1)
        facts = (side, conv.out_channels, 3, 1, decoder.skip_is_masked, level == 1)
        layers.append(Layer(f"Decode_{level}", (conv.in_channels - skip, skip), *facts))
    return layers


def brush_mask(height: int, width: int, share: float, seed: int) -> Tensor:
    """Draws (1,height,width) bool, True = valid, with this share of hole, to half a percent of all pixels."""
    if share == 0:
        return torch.ones(1, height, width, dtype=torch.bool)
    return free_form_mask(height, width, (share - 0.005, share + 0.005), seed)


def layer_masks(masks: Tensor) -> dict[str, list[Tensor]]:
    """Returns the masks of every layer's inputs, from those of the images: a pixel is valid where its window has a
    valid one."""
    layers = generator_layers(masks.shape[2])
    found, levels = {}, [masks]
    for layer in layers:
        if not layer.in_decoder:
            found[layer.name] = [levels[-1]]
            levels.append(_spread(levels[-1], layer))
    low = levels.pop()
    for layer in layers:
        if layer.in_decoder:
            found[layer.name] = [low, levels.pop()]
            low = _spread(upsample(low) | found[layer.name][1], layer)
    return found


def _spread(mask: Tensor, layer: Layer) -> Tensor:
    return F.max_pool2d(mask.float(), layer.kernel, layer.stride, layer.padding) > 0


def upsample(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)
