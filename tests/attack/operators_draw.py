"""Draws tensors: numbers of a given size, layouts in memory, and masks in every form that the operators take."""

import math

import numpy as np
import torch

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
MASK_DTYPES = (torch.bool, torch.uint8, *FLOATS)
BOOLS = 0.6  # share of bool masks whose bytes are 0 and 1
MOST = 4.0  # of a drawn number, in units of its scale
GARBAGE = (math.nan, math.inf, -math.inf, 1e4)  # what may lie under a mask


def chance(rng, share):
    return bool(rng.random() < share)


def choice(rng, options, shares=None):
    return options[int(rng.choice(len(options), p=shares))]


def between(rng, first, last):
    return int(rng.integers(first, last + 1))


def numbers(rng, shape, dtype, scale=1.0):
    """Normal numbers times `scale`, clipped at MOST of it."""
    drawn = rng.standard_normal(shape).clip(-MOST, MOST) * scale
    return torch.from_numpy(np.asarray(drawn)).to(dtype)


# ---- layouts --------------------


def _permuted(rng, x):
    order = rng.permutation(x.dim()).tolist()
    return x.permute(order).contiguous().permute(np.argsort(order).tolist())


def _sliced(rng, x):
    """A part of a larger tensor in random order, with a step; the rest is NaN, or random bytes."""
    steps = [choice(rng, (1, 1, 2, 3)) for _ in x.shape]
    before, after = rng.integers(0, 3, x.dim()).tolist(), rng.integers(0, 3, x.dim()).tolist()
    sizes = [b + size * step + a for b, size, step, a in zip(before, x.shape, steps, after, strict=True)]
    if x.dtype.is_floating_point:
        whole = torch.full(sizes, math.nan, dtype=x.dtype)
    else:
        whole = torch.from_numpy(rng.integers(0, 256, sizes, dtype=np.uint8)).view(x.dtype)
    part = _permuted(rng, whole)[
        tuple(slice(b, b + size * step, step) for b, size, step in zip(before, x.shape, steps, strict=True))
    ]
    _bytes_of(part).copy_(_bytes_of(x))
    return part


def _misaligned(rng, x):
    part = torch.zeros(x.numel() + 3, dtype=x.dtype)[3:].view(x.shape)
    _bytes_of(part).copy_(_bytes_of(x))
    return part


def _odd_strides(rng, x):
    """Strides that nothing is read with, those of dimensions of one element, are arbitrary."""
    strides = [choice(rng, (0, 1, 3, 1000)) if n == 1 else s for n, s in zip(x.shape, x.stride(), strict=True)]
    return x.as_strided(x.shape, strides)


def _expanded(rng, x):
    """Repeats one slice in some dimensions: this has other numbers."""
    for d in range(x.dim()):
        if chance(rng, 0.4) and x.shape[d]:
            x = x.narrow(d, 0, 1).expand([n if i == d else -1 for i, n in enumerate(x.shape)])
    return x


def _channels_last(rng, x):
    return x.to(memory_format=torch.channels_last) if x.dim() == 4 else x


LAYOUTS = (lambda rng, x: x, _channels_last, _permuted, _sliced, _misaligned, _odd_strides, _expanded)


def _bytes_of(x):
    """Bool is copied as bytes, so that they stay as they are."""
    return x.view(torch.uint8) if x.dtype == torch.bool else x


def laid_out(rng, x, channels_last=0.35, expand=True):
    """The tensor in a random layout. Only an expanded one has other numbers."""
    if x.dim() == 4 and chance(rng, channels_last):
        return _channels_last(rng, x)
    return choice(rng, LAYOUTS if expand else LAYOUTS[:-1])(rng, x)


# ---- masks --------------------


def planes(rng, n, c, h, w):
    """Truth (n, c, h, w): random, all, none, one pixel, blocks, one image unlike the others."""
    kind = choice(rng, ("random", "random", "all", "none", "one", "all but one", "blocks", "checkerboard"))
    shape = n, c, h, w
    if kind == "random":
        truth = rng.random(shape) < choice(rng, (0.05, 0.3, 0.7, 0.95))
    elif kind in ("all", "none"):
        truth = np.full(shape, kind == "all")
    elif kind == "checkerboard":
        truth = np.broadcast_to((np.add.outer(np.arange(h), np.arange(w)) % 2).astype(bool), shape).copy()
    else:
        truth = np.zeros(shape, dtype=bool)
        for plane in truth.reshape(-1, h, w):
            if kind == "blocks":
                for _ in range(between(rng, 1, 3)):
                    top, left = between(rng, 0, h), between(rng, 0, w)
                    plane[top : top + between(rng, 1, h + 1), left : left + between(rng, 1, w + 1)] = True
            elif plane.size:
                plane[between(rng, 0, h - 1), between(rng, 0, w - 1)] = True
        truth = ~truth if kind == "all but one" or (kind == "blocks" and chance(rng, 0.5)) else truth
    if n > 1 and chance(rng, 0.2):
        truth[between(rng, 0, n - 1)] = chance(rng, 0.5)
    return torch.from_numpy(truth)


def mask_of(rng, truth):
    """The truth as an argument of any dtype in any layout, and the truth of that argument."""
    dtype = choice(rng, MASK_DTYPES, (0.55, 0.15, 0.05, 0.15, 0.05, 0.05))
    if dtype == torch.bool and chance(rng, BOOLS):
        mask = truth.clone()
    elif dtype in (torch.bool, torch.uint8):  # any byte but 0 is True
        mask = torch.from_numpy(rng.integers(1, 256, truth.shape, dtype=np.uint8)).mul_(truth).view(dtype)
    else:
        values = torch.tensor([1.0, 1.0, 0.5, -1.0, 255.0, torch.finfo(dtype).tiny], dtype=torch.float64).to(dtype)
        mask = values[torch.from_numpy(rng.integers(0, len(values), truth.shape))] * truth
    mask = laid_out(rng, mask)
    # Read as bytes: torch itself may compare the bytes of a bool rather than their truth.
    return mask, _bytes_of(mask) != 0


def with_garbage(rng, x, known):
    """x with NaN, inf or large numbers where it is not known."""
    values = torch.tensor(GARBAGE, dtype=torch.float64).to(x.dtype)
    drawn = values[torch.from_numpy(rng.integers(0, len(values), tuple(x.shape)))]
    return torch.where(known, x, drawn)


# ---- scales --------------------


def scales(rng, dtype, terms):
    """Scales of input, weight and upstream gradient, such that no sum of `terms` products of two of them (which a ratio
    multiplies) leaves the dtype's range, and that no term is so small that it is rounded as a subnormal."""
    finfo = torch.finfo(dtype)
    least, most = finfo.tiny / finfo.eps * 4, finfo.max / MOST
    largest = between(rng, 0, 2) if chance(rng, 0.4) else None
    for _ in range(200 if chance(rng, 0.5) else 0):
        drawn = [float(2.0 ** rng.uniform(math.log2(least), math.log2(most / 2))) for _ in range(3)]
        if largest is not None:  # near the end of the range, the others where the products fit
            drawn[largest] = most * 0.7
        x, w, g = drawn
        products = (x * w, g * w, g * x, g)
        if all(least <= p <= finfo.max / (MOST**2 * terms) for p in products):
            return drawn
    return [1.0, 1.0, 1.0]
