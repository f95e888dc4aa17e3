"""partial_conv2d: gradients of every differentiable argument, only the wanted ones, and the refusal of second order."""

import pytest
import torch

from msa_ops import partial_conv2d, partial_conv2d_upcat

from . import masks
from .helpers import convolutions, force_form, gradients, profiled
from .tolerances import assert_exact

WHAT = ("input", "weight", "bias")
COMBINATIONS = [(i, w, b) for i in (False, True) for w in (False, True) for b in (False, True) if i or w or b]


def names(wanted):
    return "+".join(name for name, flag in zip(WHAT, wanted, strict=True) if flag)


def make(n=2, c=3, h=5, w=4, c_out=2, kernel=3, groups=1, device="cpu"):
    options = {"dtype": torch.float64, "device": device}
    x, weight = torch.randn(n, c, h, w, **options), torch.randn(c_out, c // groups, kernel, kernel, **options)
    return x, weight, torch.randn(c_out, **options)


# ---- against finite differences ------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", masks.FORMS)
@pytest.mark.parametrize("name", ["mixed", "one_valid_row"])
def test_gradcheck_of_every_mask_form(backend, device, form, name):
    leaves = [t.requires_grad_() for t in make(device=device)]
    mask, _ = masks.in_form(form, masks.plane(name, 2, 5, 4).to(device), 3)

    def run(x, weight, bias):
        return partial_conv2d(x, mask, weight, bias, padding=1, backend=backend)[0]

    assert torch.autograd.gradcheck(run, leaves)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation", "groups"),
    [
        (1, 1, 0, 1, 1),
        (3, 2, 1, 1, 2),
        (3, 1, 2, 2, 4),
        (2, (2, 1), (0, 1), 1, 1),
        (2, 1, "same", 1, 1),
        (4, 3, 2, 1, 2),
    ],
)
@pytest.mark.parametrize("scale", ["window", "sum"])
def test_gradcheck_of_geometries(backend, device, kernel, stride, padding, dilation, groups, scale):
    leaves = [t.requires_grad_() for t in make(1, 4, 5, 4, 4, kernel, groups, device)]
    mask = masks.plane("checkerboard", 1, 5, 4).to(device)

    def run(x, weight, bias):
        arguments = stride, padding, dilation, groups
        return partial_conv2d(x, mask, weight, bias, *arguments, scale=scale, backend=backend)[0]

    assert torch.autograd.gradcheck(run, leaves)


def test_gradcheck_without_bias_and_with_channels_last(backend, device):
    x, weight, _ = make(device=device)
    leaves = [t.to(memory_format=torch.channels_last).requires_grad_() for t in (x, weight)]
    mask = masks.plane("mixed", 2, 5, 4).to(device)
    assert torch.autograd.gradcheck(lambda x, w: partial_conv2d(x, mask, w, padding=1, backend=backend)[0], leaves)


def test_gradcheck_of_a_masked_input_is_that_of_the_bare_convolution(backend, device):
    """With input_is_masked the function is conv(input) · E/s, so its gradient passes holes as well."""
    leaves = [t.requires_grad_() for t in make(device=device)]
    mask = masks.plane("mixed", 2, 5, 4).to(device)

    def run(x, weight, bias):
        return partial_conv2d(x, mask, weight, bias, padding=1, input_is_masked=True, backend=backend)[0]

    assert torch.autograd.gradcheck(run, leaves)


# ---- what is asked for, and nothing else ---------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", COMBINATIONS, ids=names)
def test_any_choice_of_wanted_gradients(backend, device, wanted):
    leaves = make(device=device)
    mask = masks.plane("mixed", 2, 5, 4).to(device)

    def run(x, weight, bias):
        return partial_conv2d(x, mask, weight, bias, padding=1, backend=backend)[0]

    upstream = torch.randn_like(run(*leaves))
    all_of_them = gradients(run, upstream, *leaves)[1]
    chosen = [t.clone().requires_grad_(flag) for t, flag in zip(leaves, wanted, strict=True)]
    run(*chosen).backward(upstream)
    for name, flag, leaf, gradient in zip(WHAT, wanted, chosen, all_of_them, strict=True):
        if flag:
            assert_exact(leaf.grad, gradient, what=f"gradient of {name}")
        else:
            assert leaf.grad is None


@pytest.mark.parametrize("wanted", COMBINATIONS, ids=names)
def test_only_wanted_products_are_computed(wanted):
    leaves = [t.requires_grad_(flag) for t, flag in zip(make(), wanted, strict=True)]
    output, _ = partial_conv2d(leaves[0], masks.plane("mixed", 2, 5, 4), *leaves[1:], padding=1, backend="cpu")
    events = profiled(lambda: output.backward(torch.ones_like(output)))
    ran = [event.concrete_inputs[-1] for event, _ in convolutions(events)]
    assert ran == ([[wanted[0], wanted[1], False]] if wanted[0] or wanted[1] else [])


def test_masks_carry_no_gradient(backend, device):
    x, weight, bias = make(device=device)
    mask = torch.ones(2, 1, 5, 4, device=device, requires_grad=True)
    output, new_mask = partial_conv2d(x.requires_grad_(), mask, weight, bias, padding=1, backend=backend)
    assert not new_mask.requires_grad
    output.sum().backward()
    assert mask.grad is None


def test_nothing_is_recorded_where_no_gradient_is_wanted(native):
    x, weight, bias = make(device=native)
    assert not partial_conv2d(x, torch.ones(2, 1, 5, 4, device=native), weight, bias)[0].requires_grad
    with torch.no_grad():
        assert not partial_conv2d(x, torch.ones(2, 1, 5, 4, device=native), weight.requires_grad_(), bias)[
            0
        ].requires_grad


def test_new_mask_alone_can_be_used_downstream(native):
    """A graph in which only mask' of a layer is used: there is nothing to differentiate, and nothing fails."""
    x, weight, bias = (t.requires_grad_() for t in make(device=native))
    _, new_mask = partial_conv2d(x, masks.plane("mixed", 2, 5, 4).to(native), weight, bias, padding=1)
    (new_mask.double() * x).sum().backward()
    assert torch.equal(x.grad, new_mask.double().expand_as(x))
    assert weight.grad is None


# ---- once more, and once too often ---------------------------------------------------------------------------------


def call(operator, x, weight, bias):
    """Either operator on the same leaves: upcat takes the first two channels, at half size, as low."""
    if operator == "partial_conv2d":
        return partial_conv2d(x, torch.ones_like(x[:, :1]), weight, bias, padding=1)[0]
    skip = x[:, :1].repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    low = x[:, 1:]
    return partial_conv2d_upcat(low, torch.ones_like(low[:, :1]), skip, torch.ones_like(skip[:, :1]), weight, bias)[0]


OPERATORS = pytest.mark.parametrize("operator", ["partial_conv2d", "partial_conv2d_upcat"])


@pytest.fixture(autouse=True)
def phases_at_any_size(monkeypatch):
    force_form(monkeypatch)


@OPERATORS
def test_a_retained_graph_gives_the_same_gradients_again(native, operator):
    leaves = [t.requires_grad_() for t in make(device=native)]
    output = call(operator, *leaves)
    upstream = torch.randn_like(output)
    first = torch.autograd.grad(output, leaves, upstream, retain_graph=True)
    second = torch.autograd.grad(output, leaves, upstream)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(output, leaves, upstream)


@OPERATORS
@pytest.mark.parametrize("leaf", range(3), ids=WHAT)
def test_second_order_is_refused(native, operator, leaf):
    leaves = [t.requires_grad_() for t in make(device=native)]
    gradient = torch.autograd.grad(call(operator, *leaves).square().sum(), leaves[leaf], create_graph=True)[0]
    with pytest.raises(RuntimeError, match=f"msa_ops::{operator}: second-order gradients are not supported"):
        gradient.sum().backward()


@OPERATORS
def test_changing_a_saved_input_in_place_is_noticed(native, operator):
    x, weight, bias = make(device=native)
    output = call(operator, x * 1, weight.requires_grad_(), bias)
    image = weight.detach()
    image.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()
