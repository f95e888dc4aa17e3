"""FLOP formulas against computations written out as loops that count: a multiply-add is two. The loops' results are
the operators', so what they count is what the operators compute."""

import itertools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from msa_ops import partial_conv2d, partial_conv2d_upcat, partial_conv_upcat, shift_attention


class Counter:
    """Multiplies, and counts the multiply-adds."""

    def __init__(self):
        self.count = 0

    def __call__(self, a, b):
        self.count += 1
        return a * b


def counted(run):
    with FlopCounterMode(display=False) as counter:
        result = run()
    return result, counter.get_total_flops()


def padded(x, margin):
    return torch.nn.functional.pad(x, (margin,) * 4)


def naive_convolution(x, weight, stride, multiply):
    """Without padding, in plain loops."""
    (n, c, h, w), (c_out, _, kh, kw) = x.shape, weight.shape
    out = torch.zeros(n, c_out, (h - kh) // stride + 1, (w - kw) // stride + 1, dtype=x.dtype)
    x, weight, sums = x.tolist(), weight.tolist(), out.tolist()
    places = itertools.product(*map(range, out.shape), range(c), range(kh), range(kw))
    for i, o, y, z, channel, dy, dx in places:
        value = x[i][channel][y * stride + dy][z * stride + dx]
        sums[i][o][y][z] += multiply(value, weight[o][channel][dy][dx])
    return torch.tensor(sums, dtype=out.dtype)


def naive_gradients(grad, x, weight, stride, multiply):
    """Of the convolution above: its input's and its weight's."""
    gx, gw = torch.zeros_like(x).tolist(), torch.zeros_like(weight).tolist()
    g, xs, ws = grad.tolist(), x.tolist(), weight.tolist()
    places = itertools.product(*map(range, grad.shape), *map(range, weight.shape[1:]))
    for i, o, y, z, channel, dy, dx in places:
        row, column = y * stride + dy, z * stride + dx
        gx[i][channel][row][column] += multiply(g[i][o][y][z], ws[o][channel][dy][dx])
        gw[o][channel][dy][dx] += multiply(g[i][o][y][z], xs[i][channel][row][column])
    return torch.tensor(gx, dtype=x.dtype), torch.tensor(gw, dtype=x.dtype)


def ratios(mask, kernel, stride, padding):
    """E/s of a mask with one plane, 0 where s is."""
    count = torch.nn.functional.avg_pool2d(mask, kernel, stride, padding, divisor_override=1)
    return torch.where(count > 0, kernel**2 / count, 0.0)


@pytest.mark.parametrize("stride", [1, 2])
def test_partial_conv2d(stride):
    x, weight = torch.randn(2, 3, 5, 6).double().requires_grad_(), torch.randn(4, 3, 3, 3).double().requires_grad_()
    mask = (torch.rand(2, 1, 5, 6) > 0.3).double()
    result, flops = counted(lambda: partial_conv2d(x, mask, weight, None, stride, 1, backend="cpu")[0])
    multiply, ratio = Counter(), ratios(mask, 3, stride, 1)
    masked = padded((x * mask).detach(), 1)
    wanted = naive_convolution(masked, weight.detach(), stride, multiply) * ratio
    torch.testing.assert_close(result, wanted)
    assert flops == 2 * multiply.count > 0

    grad, multiply = torch.randn_like(result), Counter()
    gradients, flops = counted(lambda: torch.autograd.grad(result, (x, weight), grad))
    gx, gw = naive_gradients(grad * ratio, masked, weight.detach(), stride, multiply)
    torch.testing.assert_close(gradients, (gx[:, :, 1:-1, 1:-1] * mask, gw))
    assert flops == 2 * multiply.count


def phase_weights(weight):
    """The four 2×2 convolutions whose outputs, woven together, are a 3×3 convolution of a nearest-upsampled map: per
    phase, taps that read the same small pixel are added up. (row phase, column phase) -> (C_out, C, 2, 2)."""
    rows = {0: ((0,), (1, 2)), 1: ((0, 1), (2,))}
    return {
        (py, px): torch.stack(
            [torch.stack([weight[:, :, ys][:, :, :, xs].sum((2, 3)) for xs in rows[px]], -1) for ys in rows[py]], -2
        )
        for py, px in itertools.product(rows, rows)
    }


def test_partial_conv2d_upcat(monkeypatch):
    """The four phases are computed on one common grid with a row and a column more than the small map."""
    monkeypatch.setattr(partial_conv_upcat, "phases_win", lambda low, backend=None: True)
    low, skip = torch.randn(2, 3, 3, 2).double().requires_grad_(), torch.randn(2, 2, 6, 4).double().requires_grad_()
    weight = torch.randn(4, 5, 3, 3).double().requires_grad_()
    low_mask, skip_mask = torch.ones(2, 1, 3, 2), torch.ones(2, 1, 6, 4)
    result, flops = counted(lambda: partial_conv2d_upcat(low, low_mask, skip, skip_mask, weight, backend="cpu")[0])
    multiply, ratio = Counter(), ratios(torch.ones(2, 1, 6, 4).double(), 3, 1, 1)
    phases = phase_weights(weight.detach()[:, :3])
    small, large = padded(low.detach(), 1), padded(skip.detach(), 1)
    wanted = naive_convolution(large, weight.detach()[:, 3:], 1, multiply)
    for (py, px), taps in phases.items():
        grid = naive_convolution(small, taps, 1, multiply)
        assert grid.shape[2:] == (4, 3)
        wanted[:, :, py::2, px::2] += grid[:, :, py : py + 3, px : px + 2]
    torch.testing.assert_close(result, wanted * ratio)
    assert flops == 2 * multiply.count > 0

    grad, multiply = torch.randn_like(result), Counter()
    gradients, flops = counted(lambda: torch.autograd.grad(result, (low, skip, weight), grad))
    g_large, g_skip_weight = naive_gradients(grad * ratio, large, weight.detach()[:, 3:], 1, multiply)
    g_small = torch.zeros_like(small)
    for (py, px), taps in phases.items():
        grid = torch.zeros(2, 4, 4, 3).double()
        grid[:, :, py : py + 3, px : px + 2] = (grad * ratio)[:, :, py::2, px::2]
        g_small += naive_gradients(grid, small, taps, 1, multiply)[0]
    torch.testing.assert_close(gradients[0], g_small[:, :, 1:-1, 1:-1])
    torch.testing.assert_close(gradients[1], g_large[:, :, 1:-1, 1:-1])
    torch.testing.assert_close(gradients[2][:, 3:], g_skip_weight)
    assert flops == 2 * multiply.count


def naive_attention(query, key, value, is_query, is_key, scale, radius, multiply):
    """One sample, maps (C,H,W); Eqs. 6-8 pixel by pixel. Products of scores and of values are counted, the sums and
    the exponentials between them are not. Returns the output, s* and s'."""
    _, h, w = query.shape
    pixels = list(itertools.product(range(h), range(w)))
    scores = {
        (p, q): scale * sum(multiply(a, b) for a, b in zip(query[:, *p].tolist(), key[:, *q].tolist(), strict=True))
        for p in pixels
        for q in pixels
        if is_query[p] and is_key[q]
    }
    soft = {}
    for p in {p for p, _ in scores}:
        row = {q: score for (r, q), score in scores.items() if r == p}
        weights = torch.tensor(list(row.values()), dtype=torch.float64).softmax(0).tolist()
        soft |= {(p, q): weight for q, weight in zip(row, weights, strict=True)}
    summed = shift_sum(soft, radius)
    out = torch.zeros_like(value).tolist()
    for ((y, x), q), weight in summed.items():
        for channel, v in enumerate(value[:, *q].tolist()):
            out[channel][y][x] += multiply(weight, v)
    return torch.tensor(out, dtype=value.dtype), soft, summed


def shift_sum(table, radius):
    shifts = list(itertools.product(range(-radius, radius + 1), repeat=2))
    return {
        (p, q): sum(table.get(((p[0] + a, p[1] + b), (q[0] + a, q[1] + b)), 0.0) for a, b in shifts) for p, q in table
    }


def naive_attention_gradients(grad, query, key, value, soft, summed, scale, radius, multiply):
    """The scores are made again, then the gradients of value, s', query and key."""
    grads = [torch.zeros_like(t).tolist() for t in (query, key, value)]
    g_summed = {}
    for p, q in summed:
        _ = [multiply(a, b) for a, b in zip(query[:, *p].tolist(), key[:, *q].tolist(), strict=True)]
        go, v = grad[:, *p].tolist(), value[:, *q].tolist()
        g_summed[p, q] = sum(multiply(a, b) for a, b in zip(go, v, strict=True))
        for channel, g in enumerate(go):
            grads[2][channel][q[0]][q[1]] += multiply(summed[p, q], g)
    g_soft = shift_sum(g_summed, radius)
    rows = {p: sum(soft[r, q] * g_soft[r, q] for r, q in soft if r == p) for p, _ in soft}
    for p, q in soft:
        g_score = scale * soft[p, q] * (g_soft[p, q] - rows[p])
        for channel, (a, b) in enumerate(zip(query[:, *p].tolist(), key[:, *q].tolist(), strict=True)):
            grads[0][channel][p[0]][p[1]] += multiply(g_score, b)
            grads[1][channel][q[0]][q[1]] += multiply(g_score, a)
    return [torch.tensor(g, dtype=query.dtype) for g in grads]


@pytest.mark.parametrize("radius", [0, 1])
def test_shift_attention(radius):
    query, key = (torch.randn(2, 2, 3, 4).double().requires_grad_() for _ in range(2))
    value = torch.randn(2, 3, 3, 4).double().requires_grad_()
    is_query = torch.rand(2, 1, 3, 4) > 0.5
    is_key = torch.rand(2, 1, 3, 4) > 0.3
    maps = query, key, value
    result, flops = counted(lambda: shift_attention(*maps, is_query, is_key, scale=1.5, radius=radius, backend="cpu"))
    multiply = Counter()
    samples = list(zip(*(t.detach() for t in maps), is_query[:, 0], is_key[:, 0], strict=True))
    found = [naive_attention(*sample, 1.5, radius, multiply) for sample in samples]
    torch.testing.assert_close(result, torch.stack([out for out, _, _ in found]))
    assert flops == 2 * multiply.count > 0

    grad, multiply = torch.randn_like(result), Counter()
    gradients, flops = counted(lambda: torch.autograd.grad(result, maps, grad))
    wanted = [
        naive_attention_gradients(g, *sample[:3], soft, summed, 1.5, radius, multiply)
        for g, sample, (_, soft, summed) in zip(grad, samples, found, strict=True)
    ]
    torch.testing.assert_close(gradients, tuple(map(torch.stack, zip(*wanted, strict=True))))
    assert flops == 2 * multiply.count
