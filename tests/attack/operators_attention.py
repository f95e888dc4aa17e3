"""Random calls of the attentions against all pairs of pixels in float64."""

import math

import torch

from msa_ops import HoleAttention, hole_attention, hole_attention_map, shift_attention
from tests.ops.support import attention

from . import operators_formula as formula
from .operators_check import compare, everything, unchanged
from .operators_draw import between, chance, choice, laid_out, mask_of, numbers, planes, with_garbage


def _size(rng):
    kind = choice(rng, ("tiny", "line", "middling", "large"), (0.6, 0.14, 0.25, 0.01))
    if kind == "tiny":
        return between(rng, 1, 6), between(rng, 1, 6)
    if kind == "line":
        line = 1, choice(rng, (1, 2, 31, 32, 33, 63, 64, 65, 129))
        return line if chance(rng, 0.5) else line[::-1]
    if kind == "middling":
        return between(rng, 5, 13), between(rng, 5, 13)
    return between(rng, 24, 33), between(rng, 24, 33)


def _radius(rng, h, w):
    return choice(rng, (0, 0, 1, 1, 1, 2, 3, max(h, w), 1000, 2**31 - 1)) if h * w < 200 else between(rng, 0, 2)


def _dtype(rng):
    return choice(rng, (torch.float64, torch.float32, torch.float16, torch.bfloat16), (0.3, 0.45, 0.125, 0.125))


def _backend(rng, dtype, pixels):
    if dtype in (torch.float32, torch.float16) and pixels < 30 and chance(rng, 0.01):
        return "triton"
    return choice(rng, ("auto", "cpu", "reference"), (0.3, 0.6, 0.1))


def _value_scales(rng, dtype, pairs):
    """Scales of values and upstream gradient whose products with one another fit the range of the sums."""
    finfo = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32)
    # Not beyond 2±¹²⁵, whose squares the bound of the rounding errors takes.
    most = min(125, math.log2(torch.finfo(dtype).max / (64 * pairs)))
    least = max(-125, math.log2(torch.finfo(dtype).tiny / torch.finfo(dtype).eps * 64))
    for _ in range(50 if least < most and chance(rng, 0.4) else 0):
        value, grad = (2.0 ** rng.uniform(least, most) for _ in range(2))
        if finfo.tiny / finfo.eps * 2**20 < value * grad < finfo.max / (2.0**16 * pairs):
            return value, grad
    return 1.0, 1.0


def _compare_all(names, ours, exact, plain, magnitudes, slack):
    for what, mine, right, other, size in zip(names, ours, exact, plain, magnitudes, strict=True):
        compare(mine, right, other, size, what=what, slack=slack)


def shift(rng):
    """Draws one call of shift_attention."""
    h, w = _size(rng)
    n, c, cv = choice(rng, (0, 1, 1, 2, 3)), choice(rng, (1, 2, 3, 5, 8, 16, 17)), choice(rng, (1, 2, 4, 7, 16))
    n = min(n, 1) if h * w > 200 else n
    dtype, radius, renormalize = _dtype(rng), _radius(rng, h, w), chance(rng, 0.4)
    pairs = h * w * min((2 * radius + 1) ** 2, h * w)
    masks = [mask_of(rng, planes(rng, n, 1, h, w)) if chance(rng, 0.9) else None for _ in range(2)]
    is_query, is_key = (torch.ones(n, 1, h, w, dtype=torch.bool) if m is None else m[1] for m in masks)
    value_scale, grad_scale = _value_scales(rng, dtype, pairs)
    size = choice(rng, (1.0, 1.0, 0.01, 5.0))
    scale = choice(rng, (1.0, 10.0, 0.0, -2.0, 0.1)) / (size**2 * math.sqrt(c))
    leaves, seen = [], []
    for known, shape, spread in ((is_query, c, size), (is_key, c, size), (is_key, cv, value_scale)):
        x = numbers(rng, (n, shape, h, w), dtype, spread)
        x = laid_out(rng, with_garbage(rng, x, known) if chance(rng, 0.5) else x, expand=False)
        leaves.append(x)
        seen.append(torch.where(known, x, 0).double())
    upstream = numbers(rng, (n, cv, h, w), dtype, grad_scale)
    hidden = with_garbage(rng, upstream, is_query) if chance(rng, 0.3) else upstream
    upstream, hidden = torch.where(is_query, upstream, 0), laid_out(rng, hidden, expand=False)
    options = dict(scale=scale, radius=radius, renormalize=renormalize)
    backend = _backend(rng, dtype, n * h * w)
    names = "query", "key", "value"
    wanted = [i for i in range(3) if chance(rng, 0.7)] if chance(rng, 0.8) else []

    def call(backend, *leaves):
        return shift_attention(*leaves, *(m and m[0] for m in masks), **options, backend=backend)

    untouched = unchanged(dict(zip(names, leaves, strict=True)))
    ours, _ = everything(lambda *leaves: call(backend, *leaves), hidden, leaves, wanted)
    untouched()

    def exact_of(*leaves):
        return formula.shift_attention(*leaves, is_query, is_key, **options)

    exact, _ = everything(exact_of, upstream.double(), seen, wanted)
    plain = [None] * len(ours)
    if dtype != torch.float64:
        plain = ours
        if backend != "reference":
            plain, _ = everything(lambda *leaves: call("reference", *leaves), upstream, leaves, wanted)
    magnitudes = [seen[2], *seen]
    if n:
        magnitudes = attention.magnitudes(*seen, is_query, is_key, upstream, **options)
    labels = ["output", *(f"gradient of {names[i]}" for i in wanted)]
    sizes = [magnitudes[0], *(magnitudes[1 + i] for i in wanted)]
    _compare_all(labels, ours, exact, plain, sizes, max(1.0, math.sqrt(h * w) / 8))
    return f"shift_attention, {backend}"


def _features(rng, large=True):
    """Features, mask, its truth, radius, and a backend."""
    h, w = _size(rng)
    n, c = choice(rng, (0, 1, 1, 2, 3)), choice(rng, (1, 2, 3, 5, 8, 16, 17))
    n = min(n, 1) if h * w > 200 else n
    dtype = _dtype(rng)
    mask, known = mask_of(rng, planes(rng, n, 1, h, w))
    # The norm of a pixel's channels is a sum of squares, in float32 also for the half types.
    most = {torch.float64: 1e120, torch.float32: 1e15, torch.float16: 1e2, torch.bfloat16: 1e15}[dtype]
    spread = choice(rng, (1.0, 1.0, 1.0, 1e-2, most)) if large else 1.0
    x = numbers(rng, (n, c, h, w), dtype, spread)
    if chance(rng, 0.1) and x.numel():
        x[..., between(rng, 0, w - 1)] = 0  # zero norm is legal
    return laid_out(rng, x, expand=chance(rng, 0.3)), mask, known, _radius(rng, h, w), _backend(rng, dtype, n * h * w)


def holes(rng):
    """Draws one call of hole_attention or HoleAttention."""
    variant = choice(rng, ("paper", "released"), (0.8, 0.2))
    x, mask, known, radius, backend = _features(rng, variant == "paper")
    if variant == "released":
        radius = min(radius, 2)
    options = dict(radius=radius, variant=variant)
    if variant == "paper":
        options |= dict(scale=choice(rng, (10.0, 1.0, 50.0, 0.0)), renormalize=chance(rng, 0.4))
    # The zero norms of zero features have no gradient, so these are rare.
    wanted = [0] if chance(rng, 0.8) and not (x == 0).all(1).any() else []
    upstream = laid_out(rng, numbers(rng, tuple(x.shape), x.dtype))
    is_module = chance(rng, 0.3)

    def call(backend, x):
        if is_module:
            return HoleAttention(**options, backend=backend)(x, mask)
        return hole_attention(x, mask, **options, backend=backend)

    untouched = unchanged({"features": x, "mask": mask.view(torch.uint8) if mask.dtype == torch.bool else mask})
    ours, _ = everything(lambda x: call(backend, x), upstream, [x], wanted)
    untouched()
    rest = {k: v for k, v in options.items() if k not in ("variant", "radius")}

    def exact_of(x):
        if variant == "released":
            return formula.released(x, known, radius)
        return formula.hole_attention(x, known, radius=radius, **rest)

    exact, _ = everything(exact_of, upstream.double(), [x.double()], wanted)
    if len(x) == 0:
        magnitudes = [x.double()] * 2
    elif variant == "released":
        # Queries and keys are sums themselves, so that a score may be wrong by them once more.
        queries, keys = formula.released_operands(x.double(), known, radius)
        everywhere = torch.ones_like(known)
        parts = attention.magnitudes(queries, keys, keys, ~known, everywhere, upstream.double() * ~known, 1.0)
        output, query, key, value = (2 * part for part in parts)
        box = (2 * radius + 1) ** 2
        norm = (torch.where(known, x, 0).double() + 1e-7).norm(dim=1, keepdim=True)
        spread = torch.nn.functional.avg_pool2d(query, 2 * radius + 1, 1, radius) * box if query.numel() else query
        gradient = spread + 3 * (key + value).sum(1, keepdim=True) / norm + upstream.double().abs()
        magnitudes = [output + x.double().abs(), gradient]
    else:
        magnitudes = attention.hole_magnitudes(x, known, upstream, radius=radius, **rest)
    plain = [None] * len(ours)
    if x.dtype != torch.float64:
        plain = ours
        if backend != "reference":
            plain, _ = everything(lambda x: call("reference", x), upstream, [x], wanted)
    labels = ["output", *("gradient of features" for _ in wanted)]
    # Twice, because the unit vectors, which the bound takes as given, are rounded too.
    slack = 2 * max(1.0, math.sqrt(known[0].numel() if len(known) else 1) / 8)
    _compare_all(labels, ours, exact, plain, magnitudes[: len(ours)], slack)
    return f"{'HoleAttention' if is_module else 'hole_attention'} {variant}, {backend}"


def hole_map(rng):
    """Draws one call of hole_attention_map: the pixel it points at has the largest weight, or one as large up to
    rounding."""
    x, mask, known, radius, backend = _features(rng)
    scale = choice(rng, (10.0, 1.0, 50.0))
    found = hole_attention_map(x, mask, scale=scale, radius=radius, backend=backend)
    n, h, w = x.shape[0], *x.shape[2:]
    assert (found.shape, found.dtype) == ((n, h, w), torch.int64), f"got {tuple(found.shape)}, {found.dtype}"
    wide = x.double()
    unit = wide / wide.norm(dim=1, keepdim=True).clamp_min(1e-6)
    weights = attention.shifted_weights(unit, unit, ~known, known, scale, radius)
    filled = (~known & known.flatten(1).any(1)[:, None, None, None])[:, 0]
    assert torch.equal(found >= 0, filled), "wanted -1 at background pixels and without background, and only there"
    assert bool((found < h * w).all()), "an index leaves the map"
    picked = weights.gather(2, found.flatten(1)[..., None].clamp_min(0))[..., 0]
    error = 1e-9 if x.dtype == torch.float64 else 2e-4
    best = weights.amax(2) if weights.numel() else picked
    wrong = filled.flatten(1) & (picked < best * (1 - error))
    assert not wrong.any(), f"{int(wrong.sum())} pixels do not point at the largest weight"
    return f"hole_attention_map, {backend}"
