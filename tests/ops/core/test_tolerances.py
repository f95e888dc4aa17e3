"""The criterion of the operator tests admits every correct order of a sum and catches planted faults."""

import pytest
import torch
import torch.nn.functional as F

from ..support import attention, masks
from ..support.compare import everything, of_absolute_values
from ..support.tolerances import assert_accurate

# ---- partial convolution -------------------------------------------------------------------------------------------

SHAPE, C_OUT, KERNEL = (2, 8, 9, 10), 5, 3
CONVOLUTION = ("output", "input", "weight", "bias")


def bf16(t):
    """Rounds to bfloat16 and back; the gradient passes."""
    return t + (t.detach().bfloat16().to(t.dtype) - t.detach())


def partial_convolution(mask, fault=None):
    """3×3, padding 1, in plain PyTorch; `fault` is planted at one place of it."""

    def run(x, weight, bias):
        valid = mask.roll(1, 3) if fault == "mask off by one pixel" else mask
        if fault == "weight in bfloat16":
            weight = bf16(weight)
        n, _, h, w = x.shape
        columns = F.unfold(torch.where(valid, x, 0.0), KERNEL, padding=1)
        if fault == "term missing":
            keep = torch.ones_like(columns)
            keep[1, columns[1, :, 34].abs().argmax(), 34] = 0
            columns = columns * keep
        window = F.unfold(mask.to(x.dtype), KERNEL, padding=1).sum(1)
        if fault == "ratio of a border pixel":
            window = window.clone()
            window[0, w - 1] += 3  # the three pixels right of the corner's window count as valid
        ratio = torch.where(window > 0, KERNEL**2 / window.clamp_min(1), 0.0)[:, None]
        product = weight.flatten(1) @ columns
        if fault == "pixel missing in the gradient of weight":
            skipped = torch.zeros(h * w, dtype=torch.bool)
            skipped[34] = True
            product = torch.where(skipped, weight.detach().flatten(1) @ columns, product)
        product = product * ratio
        shift = bias[:, None]
        if fault == "bias missing at a pixel":
            shift = shift * (torch.arange(h * w) != 34)
        return torch.where(window[:, None] > 0, product + shift, 0.0).reshape(n, -1, h, w)

    return run


#: fault -> which of the output and the gradients it spoils.
CONVOLUTION_FAULTS = {
    "term missing": ("output", "input", "weight"),
    "ratio of a border pixel": ("output", "input", "weight"),
    "weight in bfloat16": ("output", "input"),
    "mask off by one pixel": ("output", "input", "weight"),
    "bias missing at a pixel": ("output", "bias"),
    "pixel missing in the gradient of weight": ("weight",),
}
#: What is lost in the rounding of half types themselves.
TOO_SMALL_FOR_HALVES = ("weight in bfloat16",)


def convolution_results(dtype, fault=None, seed=0):
    """Names, and per name (ours, plain, exact, magnitude); ours has the fault."""
    torch.manual_seed(seed)
    mask = masks.random_plane(0.7, SHAPE[0], *SHAPE[2:])
    mask[0, 0, :2, -2:] = True  # the pixels of the border's fault
    leaves = torch.randn(SHAPE), torch.randn(C_OUT, SHAPE[1], KERNEL, KERNEL), torch.randn(C_OUT)
    leaves = [t.to(dtype) for t in leaves]
    upstream = torch.randn(SHAPE[0], C_OUT, *SHAPE[2:]).to(dtype)
    ours = everything(partial_convolution(mask, fault), upstream, *leaves)
    right = partial_convolution(mask)
    plain = everything(right, upstream, *leaves)
    exact = everything(right, upstream.double(), *(t.double() for t in leaves))
    return dict(
        zip(CONVOLUTION, zip(ours, plain, exact, of_absolute_values(right, upstream, leaves), strict=True), strict=True)
    )


def is_accepted(name, ours, plain, exact, magnitude, **options):
    try:
        assert_accurate(ours, plain, exact, magnitude, backward=name != "output", what=name, **options)
    except AssertionError:
        return False
    return True


DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_correct_partial_convolution_is_accepted(dtype):
    for seed in range(5):
        for name, values in convolution_results(dtype, seed=seed).items():
            assert is_accepted(name, *values), name


@pytest.mark.parametrize("across_pixels", [False, True])
@pytest.mark.parametrize(
    ("fault", "dtype"),
    [(f, d) for f in CONVOLUTION_FAULTS for d in DTYPES if d.itemsize > 2 or f not in TOO_SMALL_FOR_HALVES],
    ids=str,
)
def test_a_fault_in_a_partial_convolution_is_caught(fault, dtype, across_pixels):
    """In the output and in each gradient that it spoils, and nowhere else."""
    for name, values in convolution_results(dtype, fault).items():
        spoilt = name in CONVOLUTION_FAULTS[fault]
        assert is_accepted(name, *values, across_pixels=across_pixels) != spoilt, name


@pytest.mark.parametrize("across_pixels", [False, True])
@pytest.mark.parametrize("fault", CONVOLUTION_FAULTS)
def test_a_fault_is_caught_where_plain_pytorch_is_not_consulted(fault, across_pixels):
    """As in float64 comparisons: the second bound alone is sharp."""
    for name, (ours, _, exact, magnitude) in convolution_results(torch.float32, fault).items():
        spoilt = name in CONVOLUTION_FAULTS[fault]
        assert is_accepted(name, ours, None, exact, magnitude, across_pixels=across_pixels) != spoilt, name


@pytest.mark.parametrize("terms", [9, 72, 1152])
@pytest.mark.parametrize("block", [1, 16, None], ids=["one by one", "blocks of 16", "pairwise"])
def test_any_order_of_a_sum_is_accepted_and_a_term_less_is_not(terms, block):
    """Without plain PyTorch; term by term is the least accurate order that a kernel may take."""
    generator = torch.Generator().manual_seed(terms)
    products = torch.randn(200, terms, generator=generator) * torch.randn(200, terms, generator=generator)
    exact, magnitude = products.double().sum(1), products.double().abs().sum(1)

    def total(order):
        parts = products[:, order]
        if block is None:
            return parts.sum(1)
        parts = F.pad(parts, (0, -len(order) % block)).unflatten(1, (-1, block)).sum(2)
        result = torch.zeros(200)
        for part in parts.T:
            result = result + part
        return result

    for _ in range(3):
        order = torch.randperm(terms, generator=generator)
        assert is_accepted("output", total(order), None, exact, magnitude)
        assert not is_accepted("output", total(order[1:]), None, exact, magnitude)


# ---- attention -----------------------------------------------------------------------------------------------------

MAP, CHANNELS, RADIUS, SCALE = (6, 7), 8, 1, 1.0
ATTENTION = ("output", "query", "key", "value")


def attended(is_query, is_key, renormalize, fault=None):
    """shift_attention in plain PyTorch over all pairs of pixels; `fault` is planted at one place of it."""
    h, w = MAP

    def run(query, key, value):
        rows, columns = is_query.flatten(1)[:, :, None], is_key.flatten(1)[:, None, :]
        if fault == "key mask off by one pixel":
            columns = is_key.roll(1, 3).flatten(1)[:, None, :]
        if fault == "query mask off by one pixel":
            rows = is_query.roll(1, 3).flatten(1)[:, :, None]
        p, q = int(is_query[0].flatten().nonzero()[5]), int(is_key[0].flatten().nonzero()[4])
        n = is_query.shape[0]
        here = torch.zeros(n, h * w, h * w, dtype=torch.bool)
        here[0, p, q] = True
        scores = (SCALE * query.flatten(2).mT @ key.flatten(2)).masked_fill(~columns, -torch.inf)
        if fault == "key of one softmax dropped":
            scores = scores.masked_fill(here, -torch.inf)
        if fault == "row term of the gradient missing":
            s = (scores - scores.logsumexp(2, keepdim=True).detach()).exp()
        else:
            s = scores.softmax(2)
        s = s * rows
        shifted = attention.propagated(s, h, w, RADIUS)
        if fault == "term of the propagation missing":
            shifted = shifted - s * here
        if fault == "propagation without the border":
            inside = torch.zeros(h, w, dtype=torch.bool)
            inside[:, : w - 1] = True
            shifted = attention.propagated(s * inside.flatten()[:, None], h, w, RADIUS)
        weights = shifted * rows * columns
        if fault == "weights in bfloat16":
            weights = bf16(weights)
        if renormalize:
            weights = weights / weights.sum(2, keepdim=True).clamp_min(1e-30)
        return (weights @ value.flatten(2).mT).mT.reshape(value.shape)

    return run


ATTENTION_FAULTS = {
    "key of one softmax dropped": ATTENTION,
    "term of the propagation missing": ATTENTION,
    "propagation without the border": ATTENTION,
    "key mask off by one pixel": ATTENTION,
    "query mask off by one pixel": ATTENTION,
    "weights in bfloat16": ("output", "value"),
    "row term of the gradient missing": ("query", "key"),
}


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("fault", [None, *ATTENTION_FAULTS])
def test_a_fault_in_attention_is_caught(fault, dtype, renormalize):
    query, key = torch.randn(2, 2, CHANNELS, *MAP).to(dtype)
    value, upstream = torch.randn(2, 2, CHANNELS, *MAP).to(dtype)
    planes = torch.rand(2, 1, *MAP) > 0.4, torch.rand(2, 1, *MAP) > 0.3
    leaves, options = (query, key, value), dict(scale=SCALE, radius=RADIUS, renormalize=renormalize)
    ours = everything(attended(*planes, renormalize, fault), upstream, *leaves)
    plain = everything(attended(*planes, renormalize), upstream, *leaves)
    exact = everything(attended(*planes, renormalize), upstream.double(), *(t.double() for t in leaves))
    magnitudes = attention.magnitudes(*leaves, *planes, upstream, **options)
    for name, *values in zip(ATTENTION, ours, plain, exact, magnitudes, strict=True):
        spoilt = name in ATTENTION_FAULTS.get(fault, ())
        if renormalize and fault == "weights in bfloat16" and name in ("query", "key"):
            continue  # whose gradients then hold rounded weights as well
        assert is_accepted(name, *values) != spoilt, name
        assert is_accepted(name, values[0], None, *values[2:]) != spoilt, f"{name}, without plain PyTorch"
