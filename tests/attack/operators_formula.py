"""Partial convolution (Eqs. 1-5) and hole attention in float64 with gradients: gathered windows and plain sums, which
share no code with the package. tests/ops/support holds the definitions that these are compared with."""

import torch
import torch.nn.functional as F

from tests.ops.support import attention


def _windows(x, kernel, stride, padding, dilation):
    """(N, C, H', kH, W', kW): the numbers under every window; zeros around the map."""
    for axis in (0, 1):
        x = F.pad(x, (0, 0) * (1 - axis) + (padding[axis],) * 2)
        reach = dilation[axis] * (kernel[axis] - 1)
        starts = torch.arange(0, x.shape[2 + 2 * axis] - reach, stride[axis])
        at = starts[:, None] + torch.arange(kernel[axis])[None] * dilation[axis]
        x = x[:, :, at] if axis == 0 else x[..., at]
    return x


def sums(x, weight, stride, padding, dilation, groups):
    """Eq. 1 without a mask: the convolution as a sum over gathered windows."""
    n, c = x.shape[:2]
    windows = _windows(x, weight.shape[2:], stride, padding, dilation)
    windows = windows.reshape(n, groups, c // groups, *windows.shape[2:])
    taps = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
    result = torch.einsum("ngcikjl,gockl->ngoij", windows, taps)
    return result.reshape(n, weight.shape[0], *result.shape[3:])


def partial_conv2d(x, known, weight, bias, stride, padding, dilation, groups, scale, is_masked=False):
    """The output, mask' and s of Eqs. 1-5 for a bool mask (N, 1 or C, H, W)."""
    counts = _windows(known.double(), weight.shape[2:], stride, padding, dilation).sum((1, 3, 5))[:, None]
    entries = known.shape[1] * weight.shape[2] * weight.shape[3] if scale == "window" else 1
    valid = counts > 0
    ratio = torch.where(valid, entries / counts.clamp_min(1), 0.0)
    output = sums(x if is_masked else torch.where(known, x, 0.0), weight, stride, padding, dilation, groups) * ratio
    if bias is not None:
        output = output + bias[:, None, None]
    return torch.where(valid, output, 0.0), valid, ratio


def concatenated(low, low_known, skip, skip_known, low_is_masked=False, skip_is_masked=False):
    """cat(nearest_up2(low), skip) and its mask, one channel per channel."""
    rows, columns = torch.arange(skip.shape[2]) // 2, torch.arange(skip.shape[3]) // 2

    def up(t):
        return t[:, :, rows][..., columns]

    # Zeros in the holes before the sum of the gradient, which would make NaN of inf - inf.
    low = low if low_is_masked else torch.where(low_known, low, 0.0)
    skip = skip if skip_is_masked else torch.where(skip_known, skip, 0.0)
    known = torch.cat([up(low_known).expand(-1, low.shape[1], -1, -1), skip_known.expand(skip.shape)], dim=1)
    return torch.cat([up(low), skip], dim=1), known


def shift_attention(query, key, value, is_query, is_key, scale=1.0, radius=0, renormalize=False):
    """Eqs. 6-8 for bool masks (N, 1, H, W); with finite gradients also where a row has no weights."""
    weights = attention.shifted_weights(query, key, is_query, is_key, scale, radius)
    if renormalize:
        total = weights.sum(2, keepdim=True)
        weights = weights / torch.where(total > 0, total, 1.0)
    return (weights @ value.flatten(2).mT).mT.reshape(value.shape)


def hole_attention(x, known, scale, radius, renormalize=False):
    """The paper's variant."""
    unit = x / x.norm(dim=1, keepdim=True).clamp_min(1e-6)
    attended = shift_attention(unit, unit, x, ~known, known, scale, radius, renormalize)
    return torch.where(known | ~known.flatten(1).any(1)[:, None, None, None], x, attended)


def released_operands(x, known, radius):
    """Queries and keys of hole attention's variant "released"; the values are the keys."""
    keys = torch.where(known, x, 0.0) + 1e-7
    keys = keys / keys.norm(dim=1, keepdim=True)
    h, w = x.shape[2:]
    wide = F.pad(x, (radius,) * 4)
    steps = range(2 * radius + 1)
    return sum(wide[:, :, dy : dy + h, dx : dx + w] for dy in steps for dx in steps), keys


def released(x, known, radius):
    """Hole attention of the variant "released": plain attention of the holes over all pixels."""
    queries, keys = released_operands(x, known, radius)
    attended = shift_attention(queries, keys, keys, ~known, torch.ones_like(known))
    return torch.where(known | ~known.flatten(1).any(1)[:, None, None, None], x, attended)
