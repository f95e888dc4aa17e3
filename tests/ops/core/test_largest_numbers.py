"""Numbers near the largest float, and inf and NaN at valid pixels: sums that only a faster algorithm forms must not
overflow into the result, nor may a window see what lies outside it."""

import pytest
import torch

from msa_ops import partial_conv2d, shift_attention

from ..support import definition
from ..support.compare import everything, of_absolute_values
from ..support.upcat import FORMS, upcat

LAST = torch.channels_last
#: name -> (N, C, H, W), C_out, kernel, stride: sizes that the CPU's minimal filtering takes, and its patches.
CONVOLUTIONS = {
    "3×3": ((1, 16, 16, 14), 16, 3, 1),
    "3×3/2": ((4, 16, 31, 29), 16, 3, 2),
    "5×5/2": ((2, 16, 27, 26), 16, 5, 2),
    "patches": ((1, 16, 6, 6), 16, 3, 1),
    "the library's": ((1, 5, 12, 12), 4, 3, 1),
}
#: low channels, skip channels, C_out: minimal filtering, the image layer, the library's convolution.
DECODERS = {"tiles": (16, 16, 16), "image": (16, 3, 3), "library": (5, 4, 6)}
each_decoder = pytest.mark.parametrize(("name", "form"), [(name, form) for name in DECODERS for form in FORMS])


def runner(stride=1, kernel=3):
    def run(mask):
        return lambda *leaves: partial_conv2d(
            leaves[0], mask, *leaves[1:], stride=stride, padding=kernel // 2, backend="cpu"
        )[0]

    return run


def make(name):
    (n, c, h, w), c_out, kernel, stride = CONVOLUTIONS[name]
    x, weight = torch.randn(n, c, h, w).contiguous(memory_format=LAST), torch.randn(c_out, c, kernel, kernel)
    return x, weight, torch.rand(n, 1, h, w) < 0.9, runner(stride, kernel)


def near_one(*shape):
    """Numbers of both signs in [0.5, 1), so that 2^127 times them is close to the largest float32."""
    return (torch.rand(shape) / 2 + 0.5) * (torch.randint(0, 2, shape) * 2 - 1)


def inner(grad):
    """The gradient away from the border, where the ratio of an all-valid mask is 1: a larger one would take the product
    of the two, which the definition has, out of range."""
    inside = torch.zeros_like(grad)
    inside[:, :, 2:-2, 2:-2] = 1
    return grad * inside


def assert_scales(run, upstream, leaves, large, small):
    """The results for leaves[large] · 2^127 and leaves[small] · 2^-100 are multiples of those for the leaves, wherever
    the sum of the absolute values of the definition's terms is within the range of float32. The index -1 is the
    gradient of the output."""
    exponents = [127 if i == large else -100 if i == small else 0 for i in [*range(len(leaves)), -1]]
    factors = [2.0**exponent for exponent in exponents]
    *scaled, scaled_upstream = (t * f for t, f in zip([*leaves, upstream], factors, strict=True))
    ours = everything(run, scaled_upstream, *scaled)
    plain = everything(run, upstream, *leaves)
    magnitudes = of_absolute_values(run, upstream, leaves)
    for i, what in enumerate(("output", *(f"gradient {i}" for i in range(len(leaves))))):
        own = len(leaves) if i == 0 else i - 1  # what this result does not depend on
        factor = 2.0 ** sum(exponent for j, exponent in enumerate(exponents) if j != own)
        in_range = magnitudes[i] * factor < torch.finfo(torch.float32).max
        error = (ours[i].double() / factor - plain[i]).abs()
        allowed = 1e-5 * magnitudes[i].amax()
        assert (error <= allowed)[in_range].all(), f"{what}: {error[in_range].max()}"
        assert in_range.any() or factor > 1


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize(("large", "small"), [(0, 1), (1, 0), (-1, 1), (-1, 0)], ids=str)
def test_partial_convolution_near_the_largest_float(name, large, small):
    x, weight, mask, run = make(name)
    leaves = near_one(*x.shape).contiguous(memory_format=LAST), near_one(*weight.shape)
    upstream = near_one(*run(mask)(*leaves).shape)
    if large == -1:
        mask, upstream = torch.ones_like(mask), inner(upstream)
    assert_scales(run(mask), upstream, leaves, large, small)


@each_decoder
@pytest.mark.parametrize(("large", "small"), [(0, 1), (1, 0), (-1, 1), (-1, 0)], ids=str)
def test_decoder_near_the_largest_float(name, form, large, small):
    """The two maps are one leaf here, since the output is linear in both together."""
    low_channels, skip_channels, c_out = DECODERS[name]
    low_mask, skip_mask = torch.rand(1, 1, 6, 7) < 0.9, torch.rand(1, 1, 12, 14) < 0.9
    upstream = near_one(1, c_out, 12, 14)
    if large == -1:
        low_mask, skip_mask, upstream = torch.ones_like(low_mask), torch.ones_like(skip_mask), inner(upstream)
    sizes = 6 * 7 * low_channels, 12 * 14 * skip_channels
    weight = near_one(c_out, low_channels + skip_channels, 3, 3)

    def run(pixels, weight):
        low, skip = pixels.split(sizes)
        low, skip = low.view(1, 6, 7, -1).permute(0, 3, 1, 2), skip.view(1, 12, 14, -1).permute(0, 3, 1, 2)
        return upcat(form, low, low_mask, skip, skip_mask, weight, backend="cpu")[0]

    assert_scales(run, upstream, [near_one(sum(sizes)), weight], large, small)


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_an_inf_or_nan_stays_in_the_windows_that_hold_it(name, value):
    x, weight, mask, run = make(name)
    x[0, 3, 5, 4], mask[0, 0, 5, 4] = value, True
    output = run(mask)(x, weight)
    (kernel, stride) = CONVOLUTIONS[name][2:]
    with torch.no_grad():
        exact = definition.partial_conv2d(
            x, mask, weight, stride=(stride, stride), padding=(kernel // 2, kernel // 2)
        ).output
    assert torch.equal(output.isfinite(), exact.isfinite())
    assert not output.isfinite().all()


@each_decoder
@pytest.mark.parametrize("part", ["low", "skip"])
def test_an_inf_stays_in_the_decoders_windows_that_hold_it(name, form, part):
    low_channels, skip_channels, c_out = DECODERS[name]
    maps = {"low": torch.randn(1, low_channels, 6, 7), "skip": torch.randn(1, skip_channels, 12, 14)}
    maps[part][0, 1, 3, 2] = torch.inf
    low, skip = (t.contiguous(memory_format=LAST) for t in maps.values())
    planes = torch.ones(1, 1, 6, 7, dtype=torch.bool), torch.ones(1, 1, 12, 14, dtype=torch.bool)
    weight = torch.randn(c_out, low_channels + skip_channels, 3, 3)
    output = upcat(form, low, planes[0], skip, planes[1], weight, backend="cpu")[0]
    exact = definition.partial_conv2d_upcat(low, planes[0], skip, planes[1], weight).output
    assert torch.equal(output.isfinite(), exact.isfinite())


@pytest.mark.parametrize("missing", ["queries", "keys", "both", "batch"])
def test_attention_without_queries_or_keys_is_zero_and_has_gradients_of_zero(missing, backend, device):
    n = 0 if missing == "batch" else 2
    query, key, value = (torch.randn(n, 3, 4, 5, device=device) for _ in range(3))
    value.fill_(torch.inf)
    is_query, is_key = (torch.ones(n, 1, 4, 5, dtype=torch.bool, device=device) for _ in range(2))
    if missing in ("queries", "both"):
        is_query.fill_(False)
    if missing in ("keys", "both"):
        is_key.fill_(False)
    output, *gradients = everything(
        lambda *maps: shift_attention(*maps, is_query, is_key, radius=1, backend=backend),
        torch.ones_like(value), query, key, value,
    )  # fmt: skip
    for result in (output, *gradients):
        assert torch.equal(result, torch.zeros_like(value))
