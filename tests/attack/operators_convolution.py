"""Random calls of the partial convolution, its module and its decoder form against the sums in float64."""

import math

import torch
import torch.nn.functional as F

from msa_ops import PartialConv2d, partial_conv2d, partial_conv2d_upcat

from . import operators_formula as formula
from .operators_check import compare, everything, unchanged
from .operators_draw import between, chance, choice, laid_out, mask_of, numbers, planes, scales, with_garbage


def _backend(rng, triton_dtype):
    if triton_dtype and chance(rng, 0.006):
        return "triton"
    return choice(rng, ("auto", "cpu", "reference"), (0.3, 0.6, 0.1))


def _dtype(rng):
    return choice(rng, (torch.float64, torch.float32, torch.float16, torch.bfloat16), (0.3, 0.45, 0.125, 0.125))


def _check_masked(rng, call, leaves, names, exact_of, backend, sizes, *, upstream_of, across, dtype, mask_dtype):
    """Runs the call and compares output, mask' and a random subset of the gradients.

    Args:
        call: (backend, *leaves) -> output and mask'.
        exact_of: *leaves in float64 -> output, mask' and ratio.
        sizes: terms of the sums of the output and of each leaf's gradient.
        upstream_of: (shape, mask') -> the gradient of the output.
    """
    wanted = [i for i in range(len(leaves)) if chance(rng, 0.7)] if chance(rng, 0.8) else []
    # torch's own gradient fails for some layouts of a weight ("slow_conv2d: grad_weight must be contiguous").
    plain_leaves = [t.contiguous() for t in leaves]
    leaves = plain_leaves if backend == "reference" else leaves
    with torch.no_grad():
        shape = exact_of(*(t.double() for t in leaves))
    upstream = upstream_of(shape[0].shape, shape[1])
    untouched = unchanged(dict(zip(names, leaves, strict=True)))
    ours, (_, new_mask) = everything(lambda *leaves: call(backend, *leaves), upstream, leaves, wanted)
    untouched()
    valid = shape[1]
    upstream = torch.where(valid, upstream, 0)  # for the formulas, which would multiply what the mask hides by 0
    assert new_mask.dtype == mask_dtype, f"new_mask: wanted {mask_dtype}, got {new_mask.dtype}"
    assert torch.equal(new_mask.to(torch.float64), valid.double()), "new_mask is wrong"
    exact, _ = everything(exact_of, upstream.double(), [t.double() for t in leaves], wanted)
    finite = [torch.where(torch.isfinite(t), t, 0).double().abs() for t in leaves]
    magnitude, _ = everything(exact_of, upstream.double().abs(), finite, wanted)
    plain = [None] * len(ours)
    if backend != "reference" and dtype != torch.float64:
        plain, _ = everything(lambda *leaves: call("reference", *leaves), upstream, plain_leaves, wanted)
    elif dtype in (torch.float16, torch.bfloat16):
        plain = ours
    for i, (mine, right, other, size) in enumerate(zip(ours, exact, plain, magnitude, strict=True)):
        what = "output" if i == 0 else f"gradient of {names[wanted[i - 1]]}"
        terms = sizes[0 if i == 0 else 1 + wanted[i - 1]]
        compare(mine, right, other, size, what=what, across_pixels=across, slack=max(1.0, math.sqrt(terms) / 4))
    if chance(rng, 0.05):
        again, _ = everything(lambda *leaves: call(backend, *leaves), upstream, leaves, wanted)
        for one, two in zip(ours, again, strict=True):
            assert torch.equal(one.nan_to_num(7), two.nan_to_num(7)), "a second call gives other bits"


def _geometry(rng):
    """Returns (N, C, H, W), C_out, kernel, stride, padding, dilation, groups: tiny ones, and sizes at which each of the
    CPU's own convolutions takes over."""
    kind = choice(rng, ("tiny", "filter", "patches", "wide"), (0.62, 0.2, 0.13, 0.05))
    if kind == "tiny":
        groups = choice(rng, (1, 1, 1, 2, 3))
        c, c_out = groups * between(rng, 1, 4), groups * between(rng, 1, 3)
        axes = [[between(rng, 1, 4), between(rng, 1, 3), between(rng, 0, 3), between(rng, 1, 3)] for _ in range(2)]
        n, more = choice(rng, (0, 1, 1, 2, 3)), [between(rng, 0, 6) for _ in range(2)]
    elif kind == "filter":
        groups, n, c, c_out = 1, between(rng, 1, 2), between(rng, 15, 20), between(rng, 15, 20)
        k, s = choice(rng, ((3, 1), (3, 2), (5, 2)))
        axes = [[k, s, between(rng, 0, 4 if s == 2 else 2), 1] for _ in range(2)]
        more = [s * between(rng, 5, 17) + between(rng, 0, 1) for _ in range(2)]
    elif kind == "patches":
        groups, n, c, c_out = 1, between(rng, 1, 3), choice(rng, (15, 16, 17, 31, 32, 33)), between(rng, 16, 18)
        axes = [[between(rng, 1, 5), between(rng, 1, 3), between(rng, 0, 2), between(rng, 1, 2)] for _ in range(2)]
        more = [between(rng, 0, 9) for _ in range(2)]
    else:
        groups, n, c, c_out = 1, 1, between(rng, 1, 3), between(rng, 1, 4)
        axes = [[3, 1, 1, 1], [choice(rng, (1, 3, 7)), between(rng, 1, 2), 3, 1]]
        more = [between(rng, 0, 2), choice(rng, (63, 64, 65, 255, 256, 257))]
    kernel, stride, padding, dilation = (tuple(axis[i] for axis in axes) for i in range(4))
    size = [max(1, d * (k - 1) + 1 - 2 * p) + m for (k, _, p, d), m in zip(axes, more, strict=True)]
    return (n, c, *size), c_out, kernel, stride, padding, dilation, groups


def _leaf(rng, shape, dtype, scale, known=None, expand=True):
    """A leaf in a random layout, with garbage where it is not known."""
    x = laid_out(rng, numbers(rng, shape, dtype, scale), expand=expand)
    if known is not None and chance(rng, 0.4):
        strides = x.stride()
        x = with_garbage(rng, x, known)
        x = x if 0 in strides else torch.empty_strided(x.shape, strides, dtype=dtype).copy_(x)
    return x


def _padding_mode(rng, shape, padding):
    """One of Conv2d's that this map is large enough for."""
    can = ["zeros", "replicate"] if min(shape) else ["zeros"]
    can += ["reflect"] if all(p < size for p, size in zip(padding, shape[2:], strict=True)) and min(shape) else []
    can += ["circular"] if all(p <= size for p, size in zip(padding, shape[2:], strict=True)) and min(shape) else []
    return choice(rng, can) if chance(rng, 0.3) else "zeros"


def convolution(rng):
    """Draws one call of partial_conv2d or PartialConv2d."""
    shape, c_out, kernel, stride, padding, dilation, groups = _geometry(rng)
    n, c, h, w = shape
    dtype, is_module = _dtype(rng), chance(rng, 0.3)
    scale = choice(rng, ("window", "sum"))
    form = choice(rng, ("plane", "channels") if is_module else ("plane", "channels", "grouped"))
    if form == "grouped":
        counts = []
        while sum(counts) < c:
            counts.append(between(rng, 1, c - sum(counts)))
        parts = [(count, *mask_of(rng, planes(rng, n, 1, h, w))) for count in counts]
        mask, mask_dtype = [(count, argument) for count, argument, _ in parts], parts[0][1].dtype
        known = torch.cat([truth.expand(-1, count, -1, -1) for count, _, truth in parts], dim=1)
    else:
        images = 1 if is_module and n and chance(rng, 0.15) else n  # a module takes one mask for all images
        mask, known = mask_of(rng, planes(rng, images, c if form == "channels" else 1, h, w))
        known, mask_dtype = known.expand(n, -1, -1, -1), mask.dtype
    mode = _padding_mode(rng, shape, padding) if is_module else "zeros"
    if mode != "zeros":
        mask_dtype = dtype
    entries = known.shape[1] * kernel[0] * kernel[1] if scale == "window" else 1
    taps = c // groups * kernel[0] * kernel[1]
    pixels = max(1, n * h * w)
    x_scale, w_scale, g_scale = scales(rng, dtype, entries * max(taps * c_out, pixels) * (1 if mode == "zeros" else 16))
    is_masked = form != "channels" and not is_module and chance(rng, 0.1)
    if is_masked:
        x = laid_out(rng, torch.where(known, numbers(rng, shape, dtype, x_scale), 0), expand=False)
    else:
        x = _leaf(rng, shape, dtype, x_scale, known)
    weight = _leaf(rng, (c_out, c // groups, *kernel), dtype, w_scale, expand=chance(rng, 0.2))
    leaves, names = [x, weight], ["input", "weight"]
    if chance(rng, 0.6):
        leaves.append(_leaf(rng, (c_out,), dtype, min(x_scale * w_scale, 1e300)))
        names.append("bias")
    geometry = stride, padding, dilation, groups

    def call(backend, x, weight, bias=None):
        if is_module:
            options = dict(stride=stride, padding=padding, dilation=dilation, groups=groups, bias=bias is not None)
            layer = PartialConv2d(
                c,
                c_out,
                kernel,
                **options,
                padding_mode=mode,
                multi_channel=multi,
                return_mask=True,
                scale=scale,
                backend=backend,
            )
            parameters = {"weight": weight} | ({} if bias is None else {"bias": bias})
            output, new_mask = torch.func.functional_call(layer, parameters, (x, mask))
            return output, new_mask[:, :1]
        options = dict(scale=scale, input_is_masked=is_masked, backend=backend)
        return partial_conv2d(x, mask, weight, bias, *geometry, **options)

    multi = form == "channels" or chance(rng, 0.3)
    if multi and is_module:
        known = known.expand(-1, c, -1, -1)

    def exact_of(x, weight, bias=None):
        if mode != "zeros":  # pixels are copied with their validity
            margins = padding[1], padding[1], padding[0], padding[0]
            wide, around = F.pad(x, margins, mode=mode), F.pad(known.double(), margins, mode=mode) > 0
            return formula.partial_conv2d(wide, around, weight, bias, stride, (0, 0), dilation, groups, scale)
        return formula.partial_conv2d(x, known, weight, bias, *geometry, scale, is_masked)

    def upstream_of(shape, valid):
        return _leaf(rng, shape, dtype, g_scale, valid)

    small = x.numel() * c_out * math.prod(kernel) < 4000 and form == "plane"
    backend = _backend(rng, small and dtype in (torch.float32, torch.float16) and groups == 1 and n > 0)
    if backend == "triton":
        leaves[0] = x = leaves[0].to(memory_format=torch.channels_last)
        backend = "triton" if x.stride(1) == 1 and c > 1 else "cpu"
    sizes = [taps, taps * c_out // groups, pixels, pixels]
    _check_masked(
        rng, call, leaves, names, exact_of, backend, sizes,
        upstream_of=upstream_of, across=True, dtype=dtype, mask_dtype=mask_dtype,
    )  # fmt: skip
    return f"{'module' if is_module else 'partial_conv2d'}, {backend}"


def upcat(rng):
    """Draws one call of partial_conv2d_upcat."""
    kind = choice(rng, ("tiny", "filter", "image"), (0.6, 0.25, 0.15))
    if kind == "tiny":
        n, c1, c2, c_out = choice(rng, (0, 1, 1, 2)), between(rng, 1, 4), between(rng, 1, 4), between(rng, 1, 5)
        h, w = between(rng, 1, 7), between(rng, 1, 7)
    elif kind == "filter":
        n, c1, c2, c_out = between(rng, 1, 2), between(rng, 15, 18), between(rng, 15, 18), between(rng, 15, 18)
        h, w = between(rng, 3, 9), between(rng, 3, 9)
    else:
        n, c1, c2, c_out = between(rng, 1, 2), between(rng, 15, 18), between(rng, 1, 5), between(rng, 1, 5)
        h, w = between(rng, 1, 20), choice(rng, (1, 2, 7, 8, 9, 31, 32, 33))
    dtype, scale = _dtype(rng), choice(rng, ("window", "sum"))
    form = choice(rng, ("auto", "phases", "concatenation"))
    low_mask, low_known = mask_of(rng, planes(rng, n, 1, h, w))
    skip_mask, skip_known = mask_of(rng, planes(rng, n, 1, 2 * h, 2 * w))
    taps, pixels = 9 * (c1 + c2), max(1, 4 * n * h * w)
    # Twice: a phase's taps are sums of up to four.
    x_scale, w_scale, g_scale = scales(rng, dtype, 4 * 9 * (c1 + c2) * max(taps, 4 * 9 * c_out, pixels))
    flags = [chance(rng, 0.1), chance(rng, 0.1)]
    maps = []
    for shape, known, is_masked in (
        ((n, c1, h, w), low_known, flags[0]),
        ((n, c2, 2 * h, 2 * w), skip_known, flags[1]),
    ):
        if is_masked:
            maps.append(laid_out(rng, torch.where(known, numbers(rng, shape, dtype, x_scale), 0), expand=False))
        else:
            maps.append(_leaf(rng, shape, dtype, x_scale, known))
    weight = _leaf(rng, (c_out, c1 + c2, 3, 3), dtype, w_scale, expand=False)
    leaves, names = [*maps, weight], ["low", "skip", "weight"]
    if chance(rng, 0.6):
        leaves.append(_leaf(rng, (c_out,), dtype, min(x_scale * w_scale, 1e300)))
        names.append("bias")

    def call(backend, low, skip, weight, bias=None):
        options = dict(scale=scale, low_is_masked=flags[0], skip_is_masked=flags[1], form=form, backend=backend)
        return partial_conv2d_upcat(low, low_mask, skip, skip_mask, weight, bias, **options)

    def exact_of(low, skip, weight, bias=None):
        image, known = formula.concatenated(low, low_known, skip, skip_known, *flags)
        return formula.partial_conv2d(image, known, weight, bias, (1, 1), (1, 1), (1, 1), 1, scale, True)

    def upstream_of(shape, valid):
        return _leaf(rng, shape, dtype, g_scale, valid)

    small = n * h * w * (c1 + c2) * c_out < 300
    backend = _backend(rng, small and dtype in (torch.float32, torch.float16) and n > 0)
    if backend == "triton":
        leaves[:2] = [t.to(memory_format=torch.channels_last) for t in leaves[:2]]
        backend = "triton" if all(t.stride(1) == 1 and t.shape[1] > 1 for t in leaves[:2]) else "cpu"
    sizes = [taps, 4 * 9 * c_out, 9 * c_out, pixels, pixels]
    _check_masked(
        rng, call, leaves, names, exact_of, backend, sizes,
        upstream_of=upstream_of, across=True, dtype=dtype, mask_dtype=skip_mask.dtype,
    )  # fmt: skip
    return f"upcat, {backend}"
