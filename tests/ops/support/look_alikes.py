"""Layers that behave like those of other projects, from their published descriptions."""

import torch
import torch.nn.functional as F
from torch import nn


class WindowLookAlike(nn.Conv2d):
    """The behaviour of NVIDIA's published layer, from its description: counts by a convolution with ones, per plane or
    per channel."""

    def __init__(self, *args, multi_channel=False, return_mask=False, **kwargs):
        super().__init__(*args, **kwargs)
        self.multi_channel = multi_channel
        self.return_mask = return_mask

    def forward(self, x, mask_in=None):
        planes = self.in_channels if self.multi_channel else 1
        mask = torch.ones(1, planes, *x.shape[2:], dtype=x.dtype) if mask_in is None else mask_in
        out_planes = self.out_channels if self.multi_channel else 1
        ones = torch.ones(out_planes, planes, *self.kernel_size, dtype=x.dtype)
        count = F.conv2d(mask, ones, None, self.stride, self.padding, self.dilation)
        new_mask = count.clamp(0, 1)
        ratio = ones[0].numel() / (count + 1e-8) * new_mask
        raw = super().forward(x * mask)
        if self.bias is None:
            output = raw * ratio
        else:
            bias = self.bias.view(1, -1, 1, 1)
            output = ((raw - bias) * ratio + bias) * new_mask
        return (output, new_mask) if self.return_mask else output


class TwoConvLookAlike(nn.Module):
    """A common community layer: a second convolution of ones counts, and the result is divided by the count alone."""

    def __init__(self, in_channels, out_channels, *args, bias=True, **kwargs):
        super().__init__()
        self.input_conv = nn.Conv2d(in_channels, out_channels, *args, bias=bias, **kwargs)
        self.mask_conv = nn.Conv2d(in_channels, out_channels, *args, bias=False, **kwargs)
        nn.init.ones_(self.mask_conv.weight).requires_grad_(False)

    def forward(self, x, mask):
        raw = self.input_conv(x * mask)
        bias = 0 if self.input_conv.bias is None else self.input_conv.bias.view(1, -1, 1, 1)
        count = self.mask_conv(mask)
        hole = count == 0
        output = ((raw - bias) / count.masked_fill(hole, 1.0) + bias).masked_fill(hole, 0.0)
        return output, (~hole).to(x.dtype)


def case(multi_channel, channels=4, seed=0):
    torch.manual_seed(seed)
    x = torch.randn(2, channels, 11, 9, dtype=torch.float64)
    mask = (torch.rand(2, channels if multi_channel else 1, 11, 9) > 0.7).double()
    return x, mask
