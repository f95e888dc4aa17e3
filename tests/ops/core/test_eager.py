"""Calls from eager Python take a shorter way than torch's registered gradients, with the results of the long one."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

from msa_ops import partial_conv2d

from ..support.compare import everything
from ..support.internals import eager
from ..support.profiling import Operators

MASK_DTYPES = [torch.bool, torch.uint8, torch.float64, torch.float32, torch.float16, torch.bfloat16]


def inputs(n=2, c=4, h=6, w=5, planes=1, dtype=torch.float32):
    mask = (torch.rand(n, planes, h, w) < 0.7) * torch.randint(1, 9, (n, planes, h, w))
    return torch.randn(n, c, h, w), mask.to(dtype), torch.randn(3, c, 3, 3), torch.randn(3)


def both(x, mask, weight, bias, *geometry, **options):
    """Results and gradients of the short way, which `auto` takes, and of the long one, which a named backend takes."""

    def run(backend):
        def call(x, weight, bias):
            return partial_conv2d(x, mask, weight, bias, *geometry, **options, backend=backend)[0]

        output, new_mask = partial_conv2d(x, mask, weight, bias, *geometry, **options, backend=backend)
        return [new_mask, *everything(call, torch.ones_like(output), x, weight, bias)]

    return run("auto"), run("cpu")


def assert_same(left, right):
    for a, b in zip(left, right, strict=True):
        assert a.dtype == b.dtype
        assert a.stride() == b.stride()
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", MASK_DTYPES, ids=str)
@pytest.mark.parametrize("planes", [1, 4])
def test_masks_of_every_dtype(dtype, planes):
    assert_same(*both(*inputs(planes=planes, dtype=dtype), padding=1))


@pytest.mark.parametrize("layout", ["expanded", "transposed", "every second", "empty"])
def test_masks_of_every_layout(layout):
    x, mask, weight, bias = inputs(h=6, w=6)
    mask = {
        "expanded": lambda: mask.expand(-1, 4, -1, -1),
        "transposed": lambda: mask.mT,
        "every second": lambda: mask.repeat_interleave(2, 3)[..., ::2],
        "empty": lambda: mask[:0],
    }[layout]()
    assert_same(*both(x[: len(mask)], mask, weight, bias, padding=1))


@pytest.mark.parametrize(
    "geometry", [(1, 0), (2, 1), ((2, 1), (0, 2)), ([1, 2], [1, 1], 2), (1, "same"), (1, 1, 1, 2)], ids=str
)
def test_every_geometry(geometry):
    x, mask, weight, bias = inputs(h=9, w=8)
    groups = geometry[3] if len(geometry) > 3 else 1
    bias = bias.repeat(2)[: 2 * (len(weight) // 2)]
    assert_same(*both(x, mask, weight[:2, : 4 // groups], bias[:2], *geometry))


def test_a_mask_that_a_bool_cannot_be_made_from_is_nan():
    x, mask, weight, bias = inputs()
    mask[:, :, 2] = torch.nan  # not 0, so valid
    assert_same(*both(x, mask, weight, bias))


@pytest.mark.parametrize("subset", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1)], ids=str)
def test_gradients_of_any_subset(subset):
    x, mask, weight, bias = inputs()
    leaves = [t.requires_grad_(bool(needed)) for t, needed in zip((x, weight, bias), subset, strict=True)]
    output, new_mask = partial_conv2d(x, mask, weight, bias)
    assert not new_mask.requires_grad
    output.sum().backward()
    assert [t.grad is not None for t in leaves] == list(map(bool, subset))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
def test_a_mask_may_change_before_the_backward(dtype):
    x, mask, weight, bias = inputs(dtype=dtype)
    x.requires_grad_()
    wanted = torch.autograd.grad(partial_conv2d(x, mask, weight, bias)[0].sum(), x)[0]
    output, _ = partial_conv2d(x, mask, weight, bias)
    mask.zero_()
    assert torch.equal(torch.autograd.grad(output.sum(), x)[0], wanted)


def test_a_mask_that_requires_a_gradient_gets_none():
    x, mask, weight, bias = inputs()
    output, _ = partial_conv2d(x, mask.requires_grad_(), weight, bias)
    assert not output.requires_grad


def test_second_order_gradients_are_refused_as_ever():
    x, mask, weight, bias = inputs()
    x.requires_grad_()
    (first,) = torch.autograd.grad(partial_conv2d(x, mask, weight, bias)[0].square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="msa_ops::partial_conv2d: second-order gradients are not supported"):
        first.sum().backward()


@pytest.mark.parametrize("argument", ["stride", "padding", "dilation", "groups"])
@pytest.mark.parametrize("value", [torch.ones(1), torch.ones(1, dtype=torch.int64), "1", 1.0, None], ids=repr)
def test_arguments_of_the_wrong_type_are_refused_as_ever(argument, value):
    x, mask, weight, bias = inputs()
    with pytest.raises(ValueError, match=rf"msa_ops::partial_conv2d: {argument} must "):
        partial_conv2d(x, mask, weight, bias, **{argument: value})


def test_whoever_watches_a_call_sees_the_operator():
    x, mask, weight, bias = inputs()
    with Operators() as operators:
        partial_conv2d(x, mask, weight, bias)
    assert operators.names == ["partial_conv2d_forward"]
    with FlopCounterMode(display=False) as flops:
        partial_conv2d(x, mask, weight, bias)
    assert flops.get_total_flops() > 0


def test_plain_is_what_nothing_watches():
    assert eager.is_plain()
    watchers = [
        Operators(),
        FlopCounterMode(display=False),
        torch.device("cpu"),  # a mode of torch functions
        forward_ad.dual_level(),
    ]
    for watcher in watchers:
        with watcher:
            assert not eager.is_plain()
    assert eager.is_plain()
    seen = []
    torch.func.vmap(lambda x: seen.append(eager.is_plain()) or x)(torch.zeros(2))
    torch.jit.trace(lambda x: seen.append(eager.is_plain()) or x, torch.zeros(2), check_trace=False)
    assert seen == [False, False]
