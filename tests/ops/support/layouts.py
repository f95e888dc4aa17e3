"""The same numbers in memory laid out differently."""

import torch


def _strided(x, width, dims):
    """x as every second element, along `dims`, of a map in which the others are NaN."""
    shape = [2 * s if d in dims else s for d, s in enumerate(x.shape)]
    wide = torch.full(shape, float("nan"), dtype=x.dtype, device=x.device).to(memory_format=width)
    view = wide[tuple(slice(None, None, 2) if d in dims else slice(None) for d in range(4))]
    view.copy_(x)
    return view


def _cropped(x):
    wide = torch.full([*x.shape[:2], x.shape[2] + 2, x.shape[3] + 3], float("nan"), dtype=x.dtype, device=x.device)
    view = wide.to(memory_format=torch.channels_last)[:, :, 1:-1, 2:-1]
    view.copy_(x)
    return view


#: name -> the same numbers, laid out differently.
LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": lambda x: x.to(memory_format=torch.channels_last),
    "cropped_channels_last": _cropped,
    "every_second_pixel": lambda x: _strided(x, torch.contiguous_format, (2, 3)),
    "every_second_channel": lambda x: _strided(x, torch.contiguous_format, (1,)),
    "every_second_channel_of_channels_last": lambda x: _strided(x, torch.channels_last, (1,)),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "batch_last": lambda x: x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
}

#: Views of one another's memory: these have their own numbers.
EXPANDED = {
    "expanded_batch": lambda x: x[:1].expand_as(x),
    "expanded_channels": lambda x: x[:, :1].expand_as(x),
    "expanded_pixels": lambda x: x[:, :, :1, :1].expand_as(x),
}

VIEWS = LAYOUTS | EXPANDED
