"""Partial convolution (Eqs. 1-5) as loops over windows in float64 numpy: it shares no code with the package."""

import itertools
from typing import NamedTuple

import numpy as np
import torch


class Exact(NamedTuple):
    output: torch.Tensor
    new_mask: torch.Tensor
    magnitude: torch.Tensor  # the same sum of absolute values


def partial_conv2d(
    x, mask, weight, bias=None, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1, scale="window"
):
    """`mask` is (N,1,H,W) or (N,C,H,W); `padding` holds per axis a number or a pair (before, after)."""
    x, weight = x.detach().cpu().double().numpy(), weight.detach().cpu().double().numpy()
    bias = np.zeros(len(weight)) if bias is None else bias.detach().cpu().double().numpy()
    mask = mask.cpu().numpy() != 0
    (n, _, h, w), (c_out, c_in, kh, kw) = x.shape, weight.shape
    (top, bottom), (left, right) = [p if isinstance(p, tuple) else (p, p) for p in padding]
    out_h = len(range(0, h + top + bottom - dilation[0] * (kh - 1), stride[0]))
    out_w = len(range(0, w + left + right - dilation[1] * (kw - 1), stride[1]))
    output, new_mask = np.zeros((n, c_out, out_h, out_w)), np.zeros((n, 1, out_h, out_w), dtype=bool)
    magnitude = np.zeros_like(output)
    entries = mask.shape[1] * kh * kw if scale == "window" else 1
    known = np.broadcast_to(mask, x.shape)
    seen = np.where(known, x, 0.0).reshape(n, groups, c_in, h, w)
    taps = weight.reshape(groups, c_out // groups, c_in, kh, kw)
    for i, j in itertools.product(range(out_h), range(out_w)):
        valid, total, sizes = (
            np.zeros(n),
            np.zeros((n, groups, c_out // groups)),
            np.zeros((n, groups, c_out // groups)),
        )
        for ky, kx in itertools.product(range(kh), range(kw)):
            y, z = i * stride[0] - top + ky * dilation[0], j * stride[1] - left + kx * dilation[1]
            if not (0 <= y < h and 0 <= z < w):
                continue  # zero padding is hole
            valid += mask[:, :, y, z].sum(1)
            here = seen[..., y, z][..., None]
            total += (taps[..., ky, kx] @ here)[..., 0]
            sizes += (abs(taps[..., ky, kx]) @ abs(here))[..., 0]
        for image in np.flatnonzero(valid):
            ratio = entries / valid[image]
            output[image, :, i, j] = total[image].ravel() * ratio + bias
            magnitude[image, :, i, j] = sizes[image].ravel() * ratio + abs(bias)
            new_mask[image, 0, i, j] = True
    return Exact(*map(torch.from_numpy, (output, new_mask, magnitude)))


def concatenated(low, low_mask, skip, skip_mask):
    """cat(nearest_up2(low), skip) and its mask, one channel per channel."""
    rows, columns = torch.arange(skip.shape[2]) // 2, torch.arange(skip.shape[3]) // 2
    above = low[:, :, rows][:, :, :, columns], low_mask[:, :, rows][:, :, :, columns]
    masks = [above[1].expand_as(above[0]), skip_mask.expand_as(skip)]
    return torch.cat([above[0], skip], dim=1), torch.cat(masks, dim=1)


def partial_conv2d_upcat(low, low_mask, skip, skip_mask, weight, bias=None, scale="window"):
    image, mask = concatenated(low, low_mask, skip, skip_mask)
    return partial_conv2d(image, mask, weight, bias, padding=(1, 1), scale=scale)
