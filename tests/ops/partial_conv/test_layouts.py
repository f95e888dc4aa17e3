"""partial_conv2d reads maps and masks of any strides, and its results keep the memory format of the input."""

import itertools

import pytest
import torch

from msa_ops import partial_conv2d

from ..support import masks
from ..support.compare import assert_call_accurate, everything
from ..support.layouts import LAYOUTS, VIEWS
from .calls import NAMES, make, runner

FORMATS = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)


@pytest.mark.parametrize("layout", VIEWS)
def test_every_layout_of_the_input(native, layout):
    x, weight, bias = make(3, device=native)
    x = VIEWS[layout](x)
    upstream = LAYOUTS.get(layout, torch.Tensor.contiguous)(torch.randn(3, 4, 7, 6, dtype=x.dtype, device=native))
    for name, form in itertools.product(("mixed", "all_valid"), ("plane", "channels", "channels_expanded", "grouped")):
        mask = masks.in_form(form, masks.plane(name, 3, 7, 6).to(native), 3)[0]
        assert_call_accurate(runner(mask, 1, 1), upstream, (x, weight, bias), NAMES, native)


BIASES = {
    "with gaps": lambda bias: torch.stack([bias, bias + 1], dim=1)[:, 0],
    "expanded": lambda bias: bias[:1].expand_as(bias),
    "of one element with a gap": lambda bias: bias[:1].as_strided((1,), (2,)),
}


@pytest.mark.parametrize("name", BIASES)
def test_every_layout_of_the_bias(backend, device, name):
    c_out = 1 if "one" in name else 4
    x, weight, bias = make(c_out=c_out, device=device)
    mask, upstream = masks.plane("mixed", 2, 7, 6).to(device), torch.randn(2, c_out, 7, 6, dtype=x.dtype, device=device)
    bias = BIASES[name](bias)
    run = runner(mask, 1, 1)(backend)
    for ours, dense in zip(
        everything(run, upstream, x, weight, bias), everything(run, upstream, x, weight, bias.clone()), strict=True
    ):
        assert torch.equal(ours, dense)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_the_mask(native, layout):
    leaves = make(3, device=native)
    for form in ("plane", "channels"):
        plane = masks.in_form(form, masks.plane("mixed", 3, 7, 6).to(native), 3)[1]
        mask = LAYOUTS[layout](plane)
        assert torch.equal(mask, plane)
        assert torch.equal(runner(mask, 1, 1)(native)(*leaves), runner(plane, 1, 1)(native)(*leaves))


@FORMATS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_output_and_gradient_keep_the_memory_format(native, dtype, layout):
    leaves = [t.to(memory_format=layout) if t.dim() == 4 else t for t in make(dtype=dtype, device=native)]
    for name in ("mixed", "all_valid", "all_hole"):
        run = runner(masks.plane(name, 2, 7, 6).to(native), 1, 1)(native)
        output, grad, *_ = everything(run, torch.randn(2, 4, 7, 6, device=native), *leaves)
        assert output.is_contiguous(memory_format=layout)
        assert grad.is_contiguous(memory_format=layout)


def test_arguments_are_not_written_to(native):
    arguments = *make(device=native), masks.plane("mixed", 2, 7, 6).to(native)
    before = [t.clone() for t in arguments]
    x, weight, bias, mask = arguments
    for flag in (False, True):
        run = runner(mask, 1, 1, input_is_masked=flag)(native)
        everything(run, torch.randn(2, 4, 7, 6, device=native), x, weight, bias)
    for old, new in zip(before, arguments, strict=True):
        assert torch.equal(old, new)


@pytest.mark.parametrize(("shape", "strides"), [((1, 2, 3, 3), (2, 1, 6, 2)), ((3, 3, 4, 1), (12, 1, 3, 1))], ids=str)
def test_a_weight_with_odd_strides_along_sizes_of_one(shape, strides):
    """The library's own gradient refuses some of these."""
    odd = torch.randn(64, dtype=torch.float64).as_strided(shape, strides)
    x = torch.randn(1, shape[1], 5, 4, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    mask = torch.rand(1, 1, 5, 4) < 0.8

    def gradient(weight):
        weight = weight.detach().requires_grad_()
        output, _ = partial_conv2d(x, mask, weight, padding=2, backend="cpu")
        return torch.autograd.grad(output.square().sum(), weight)[0]

    ours, wanted = gradient(odd), gradient(odd.clone(memory_format=torch.contiguous_format))
    torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-11)
