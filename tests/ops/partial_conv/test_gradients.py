"""partial_conv2d: gradients of every differentiable argument, only the wanted ones, and the refusal of second order."""

import pytest
import torch

from msa_ops import partial_conv2d

from ..support import masks
from ..support.compare import gradients
from ..support.profiling import convolutions, profiled
from ..support.tolerances import assert_exact
from .calls import NAMES as WHAT
from .calls import make as make_any
from .calls import runner

COMBINATIONS = [(i, w, b) for i in (False, True) for w in (False, True) for b in (False, True) if i or w or b]


def names(wanted):
    return "+".join(name for name, flag in zip(WHAT, wanted, strict=True) if flag)


def make(n=2, c=3, h=5, w=4, c_out=2, kernel=3, groups=1, device="cpu"):
    return make_any(n, c, h, w, c_out, kernel, groups, device=device)


# ---- against finite differences ------------------------------------------------------------------------------------


def assert_gradients_are_differences(run, leaves, **options):
    """Along random directions: one number per leaf instead of one per element, and no wrong element hides from it."""
    assert torch.autograd.gradcheck(run, [t.requires_grad_() for t in leaves], **{"fast_mode": True, **options})


def test_gradcheck_element_by_element(backend, device):
    leaves = make(1, 2, 4, 3, 2, device=device)
    run = runner(masks.plane("one_hole_pixel", 1, 4, 3).to(device), 1, 1)(backend)
    assert_gradients_are_differences(run, leaves, fast_mode=False)


@pytest.mark.parametrize("form", masks.FORMS)
def test_gradcheck_of_every_mask_form(backend, device, form):
    for name in ("mixed", "one_valid_row"):
        mask, _ = masks.in_form(form, masks.plane(name, 2, 5, 4).to(device), 3)
        assert_gradients_are_differences(runner(mask, 1, 1)(backend), make(device=device))


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
def test_gradcheck_of_geometries(backend, device, kernel, stride, padding, dilation, groups):
    mask = masks.plane("checkerboard", 1, 5, 4).to(device)
    for scale in ("window", "sum"):
        run = runner(mask, stride, padding, dilation, groups, scale=scale)(backend)
        assert_gradients_are_differences(run, make(1, 4, 5, 4, 4, kernel, groups, device))


def test_gradcheck_without_bias_and_with_channels_last(backend, device):
    x, weight, _ = make(device=device)
    leaves = [t.to(memory_format=torch.channels_last) for t in (x, weight)]
    assert_gradients_are_differences(runner(masks.plane("mixed", 2, 5, 4).to(device), 1, 1)(backend), leaves)


def test_gradcheck_of_a_masked_input_is_that_of_the_bare_convolution(backend, device):
    """With input_is_masked the function is conv(input) · E/s, so its gradient passes holes as well."""
    run = runner(masks.plane("mixed", 2, 5, 4).to(device), 1, 1, input_is_masked=True)(backend)
    assert_gradients_are_differences(run, make(device=device))


# ---- what is asked for, and nothing else ---------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", COMBINATIONS, ids=names)
def test_any_choice_of_wanted_gradients(backend, device, wanted):
    leaves = make(device=device)
    run = runner(masks.plane("mixed", 2, 5, 4).to(device), 1, 1)(backend)
    upstream = torch.randn_like(run(*leaves))
    all_of_them = gradients(run, upstream, *leaves)[1]
    chosen = [t.clone().requires_grad_(flag) for t, flag in zip(leaves, wanted, strict=True)]
    run(*chosen).backward(upstream)
    for flag, leaf, gradient in zip(wanted, chosen, all_of_them, strict=True):
        if flag:
            assert_exact(leaf.grad, gradient)
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
