"""The Triton kernels of the partial convolution against the reference: interpreted without a GPU, on it where there is
one."""

import pytest
import torch

from msa_ops import not_supported_reasons, partial_conv2d

from ..support import masks
from ..support.compare import assert_call_accurate
from ..support.internals import MISSING
from ..support.raw import OPCHECK_STATIC, OPS
from ..support.tolerances import assert_accurate
from .calls import NAMES, runner

if MISSING["triton"] is not None:
    pytest.skip(f"no Triton: {MISSING['triton']}", allow_module_level=True)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
#: The interpreter cannot multiply bfloat16.
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if DEVICE == "cuda" else [])]
LAST = torch.channels_last


def make(n, c, h, w, c_out, kernel, dtype):
    """Input, NaN in its holes; mask; weight; bias."""
    mask = masks.random_plane(0.5, n, h, w)
    mask[0, :, : h // 2] = False
    x = torch.randn(n, c, h, w).masked_fill(~mask, torch.nan)
    weight, bias = torch.randn(c_out, c, *kernel), torch.randn(c_out)
    x, weight = (t.to(DEVICE, dtype, memory_format=LAST) for t in (x, weight))
    return x, mask.to(DEVICE), weight, bias.to(DEVICE, dtype)


def assert_like_the_reference(x, mask, weight, bias, *geometry, **options):
    def run(backend, dtype):
        return partial_conv2d(
            x.to(dtype), mask, weight.to(dtype), None if bias is None else bias.to(dtype), *geometry, backend=backend,
            **options,
        )  # fmt: skip

    ours, new_mask = run("triton", x.dtype)
    plain, exact = run("reference", x.dtype)[0], run("reference", torch.float64)
    sizes = [None if t is None else t.double().abs() for t in (x, weight, bias)]
    magnitude, _ = partial_conv2d(sizes[0], mask, *sizes[1:], *geometry, backend="reference", **options)
    assert_accurate(ours, plain, exact[0], magnitude)
    assert torch.equal(new_mask, exact[1])
    assert ours.is_contiguous(memory_format=LAST)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("shape", "kernel", "stride", "padding", "dilation"),
    [
        ((2, 3, 17, 13, 20), (7, 7), 2, 3, 1),  # few channels: rows of taps
        ((1, 2, 9, 8, 70), (3, 5), (1, 2), (1, 2), 1),
        ((1, 20, 9, 7, 5), (5, 5), 2, 2, 1),  # channels that fill no step
        ((2, 64, 16, 16, 33), (3, 3), 1, 1, 1),  # square tiles
        ((2, 64, 8, 24, 16), (3, 3), 1, 1, 1),  # 24 columns are no whole number of tiles
        ((1, 40, 6, 5, 130), (3, 3), 1, 2, 2),
        ((2, 130, 4, 4, 24), (3, 3), 2, 1, 1),  # a split sum
        ((2, 64, 2, 2, 40), (3, 3), 2, 1, 1),  # a single output pixel
        ((2, 16, 6, 6, 2), (1, 1), 1, 0, 1),
        ((1, 16, 5, 6, 7), (2, 4), (2, 1), (2, 3), 1),  # windows wholly in the padding
    ],
)
def test_every_geometry(shape, kernel, stride, padding, dilation, dtype):
    assert_like_the_reference(*make(*shape, kernel, dtype), stride, padding, dilation)


@pytest.mark.parametrize("name", masks.NAMES)
@pytest.mark.parametrize("channels", [3, 64])
def test_every_mask(name, channels):
    """With 64 channels taps that are empty for a tile are left out."""
    n = 3 if name == "mixed" else 1
    x, _, weight, bias = make(n, channels, 6, 5, 4, (3, 3), torch.float32)
    mask = masks.plane(name, n, 6, 5).to(DEVICE)
    x = torch.randn(x.shape, device=DEVICE).masked_fill(~mask, torch.inf).to(memory_format=LAST)
    assert_like_the_reference(x, mask, weight, bias, 1, 1)


@pytest.mark.parametrize("scale", ["window", "sum"])
@pytest.mark.parametrize("form", ["plane", "batch_expanded", "channels_expanded", "float"])
def test_every_form_of_a_plane(form, scale):
    x, mask, weight, _ = make(2, 16, 6, 5, 4, (3, 3), torch.float32)
    given = mask.float() if form == "float" else masks.in_form(form, mask, 16)[0]
    assert_like_the_reference(torch.randn_like(x), given, weight, None, 1, 1, scale=scale)


def test_views_of_channels_last_maps():
    """A crop, and a weight that is not channels_last."""
    x, mask, weight, bias = make(2, 20, 8, 9, 6, (3, 3), torch.float32)
    assert_like_the_reference(x[:, :16, 1:, 2:-1], mask[..., 1:, 2:-1], weight[:, :16].contiguous(), bias, 1, 1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients(dtype):
    x, mask, weight, bias = make(2, 16, 8, 8, 6, (3, 3), dtype)
    x, grad = torch.randn_like(x), torch.randn(2, 6, 4, 4, device=DEVICE)

    assert_call_accurate(runner(mask, 2, 1), grad, (x, weight, bias), NAMES, "triton")


def test_an_empty_batch():
    x, mask, weight, bias = make(2, 16, 8, 8, 6, (3, 3), torch.float32)
    output, new_mask = partial_conv2d(x[:0], mask[:0], weight, bias, backend="triton")
    assert output.shape == (0, 6, 6, 6)
    assert new_mask.shape == (0, 1, 6, 6)


def test_what_it_does_not_take_is_named():
    x, mask, weight, bias = make(2, 16, 9, 9, 4, (3, 3), torch.float32)
    wide = torch.ones(4, 16, 8, 8, device=DEVICE)

    def reasons(*arguments):
        return not_supported_reasons("partial_conv2d", "triton", *arguments)

    assert reasons(x, mask, weight, bias) == []
    assert reasons(x.contiguous(), mask, weight) == ["it reads and writes maps in channels_last only"]
    assert reasons(x, mask.repeat(1, 16, 1, 1), weight) == ["it takes masks of one plane"]
    assert reasons(x, [(16, mask)], weight) == ["it takes masks of one plane"]
    assert reasons(x, mask, wide) == ["it has no windows of more than 63 taps"]
    assert reasons(x, mask, weight[:, :8], None, 1, 0, 1, 2) == ["it has no groups"]
    with pytest.raises(
        RuntimeError, match=r"msa_ops::partial_conv2d: backend 'triton' cannot run: it reads and writes"
    ):
        partial_conv2d(x.contiguous(), mask, weight, backend="triton")


def test_opcheck():
    x, mask, weight, bias = make(1, 16, 4, 4, 3, (3, 3), torch.float32)
    x = torch.randn_like(x).requires_grad_()
    forward = x, mask, weight.requires_grad_(), bias, [16], [1, 1], [1, 1], [1, 1], 1, 9 * 16, False
    torch.library.opcheck(OPS.partial_conv2d_triton_forward, forward, rtol=1e-3, atol=1e-4, test_utils=OPCHECK_STATIC)
