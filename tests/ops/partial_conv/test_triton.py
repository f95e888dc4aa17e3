"""The Triton kernels of the partial convolution against the reference: interpreted without a GPU, on it where there is
one."""

import pytest
import torch

from msa_ops import native, not_supported_reasons, partial_conv2d, partial_conv2d_upcat, partial_conv_upcat

from . import masks
from .helpers import gradients
from .tolerances import assert_accurate

if native.MISSING["triton"] is not None:
    pytest.skip(f"no Triton: {native.MISSING['triton']}", allow_module_level=True)

from msa_ops.triton import image_layer

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
    assert_accurate(ours, plain, exact[0])
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
    x, _, weight, bias = make(3, channels, 6, 5, 4, (3, 3), torch.float32)
    mask = masks.plane(name, 3, 6, 5).to(DEVICE)
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

    def run(backend, dtype):
        leaves = (t.to(dtype) for t in (x, weight, bias))
        return gradients(lambda *t: partial_conv2d(t[0], mask, *t[1:], 2, 1, backend=backend)[0], grad, *leaves)[1]

    triples = zip(run("triton", dtype), run("reference", dtype), run("reference", torch.float64), strict=True)
    for ours, plain, exact in triples:
        assert_accurate(ours, plain, exact, backward=True)


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


def upcat_operands(n, c1, c2, h, w, c_out, dtype):
    low, low_mask, _, _ = make(n, c1, h, w, 1, (1, 1), dtype)
    skip, skip_mask, _, bias = make(n, c2, 2 * h, 2 * w, c_out, (1, 1), dtype)
    weight = torch.randn(c_out, c1 + c2, 3, 3).to(DEVICE, dtype, memory_format=LAST)
    return low, low_mask, skip, skip_mask, weight, bias


def assert_decoder_like_the_reference(*operands):
    def run(backend, dtype):
        converted = [t if t.dtype == torch.bool else t.to(dtype) for t in operands]
        return partial_conv2d_upcat(*converted, backend=backend)

    dtype = operands[0].dtype
    (ours, new_mask), (plain, _) = run("triton", dtype), run("reference", dtype)
    exact, exact_mask = run("reference", torch.float64)
    assert_accurate(ours, plain, exact)
    assert torch.equal(new_mask, exact_mask)
    assert ours.is_contiguous(memory_format=LAST)


UPCAT_SHAPES = [
    (2, 20, 3, 4, 8, 3),  # the image layer: few channels of the skip, and of the output
    (1, 64, 40, 5, 3, 70),
    (2, 16, 16, 8, 16, 20),  # square tiles
    (2, 130, 64, 2, 2, 24),  # a split sum
    (1, 64, 5, 1, 1, 4),
]


@pytest.fixture(params=["phases", "direct"])
def form(request, monkeypatch):
    monkeypatch.setitem(partial_conv_upcat.MIN_SMALL_PIXELS, "triton", 0 if request.param == "phases" else 2**62)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", UPCAT_SHAPES)
def test_the_decoder_form(shape, dtype):
    assert_decoder_like_the_reference(*upcat_operands(*shape, dtype))


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("name", masks.NAMES)
def test_every_mask_of_the_decoder_form(name):
    low, _, skip, _, weight, bias = upcat_operands(3, 16, 16, 3, 4, 5, torch.float32)
    low_mask, skip_mask = masks.plane(name, 3, 3, 4).to(DEVICE), masks.plane(name, 3, 6, 8).to(DEVICE)
    operands = torch.randn_like(low), low_mask, torch.randn_like(skip), skip_mask, weight, bias
    assert_decoder_like_the_reference(*operands)


@pytest.mark.parametrize("low_is_masked", [False, True])
@pytest.mark.parametrize("needs_low", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("shape", "is_own"),
    [
        ((2, 20, 3, 5, 7, 3), True),
        ((1, 64, 4, 12, 11, 1), True),
        ((3, 5, 2, 6, 2, 4), True),
        ((2, 16, 5, 4, 4, 3), False),
    ],
)
def test_gradients_of_the_image_layer(shape, is_own, dtype, needs_low, low_is_masked, monkeypatch):
    """The last has too many channels in its skip and goes through the compiled operator."""
    monkeypatch.setattr(image_layer, "PROGRAMS", 3)
    low, low_mask, skip, skip_mask, weight, bias = upcat_operands(*shape, dtype)
    low = low.nan_to_num() if low_is_masked else low
    n, _, _, h, w, c_out = shape
    grad = torch.randn(n, c_out, 2 * h, 2 * w).to(DEVICE, memory_format=LAST)
    assert image_layer.takes(low, skip, weight, [True, False, True, True]) == is_own

    def run(backend, dtype):
        def call(weight, bias, small=None):
            small = low.to(dtype) if small is None else small
            options = {"low_is_masked": low_is_masked, "backend": backend}
            return partial_conv2d_upcat(small, low_mask, skip.to(dtype), skip_mask, weight, bias, **options)[0]

        leaves = weight, bias, *([low] if needs_low else [])
        return gradients(call, grad, *(t.to(dtype) for t in leaves))[1]

    triples = zip(run("triton", dtype), run("reference", dtype), run("reference", torch.float64), strict=True)
    for ours, plain, exact in triples:
        assert_accurate(ours, plain, exact, backward=True)


def test_nothing_flows_from_where_no_entry_was_valid():
    """Not even NaN and inf, of the incoming gradient or under holes."""
    low, low_mask, skip, skip_mask, weight, bias = upcat_operands(2, 16, 3, 6, 6, 3, torch.float32)
    low_mask[1] = skip_mask[1] = False
    leaves = [t.requires_grad_() for t in (low, weight, bias)]
    output, new_mask = partial_conv2d_upcat(low, low_mask, skip, skip_mask, weight, bias, backend="triton")
    grad = torch.randn_like(output).masked_fill(~new_mask, torch.nan)
    for gradient in torch.autograd.grad(output, leaves, grad):
        assert torch.isfinite(gradient).all()


def test_an_empty_batch_in_the_decoder_form():
    low, low_mask, skip, skip_mask, weight, bias = upcat_operands(2, 16, 3, 4, 4, 3, torch.float32)
    weight.requires_grad_()
    output, _ = partial_conv2d_upcat(low[:0], low_mask[:0], skip[:0], skip_mask[:0], weight, bias, backend="triton")
    assert output.shape == (0, 3, 8, 8)
    assert not torch.autograd.grad(output.sum(), weight)[0].any()


def test_what_torch_asks_of_the_operators():
    """Schemas, fakes and autograd registrations."""
    x, mask, weight, bias = make(1, 16, 4, 4, 3, (3, 3), torch.float32)
    x = torch.randn_like(x).requires_grad_()
    geometry = [1, 1], [1, 1], [1, 1], 1
    ops = torch.ops.msa_ops
    forward = x, mask, weight.requires_grad_(), bias, [16], *geometry, 9 * 16, False
    torch.library.opcheck(ops.partial_conv2d_triton_forward, forward, rtol=1e-3, atol=1e-4)
    low, low_mask, skip, skip_mask, weight, _ = upcat_operands(1, 16, 3, 2, 2, 3, torch.float32)
    low, skip = (torch.randn_like(t) for t in (low, skip))
    forward = low.requires_grad_(), low_mask, skip, skip_mask, weight, None, 9 * 19, False, False, True
    torch.library.opcheck(ops.partial_conv2d_upcat_triton_forward, forward, rtol=1e-3, atol=1e-4)
    output, _, ratio = ops.partial_conv2d_upcat_triton_forward(*forward)
    grad = torch.randn_like(output)
    backward = grad, low.detach(), low_mask, skip, skip_mask, weight, ratio.detach(), False, False, True
    torch.library.opcheck(ops.partial_conv2d_upcat_triton_backward, (*backward, [True, False, True, True]))


def test_second_order_is_refused():
    low, low_mask, skip, skip_mask, weight, _ = upcat_operands(1, 16, 3, 2, 2, 3, torch.float32)
    weight.requires_grad_()
    output, _ = partial_conv2d_upcat(low, low_mask, skip, skip_mask, weight, backend="triton")
    (grad,) = torch.autograd.grad(output.sum(), weight, create_graph=True)
    with pytest.raises(RuntimeError, match="partial_conv2d_upcat: second-order gradients are not supported"):
        grad.sum().backward()
