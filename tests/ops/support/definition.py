"""Eqs. 1-5 once more, as loops over windows in float64 numpy: an oracle that shares no code with the package."""

import itertools

import numpy as np
import torch


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
    entries = mask.shape[1] * kh * kw if scale == "window" else 1
    per_group = c_out // groups
    for image, i, j in itertools.product(range(n), range(out_h), range(out_w)):
        valid, total = 0, np.zeros(c_out)
        for ky, kx in itertools.product(range(kh), range(kw)):
            y, z = i * stride[0] - top + ky * dilation[0], j * stride[1] - left + kx * dilation[1]
            if not (0 <= y < h and 0 <= z < w):
                continue  # zero padding is hole
            known = mask[image, :, y, z]
            valid += int(known.sum())
            seen = np.where(known, x[image, :, y, z], 0.0)
            for g in range(groups):
                rows = slice(g * per_group, (g + 1) * per_group)
                total[rows] += weight[rows, :, ky, kx] @ seen[g * c_in : (g + 1) * c_in]
        if valid:
            output[image, :, i, j] = total * entries / valid + bias
            new_mask[image, 0, i, j] = True
    return torch.from_numpy(output), torch.from_numpy(new_mask)


def concatenated(low, low_mask, skip, skip_mask):
    """cat(nearest_up2(low), skip) and its mask, one channel per channel."""
    rows, columns = torch.arange(skip.shape[2]) // 2, torch.arange(skip.shape[3]) // 2
    above = low[:, :, rows][:, :, :, columns], low_mask[:, :, rows][:, :, :, columns]
    masks = [above[1].expand_as(above[0]), skip_mask.expand_as(skip)]
    return torch.cat([above[0], skip], dim=1), torch.cat(masks, dim=1)


def partial_conv2d_upcat(low, low_mask, skip, skip_mask, weight, bias=None, scale="window"):
    image, mask = concatenated(low, low_mask, skip, skip_mask)
    return partial_conv2d(image, mask, weight, bias, padding=(1, 1), scale=scale)
