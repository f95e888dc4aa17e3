"""The shapes and masks of the generator's 16 partial convolutions, as the network itself calls its layers."""

from __future__ import annotations

import dataclasses
import functools

import torch
from torch import Tensor

from msa_model import Generator

from ..measure import BOTH, FORWARD
from ..model import free_form_mask


@dataclasses.dataclass(frozen=True)
class Layer:
    """One partial convolution of the generator. The encoder's have one input; the decoder's have two, which stand for
    the concatenation of the first, upsampled ×2, and the second."""

    name: str
    channels: tuple[int, ...]
    side: int  # of the (second) input
    out_channels: int
    kernel: int
    stride: int
    is_masked: bool  # what the network knows of its (last) input

    @property
    def in_channels(self) -> int:
        return sum(self.channels)

    @property
    def in_decoder(self) -> bool:
        return len(self.channels) == 2

    @property
    def reads_image(self) -> bool:
        """Returns whether the last input is the image, which needs no gradient."""
        return self.channels[-1] == 3

    @property
    def out_side(self) -> int:
        return self.side // self.stride

    def shape(self, batch: int) -> str:
        window = f"{self.kernel}×{self.kernel}/{self.stride}"
        return f"{batch}×{self.in_channels}×{self.side}×{self.side} → {self.out_channels}, {window}"

    def flop(self, batch: int) -> dict[str, int]:
        """Counts the bare convolution's products: of the output, and of each gradient that is asked for."""
        per_channel = 2 * batch * self.out_channels * self.out_side**2 * self.kernel**2
        wanted = self.in_channels - (3 if self.reads_image else 0)  # channels that need a gradient
        return {FORWARD: per_channel * self.in_channels, BOTH: per_channel * (2 * self.in_channels + wanted)}


def layer_inputs(generator: Generator, masks: Tensor) -> dict[str, list[Tensor]]:
    """Runs the generator on empty images, and returns by layer the maps and masks that go into it."""
    found: dict[str, list[Tensor]] = {}

    def record(name: str, _: object, inputs: tuple[Tensor | None, ...]) -> None:
        found[name] = [x for x in inputs if x is not None]

    layers = {f"Encode_{level}": layer for level, layer in enumerate(generator.encoder, 1)}
    layers |= {f"Decode_{level}": layer for level, layer in generator.decoder.items()}
    for name, layer in layers.items():
        layer.register_forward_pre_hook(functools.partial(record, name))
    with torch.no_grad():
        generator.eval()(masks.new_zeros(len(masks), 3, *masks.shape[2:], dtype=torch.float32), masks)
    return found


@functools.cache
def generator_layers(size: int) -> list[Layer]:
    """Returns Encode_1 … Encode_8, Decode_8 … Decode_1, for images of this side.

    Raises:
        ValueError: a side that the network would pad.
    """
    if size < 1 or size % 256:
        raise ValueError(f"the layers' size must be a multiple of 256, got {size}")
    with torch.device("meta"):  # shapes only
        generator = Generator(attention_levels=())
        inputs = layer_inputs(generator, torch.ones(1, 1, size, size, dtype=torch.bool))
    layers = []
    for (name, found), layer in zip(inputs.items(), [*generator.encoder, *generator.decoder.values()], strict=True):
        maps, conv = found[::2], layer.conv
        is_masked = layer.skip_is_masked if len(maps) == 2 else layer.input_is_masked
        facts = (maps[-1].shape[2], conv.out_channels, conv.kernel_size[0], conv.stride[0], is_masked)
        layers.append(Layer(name, tuple(x.shape[1] for x in maps), *facts))
    return layers


def layer_masks(masks: Tensor) -> dict[str, list[Tensor]]:
    """Returns the masks of every layer's inputs, from those of the images; a narrow network has the same."""
    inputs = layer_inputs(Generator(base_width=1, attention_levels=()), masks)
    return {name: found[1::2] for name, found in inputs.items()}


def brush_mask(height: int, width: int, share: float, seed: int) -> Tensor:
    """Draws (1,height,width) bool, True = valid, with this share of hole, to half a percent of all pixels."""
    if share == 0:
        return torch.ones(1, height, width, dtype=torch.bool)
    return free_form_mask(height, width, (share - 0.005, share + 0.005), seed)
