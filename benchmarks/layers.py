"""The generator's 16 partial convolutions as benchmark cases, with the masks they see in the network."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from msa_model import Generator
from msa_model.masks import free_form_mask
from msa_ops import partial_conv2d, partial_conv2d_upcat

from .competitors import ChannelMaskPartialConv


@dataclasses.dataclass
class LayerCase:
    """One layer: its inputs, and its contestants as functions of those inputs that return the output map."""

    name: str
    shape: str
    inputs: list[Tensor]  # ours: input, or low and skip; then weight and bias
    concat: Tensor  # the ready-made input of the bare convolution
    contestants: dict[str, Callable[[], Tensor]]
    leaves: dict[str, list[Tensor]]  # per contestant, the tensors whose gradients are asked for
    exact: Callable[[], Tensor]  # float64 reference
    plain: Callable[[], Tensor]  # plain PyTorch in the case's dtype


def layer_cases(size: int, batch: int, device: torch.device, dtype: torch.dtype, hole: tuple[float, float]):
    """Yields the layers of the full-width generator, encoder first, one at a time to keep memory low; size is a
    multiple of 256, as the network itself would pad it."""
    if size % 256:
        raise ValueError(f"benchmarks: size must be a multiple of 256, got {size}")
    generator = Generator()
    masks = [torch.stack([free_form_mask(size, size, hole, 7 + i) for i in range(batch)]).to(device)]
    layout = dict(device=device, dtype=dtype, memory_format=torch.channels_last)
    for level, layer in enumerate(generator.encoder, 1):
        conv, mask = layer.conv, masks[-1]
        side = mask.shape[2]
        x = torch.randn(batch, conv.in_channels, side, side).to(**layout)
        x = (x * mask if layer.input_is_masked else x).requires_grad_(level > 1)
        weight, bias = conv.weight.detach().to(**layout), torch.randn(conv.out_channels).to(device, dtype)
        case = _case(f"Encode_{level}", [x], [mask], weight, bias, 2, conv.padding[0], x, layer.input_is_masked)
        masks.append(partial_conv2d(x[:, :1].detach(), mask, weight[:1, :1], None, 2, conv.padding)[1])
        yield case
    low_mask = masks.pop()
    for level, layer in ((int(name), layer) for name, layer in generator.decoder.items()):
        conv, skip_mask = layer.conv, masks.pop()
        side, low_side = skip_mask.shape[2], low_mask.shape[2]
        skip_channels = generator.config.encoder_width(level - 1)
        low = torch.randn(batch, conv.in_channels - skip_channels, low_side, low_side).to(**layout).requires_grad_()
        skip = torch.randn(batch, skip_channels, side, side).to(**layout)
        skip = (skip * skip_mask if layer.skip_is_masked else skip).requires_grad_(level > 1)
        weight, bias = conv.weight.detach().to(**layout), torch.randn(conv.out_channels).to(device, dtype)
        concat = torch.cat([F.interpolate(low.detach(), scale_factor=2), skip.detach()], 1).to(**layout)
        yield _case(
            f"Decode_{level}", [low, skip], [low_mask, skip_mask], weight, bias, 1, 1, concat, layer.skip_is_masked
        )
        up = low_mask.repeat_interleave(2, 2).repeat_interleave(2, 3)
        low_mask = F.max_pool2d((up | skip_mask).float(), 3, 1, 1) > 0


def _case(
    name: str,
    maps: list[Tensor],
    masks: list[Tensor],
    weight: Tensor,
    bias: Tensor,
    stride: int,
    padding: int,
    concat: Tensor,
    is_masked: bool,
) -> LayerCase:
    """`is_masked` is what the network knows of its input, or of the decoder's skip."""
    weights = [t.clone(memory_format=torch.preserve_format).requires_grad_() for t in (weight, bias)]
    if len(maps) == 1:
        wide_mask = masks[0].expand_as(concat)

        def ours(maps=maps, weights=weights, backend="auto"):
            return partial_conv2d(
                maps[0], masks[0], *weights, stride, padding, input_is_masked=is_masked, backend=backend
            )[0]
    else:
        up = masks[0].repeat_interleave(2, 2).repeat_interleave(2, 3)
        wide_mask = torch.cat([m.expand(-1, x.shape[1], -1, -1) for m, x in zip((up, masks[1]), maps, strict=True)], 1)

        def ours(maps=maps, weights=weights, backend="auto"):
            low, skip = maps
            return partial_conv2d_upcat(
                low, masks[0], skip, masks[1], *weights, skip_is_masked=is_masked, backend=backend
            )[0]

    needs_gradient = any(m.requires_grad for m in maps)
    ready = concat.detach().clone(memory_format=torch.preserve_format).requires_grad_(needs_gradient)
    float_mask = wide_mask.to(concat.dtype).contiguous(memory_format=torch.channels_last)
    channel_masks = ChannelMaskPartialConv(*weights, stride, padding)
    contestants = {
        "bare conv": lambda: F.conv2d(ready, *weights, stride, padding),
        "ours": ours,
        "channel masks": lambda: channel_masks(ready, float_mask)[0],
    }
    _, c, h, w = concat.shape
    return LayerCase(
        name,
        f"{c}×{h}×{w} → {weight.shape[0]}, {weight.shape[2]}×{weight.shape[3]}/{stride}",
        [*maps, *weights],
        concat,
        contestants,
        {
            "bare conv": [t for t in (ready, *weights) if t.requires_grad],
            "ours": [t for t in (*maps, *weights) if t.requires_grad],
            "channel masks": [t for t in (ready, *weights) if t.requires_grad],
        },
        lambda: ours([m.double() for m in maps], [w.double() for w in weights], "reference"),
        lambda: ours(backend="reference"),
    )
