"""FLOP formulas of the operators, forward and backward, against the same computation in plain torch, whose convolutions
and matrix products torch's counter counts. The results agree too, so that both compute the same."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from msa_ops import partial_conv2d, partial_conv2d_upcat, shift_attention


def counted(run):
    with FlopCounterMode(display=False) as counter:
        result = run()
    return result, counter.get_total_flops()


def assert_same_work(run, plain, leaves, again=0):
    """`again`: FLOPs of what the operator's backward computes a second time."""
    (result, flops), (wanted, wanted_flops) = counted(run), counted(plain)
    torch.testing.assert_close(result, wanted)
    assert flops == wanted_flops > 0
    grad = torch.randn_like(result)
    gradients, flops = counted(lambda: torch.autograd.grad(result, leaves, grad))
    wanted, wanted_flops = counted(lambda: torch.autograd.grad(wanted, leaves, grad))
    torch.testing.assert_close(gradients, wanted)
    assert flops == wanted_flops + again > 0


def leaf(*shape):
    return torch.randn(*shape).double().requires_grad_()


@pytest.mark.parametrize("stride", [1, 2])
def test_partial_conv2d(stride):
    x, weight = leaf(2, 3, 5, 6), leaf(4, 3, 3, 3)
    mask = (torch.rand(2, 1, 5, 6) > 0.3).double()

    def plain():
        count = F.avg_pool2d(mask, 3, stride, 1, divisor_override=1)
        return F.conv2d(x * mask, weight, None, stride, 1) * torch.where(count > 0, 9 / count, 0.0)

    assert_same_work(lambda: partial_conv2d(x, mask, weight, None, stride, 1, backend="cpu")[0], plain, (x, weight))


def four_phases(low, weight):
    """A 3×3 convolution of the nearest-upsampled map as four 2×2 convolutions of the small map, on one common grid:
    taps that read the same small pixel are added up."""
    taps = {0: ((0,), (1, 2)), 1: ((0, 1), (2,))}
    (n, _, h, w), small = low.shape, F.pad(low, (1,) * 4)
    rows = []
    for y, x in itertools.product(taps, taps):
        summed = [[sum(weight[:, :, i, j] for i in ys for j in xs) for xs in taps[x]] for ys in taps[y]]
        kernel = torch.stack([torch.stack(row, -1) for row in summed], -2)
        rows.append(F.conv2d(small, kernel)[:, :, y : y + h, x : x + w])
    return torch.stack(rows).view(2, 2, n, -1, h, w).permute(2, 3, 4, 0, 5, 1).reshape(n, -1, 2 * h, 2 * w)


@pytest.mark.parametrize(("side", "has_phases"), [(4, True), (3, False)])
def test_partial_conv2d_upcat(side, has_phases):
    """In both of its forms, which the size of the small map chooses between."""
    low, skip, weight = leaf(2, 3, side, side), leaf(2, 2, 2 * side, 2 * side), leaf(4, 5, 3, 3)
    masks = [torch.ones(2, 1, t.shape[2], t.shape[3]) for t in (low, skip)]

    def plain():
        count = F.avg_pool2d(masks[1].double(), 3, 1, 1, divisor_override=1)
        if has_phases:
            raw = four_phases(low, weight[:, :3]) + F.conv2d(skip, weight[:, 3:], padding=1)
        else:
            raw = F.conv2d(torch.cat([F.interpolate(low, scale_factor=2), skip], 1), weight, padding=1)
        return raw * 9 / count

    def run():
        return partial_conv2d_upcat(low, masks[0], skip, masks[1], weight, backend="cpu")[0]

    assert_same_work(run, plain, (low, skip, weight))


def dense_attention(query, key, value, is_query, is_key, scale, radius):
    """One sample, (C, H, W): products of hole queries and background keys only; propagation by shifted slices."""
    (_, h, w), (q, k) = query.shape, (m.flatten() for m in (is_query, is_key))
    pairs = q[:, None] & k
    soft = torch.softmax(scale * query.flatten(1).mT[q] @ key.flatten(1)[:, k], -1)
    soft = torch.zeros(h * w, h * w, dtype=soft.dtype).masked_scatter(pairs, soft).view(h, w, h, w)
    padded = F.pad(soft, (radius,) * 8)
    steps = list(itertools.product(range(2 * radius + 1), repeat=2))
    summed = sum(padded[a : a + h, b : b + w, a : a + h, b : b + w] for a, b in steps).view(h * w, h * w)
    out = summed[q][:, k] @ value.flatten(1).mT[k]
    return torch.zeros(h * w, len(value), dtype=out.dtype).index_put((q,), out).mT.view_as(value)


@pytest.mark.parametrize("radius", [0, 1])
def test_shift_attention(radius):
    maps = leaf(2, 2, 3, 4), leaf(2, 2, 3, 4), leaf(2, 3, 3, 4)
    is_query, is_key = torch.rand(2, 1, 3, 4) > 0.5, torch.rand(2, 1, 3, 4) > 0.3

    def plain():
        samples = zip(*maps, is_query[:, 0], is_key[:, 0], strict=True)
        return torch.stack([dense_attention(*sample, 1.5, radius) for sample in samples])

    pairs = (is_query.flatten(1).sum(1) * is_key.flatten(1).sum(1)).sum().item()
    scores = 2 * pairs * maps[0].shape[1]
    assert_same_work(
        lambda: shift_attention(*maps, is_query, is_key, scale=1.5, radius=radius, backend="cpu"), plain, maps, scores
    )
