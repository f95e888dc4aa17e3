"""The graph that the convolution operators record: used twice, differentiated twice, an input changed in between."""

import pytest
import torch

from msa_ops import partial_conv2d

from ..partial_conv.calls import NAMES, make
from ..support.upcat import upcat


def call(operator, x, weight, bias):
    """Either operator on the same leaves: upcat takes the last two channels as low, the first, upsampled, as skip."""
    if operator == "partial_conv2d":
        return partial_conv2d(x, torch.ones_like(x[:, :1]), weight, bias, padding=1)[0]
    skip = x[:, :1].repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    low = x[:, 1:]
    planes = torch.ones_like(low[:, :1]), torch.ones_like(skip[:, :1])
    return upcat("phases", low, planes[0], skip, planes[1], weight, bias)[0]


OPERATORS = pytest.mark.parametrize("operator", ["partial_conv2d", "partial_conv2d_upcat"])


@OPERATORS
def test_a_retained_graph_gives_the_same_gradients_again(native, operator):
    leaves = [t.requires_grad_() for t in make(h=5, w=4, c_out=2, device=native)]
    output = call(operator, *leaves)
    upstream = torch.randn_like(output)
    first = torch.autograd.grad(output, leaves, upstream, retain_graph=True)
    second = torch.autograd.grad(output, leaves, upstream)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(output, leaves, upstream)


@OPERATORS
@pytest.mark.parametrize("leaf", range(3), ids=NAMES)
def test_second_order_is_refused(native, operator, leaf):
    leaves = [t.requires_grad_() for t in make(h=5, w=4, c_out=2, device=native)]
    gradient = torch.autograd.grad(call(operator, *leaves).square().sum(), leaves[leaf], create_graph=True)[0]
    with pytest.raises(RuntimeError, match=f"msa_ops::{operator}: second-order gradients are not supported"):
        gradient.sum().backward()


@OPERATORS
def test_changing_a_saved_input_in_place_is_noticed(native, operator):
    x, weight, bias = make(h=5, w=4, c_out=2, device=native)
    output = call(operator, x * 1, weight.requires_grad_(), bias)
    image = weight.detach()
    image.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()
