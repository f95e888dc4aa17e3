"""The Triton kernels of the decoder form against the reference: interpreted without a GPU, on it where there is one."""

import pytest
import torch

from ..partial_conv.test_triton import DEVICE, DTYPES, LAST, make
from ..support import masks
from ..support.compare import assert_call_accurate, everything
from ..support.internals import triton
from ..support.raw import OPCHECK_STATIC, OPS
from ..support.tolerances import assert_accurate
from ..support.upcat import FORMS, upcat

image_layer = triton("image_layer")


def operands(n, c1, c2, h, w, c_out, dtype):
    low, low_mask, _, _ = make(n, c1, h, w, 1, (1, 1), dtype)
    skip, skip_mask, _, bias = make(n, c2, 2 * h, 2 * w, c_out, (1, 1), dtype)
    weight = torch.randn(c_out, c1 + c2, 3, 3).to(DEVICE, dtype, memory_format=LAST)
    return low, low_mask, skip, skip_mask, weight, bias


def assert_like_the_reference(form, *operands):
    def run(backend, dtype):
        converted = [t if t.dtype == torch.bool else t.to(dtype) for t in operands]
        return upcat(form, *converted, backend=backend)

    dtype = operands[0].dtype
    (ours, new_mask), (plain, _) = run("triton", dtype), run("reference", dtype)
    exact, exact_mask = run("reference", torch.float64)
    sizes = [t if t.dtype == torch.bool else t.double().abs() for t in operands]
    assert_accurate(ours, plain, exact, upcat(form, *sizes, backend="reference")[0])
    assert torch.equal(new_mask, exact_mask)
    assert ours.is_contiguous(memory_format=LAST)


UPCAT_SHAPES = [
    (2, 20, 3, 4, 8, 3),  # the image layer: few channels of the skip, and of the output
    (1, 64, 40, 5, 3, 70),
    (2, 16, 16, 8, 16, 20),  # square tiles
    (2, 130, 64, 2, 2, 24),  # a split sum
    (1, 64, 5, 1, 1, 4),
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [*((shape, torch.float32) for shape in UPCAT_SHAPES)]
    + [(UPCAT_SHAPES[i], dtype) for i in (0, 3) for dtype in DTYPES if dtype != torch.float32],
    ids=str,
)
def test_every_size(shape, dtype, form):
    assert_like_the_reference(form, *operands(*shape, dtype))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", masks.NAMES)
def test_every_mask(name, form):
    n = 3 if name == "mixed" else 1
    low, _, skip, _, weight, bias = operands(n, 16, 16, 3, 4, 5, torch.float32)
    low_mask, skip_mask = masks.plane(name, n, 3, 4).to(DEVICE), masks.plane(name, n, 6, 8).to(DEVICE)
    given = torch.randn_like(low), low_mask, torch.randn_like(skip), skip_mask, weight, bias
    assert_like_the_reference(form, *given)


@pytest.mark.parametrize(("needs_low", "low_is_masked"), [(True, False), (False, False), (True, True)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("shape", "is_own"),
    [
        ((2, 20, 3, 3, 5, 3), True),
        ((1, 64, 4, 6, 5, 1), True),
        ((3, 5, 2, 3, 2, 4), True),
        ((2, 16, 5, 4, 4, 3), False),
    ],
)
def test_gradients_of_the_image_layer(shape, is_own, dtype, needs_low, low_is_masked, monkeypatch):
    """The last has too many channels in its skip and goes through the compiled operator."""
    monkeypatch.setattr(image_layer, "PROGRAMS", 3)
    low, low_mask, skip, skip_mask, weight, bias = operands(*shape, dtype)
    low = low.nan_to_num() if low_is_masked else low
    n, _, _, h, w, c_out = shape
    grad = torch.randn(n, c_out, 2 * h, 2 * w).to(DEVICE, memory_format=LAST)
    assert image_layer.takes(low, skip, weight, [True, False, True, True]) == is_own

    def run(backend):
        def call(weight, bias, small=None):
            small = low.to(weight.dtype) if small is None else small
            options = {"low_is_masked": low_is_masked, "backend": backend}
            return upcat("auto", small, low_mask, skip.to(weight.dtype), skip_mask, weight, bias, **options)[0]

        return call

    leaves, names = (weight, bias, low) if needs_low else (weight, bias), ("weight", "bias", "low")
    sizes = [t.double().abs() for t in leaves]

    def absolute(weight, bias, small=None):
        maps = (low.double().abs() if small is None else small), skip.double().abs()
        options = {"low_is_masked": low_is_masked, "backend": "reference"}
        return upcat("auto", maps[0], low_mask, maps[1], skip_mask, weight, bias, **options)[0]

    magnitudes = everything(absolute, grad.double().abs(), *sizes)
    assert_call_accurate(run, grad, leaves, names[: len(leaves)], "triton", magnitudes=magnitudes)


def test_nothing_flows_from_where_no_entry_was_valid():
    """Not even NaN and inf, of the incoming gradient or under holes."""
    low, low_mask, skip, skip_mask, weight, bias = operands(2, 16, 3, 6, 6, 3, torch.float32)
    low_mask[1] = skip_mask[1] = False
    leaves = [t.requires_grad_() for t in (low, weight, bias)]
    output, new_mask = upcat("auto", low, low_mask, skip, skip_mask, weight, bias, backend="triton")
    grad = torch.randn_like(output).masked_fill(~new_mask, torch.nan)
    for gradient in torch.autograd.grad(output, leaves, grad):
        assert torch.isfinite(gradient).all()


def test_an_empty_batch():
    low, low_mask, skip, skip_mask, weight, bias = operands(2, 16, 3, 4, 4, 3, torch.float32)
    weight.requires_grad_()
    output, _ = upcat("phases", low[:0], low_mask[:0], skip[:0], skip_mask[:0], weight, bias, backend="triton")
    assert output.shape == (0, 3, 8, 8)
    assert not torch.autograd.grad(output.sum(), weight)[0].any()


def test_opcheck():
    low, low_mask, skip, skip_mask, weight, _ = operands(1, 16, 3, 2, 2, 3, torch.float32)
    low, skip = (torch.randn_like(t) for t in (low, skip))
    forward = low.requires_grad_(), low_mask, skip, skip_mask, weight.requires_grad_(), None, 9 * 19, False, False, True
    options = dict(rtol=1e-3, atol=1e-4, test_utils=OPCHECK_STATIC)
    torch.library.opcheck(OPS.partial_conv2d_upcat_triton_forward, forward, **options)
    output, _, ratio = OPS.partial_conv2d_upcat_triton_forward(*forward)
    grad = torch.randn_like(output)
    backward = grad, low.detach(), low_mask, skip, skip_mask, weight, ratio.detach(), False, False, True
    torch.library.opcheck(OPS.partial_conv2d_upcat_triton_backward, (*backward, [True, False, True, True]), **options)


def test_second_order_is_refused():
    low, low_mask, skip, skip_mask, weight, _ = operands(1, 16, 3, 2, 2, 3, torch.float32)
    weight.requires_grad_()
    output, _ = upcat("auto", low, low_mask, skip, skip_mask, weight, backend="triton")
    (grad,) = torch.autograd.grad(output.sum(), weight, create_graph=True)
    with pytest.raises(RuntimeError, match="partial_conv2d_upcat: second-order gradients are not supported"):
        grad.sum().backward()
