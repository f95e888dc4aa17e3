"""The operators as citizens of torch: opcheck, fake tensors, compile, export, autocast, FLOPs."""

import os
import shutil

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from msa_ops import partial_conv2d, partial_conv2d_upcat

from . import masks
from .helpers import EXPANDED, FORMS, LAYOUTS, convolutions, force_form, gradients, profiled

VIEWS = LAYOUTS | EXPANDED
OPS = torch.ops.msa_ops


def forward_arguments(x, mask, c_out=5, kernel=3, padding=1, stride=1, layout=torch.contiguous_format, has_bias=True):
    """Arguments of the raw forward operator for a mask of one plane or of one per channel."""
    channels = x.shape[1]
    weight = torch.randn(c_out, channels, kernel, kernel, dtype=x.dtype, device=x.device).to(memory_format=layout)
    bias = torch.randn(c_out, dtype=x.dtype, device=x.device) if has_bias else None
    covered = [channels] if mask.shape[1] == 1 else [1] * channels
    geometry = [stride, stride], [padding, padding], [1, 1], 1
    return x, mask, weight, bias, covered, *geometry, kernel * kernel * channels, False


def backward_arguments(forward, needed=(True, True, True)):
    x, mask, weight, _, covered, stride, padding, dilation, groups, _, is_masked = forward
    output, _, ratio = OPS.partial_conv2d_forward(*forward)
    geometry = covered, stride, padding, dilation, groups
    return torch.randn_like(output), x, mask, weight, ratio, *geometry, is_masked, list(needed)


def upcat_arguments(low, skip, low_mask, skip_mask, layout=torch.contiguous_format, phases=True):
    channels = low.shape[1] + skip.shape[1]
    weight = torch.randn(4, channels, 3, 3, dtype=low.dtype, device=low.device).to(memory_format=layout)
    bias = torch.randn(4, dtype=low.dtype, device=low.device)
    return low, low_mask, skip, skip_mask, weight, bias, 9 * channels, False, False, phases


def upcat_backward_arguments(forward, needed=(True, True, True, True)):
    low, low_mask, skip, skip_mask, weight, _, _, *flags = forward
    output, _, ratio = OPS.partial_conv2d_upcat_forward(*forward)
    return torch.randn_like(output), low, low_mask, skip, skip_mask, weight, ratio, *flags, list(needed)


def differentiable(arguments):
    """The arguments with floating tensors that want gradients; detached views keep their strides."""
    wants = [isinstance(a, torch.Tensor) and a.dtype.is_floating_point for a in arguments]
    return tuple(a.detach().requires_grad_() if want else a for a, want in zip(arguments, wants, strict=True))


# ---- opcheck -------------------------------------------------------------------------------------------------------

MASKS = {
    "holes": lambda n, h, w: masks.plane("mixed", n, h, w),
    "all_valid": lambda n, h, w: masks.plane("all_valid", n, h, w),
    "expanded": lambda n, h, w: masks.plane("checkerboard", 1, h, w).expand(n, -1, -1, -1),
}

INPUTS = pytest.mark.parametrize(
    ("view", "mask"),
    [
        ("contiguous", "holes"),
        ("channels_last", "expanded"),
        ("channels_last", "all_valid"),
        ("every_second_pixel", "holes"),
        ("expanded_batch", "expanded"),
    ],
)


@INPUTS
def test_opcheck_partial_conv2d(native, view, mask):
    x, plane = VIEWS[view](torch.randn(2, 3, 5, 4, device=native)), MASKS[mask](2, 5, 4).to(native)
    forward = forward_arguments(x, plane)
    torch.library.opcheck(OPS.partial_conv2d_forward.default, differentiable(forward))
    torch.library.opcheck(OPS.partial_conv2d_backward.default, backward_arguments(forward))


@pytest.mark.parametrize("form", FORMS)
@INPUTS
def test_opcheck_partial_conv2d_upcat(native, view, mask, form):
    low, skip = (VIEWS[view](torch.randn(2, c, s, s, device=native)) for c, s in ((3, 3), (2, 6)))
    forward = upcat_arguments(
        low, skip, MASKS[mask](2, 3, 3).to(native), MASKS[mask](2, 6, 6).to(native), phases=FORMS[form]
    )
    torch.library.opcheck(OPS.partial_conv2d_upcat_forward.default, differentiable(forward))
    torch.library.opcheck(OPS.partial_conv2d_upcat_backward.default, upcat_backward_arguments(forward))


@pytest.mark.parametrize(
    ("shape", "kernel"), [((2, 4, 1, 1), 1), ((2, 1, 5, 4), 3), ((1, 1, 1, 1), 1), ((0, 3, 5, 4), 3)], ids=str
)
@pytest.mark.parametrize("mask", ["holes", "all_valid"])
def test_opcheck_of_sizes_whose_strides_are_ambiguous(native, shape, kernel, mask):
    x = torch.randn(shape, device=native).to(memory_format=torch.channels_last)
    forward = forward_arguments(x, MASKS[mask](shape[0], *shape[2:]).to(native), kernel=kernel, padding=kernel // 2)
    torch.library.opcheck(OPS.partial_conv2d_forward.default, differentiable(forward))
    torch.library.opcheck(OPS.partial_conv2d_backward.default, backward_arguments(forward))


def test_opcheck_of_a_choice_of_gradients(native):
    forward = forward_arguments(torch.randn(2, 3, 5, 4, device=native), MASKS["holes"](2, 5, 4).to(native))
    for needed in ((True, False, False), (False, True, False), (False, False, True)):
        torch.library.opcheck(OPS.partial_conv2d_backward.default, backward_arguments(forward, needed))


# ---- fake tensors agree in every stride that matters ---------------------------------------------------------------


def significant_strides(tensor):
    return [stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]


def assert_fake_agrees(operator, arguments):
    """Shape, dtype and device; strides of the dimensions that hold more than one element."""
    with FakeTensorMode() as mode:
        fake = operator(*(mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in arguments))
    for real, imagined in zip(operator(*arguments), fake, strict=True):
        assert (real is None) == (imagined is None)
        if real is not None:
            assert (real.shape, real.dtype, real.device) == (imagined.shape, imagined.dtype, imagined.device)
            assert significant_strides(real) == significant_strides(imagined)


@pytest.mark.parametrize(
    "layout", [torch.contiguous_format, torch.channels_last], ids=["weight", "weight_channels_last"]
)
@pytest.mark.parametrize("mask", ["holes", "all_valid", "per_channel"])
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize(
    "shape", [(2, 4, 6, 5), (2, 1, 6, 5), (1, 4, 6, 5), (2, 4, 1, 1), (2, 4, 6, 1), (1, 1, 1, 1)], ids=str
)
def test_fake_strides_of_partial_conv2d(native, shape, view, mask, layout):
    x = VIEWS[view](torch.randn(shape, device=native))
    plane = MASKS["holes" if mask == "per_channel" else mask](shape[0], *shape[2:]).to(native)
    if mask == "per_channel":
        plane = plane.repeat(1, shape[1], 1, 1)
    for kernel in (3, 1):
        forward = forward_arguments(x, plane, kernel=kernel, padding=kernel // 2, layout=layout)
        assert_fake_agrees(OPS.partial_conv2d_forward, forward)
        assert_fake_agrees(OPS.partial_conv2d_backward, backward_arguments(forward))


@pytest.mark.parametrize(
    "layout", [torch.contiguous_format, torch.channels_last], ids=["weight", "weight_channels_last"]
)
@pytest.mark.parametrize("mask", ["holes", "all_valid"])
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize(
    ("shape", "c2"), [((2, 4, 3, 2), 3), ((2, 1, 3, 2), 1), ((2, 4, 1, 1), 3), ((1, 1, 1, 1), 1)], ids=str
)
@pytest.mark.parametrize("form", FORMS)
def test_fake_strides_of_partial_conv2d_upcat(native, shape, c2, view, mask, layout, form):
    n, _, h, w = shape
    low, skip = (VIEWS[view](torch.randn(s, device=native)) for s in (shape, (n, c2, 2 * h, 2 * w)))
    planes = MASKS[mask](n, h, w).to(native), MASKS[mask](n, 2 * h, 2 * w).to(native)
    forward = upcat_arguments(low, skip, *planes, layout, FORMS[form])
    assert_fake_agrees(OPS.partial_conv2d_upcat_forward, forward)
    assert_fake_agrees(OPS.partial_conv2d_upcat_backward, upcat_backward_arguments(forward))


# ---- compile and export --------------------------------------------------------------------------------------------


def encoder(x, mask, weight, bias):
    hidden, hidden_mask = partial_conv2d(x, mask, weight, bias, 2, 1)
    return hidden.relu() * 2, hidden_mask


def grouped(x, mask, weight, bias):
    return partial_conv2d(x, [(1, mask), (x.shape[1] - 1, mask.flip(3))], weight, bias, padding="same")


def expanded(x, mask, weight, bias):
    return partial_conv2d(x, mask.expand_as(x), weight, bias, padding=1, scale="sum", input_is_masked=True)


def decoder(x, mask, weight, bias):
    skip, skip_mask = (t.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3) for t in (x[:, :1], mask))
    return partial_conv2d_upcat(x[:, 1:], mask, skip, skip_mask, weight, bias)


def exportable(network):
    """The decoder without repeat_interleave, of which torch 2.11 exports guards on the order of strides."""
    if network is not decoder:
        return network

    def call(x, mask, weight, bias):
        ones = weight.new_ones(1, 1, 2, 2)
        skip, skip_mask = (torch.nn.functional.conv_transpose2d(t, ones, stride=2) for t in (x[:, :1], mask))
        return partial_conv2d_upcat(x[:, 1:], mask, skip, skip_mask, weight, bias)

    return call


NETWORKS = [encoder, grouped, expanded, decoder]
CALLS = [*((network, "phases") for network in NETWORKS), (decoder, "concatenation")]
CALL_IDS = [*(network.__name__ for network in NETWORKS), "decoder_by_concatenation"]


def sample(n, h, w, device):
    x = torch.randn(n, 3, h, w, device=device)
    return (
        x,
        masks.random_plane(0.5, n, h, w).to(device).float(),
        torch.randn(4, 3, 3, 3, device=device),
        torch.randn(4, device=device),
    )


def assert_equal_calls(ours, wanted, sizes, device):
    """Outputs, masks and gradients of two functions; bitwise, since the same operators run."""
    arguments = sample(*sizes, device)
    results = []
    for function in (ours, wanted):
        output, (x, weight, bias) = None, (arguments[i].clone().requires_grad_() for i in (0, 2, 3))
        output, new_mask = function(x, arguments[1], weight, bias)
        results.append([output.detach(), new_mask, *torch.autograd.grad(output.square().sum(), (x, weight, bias))])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
        assert a.stride() == b.stride()


@pytest.mark.parametrize(("network", "form"), CALLS, ids=CALL_IDS)
def test_compiles_whole_and_once_for_every_size(native, network, form, monkeypatch):
    force_form(monkeypatch, form)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(network, backend=counter, fullgraph=True, dynamic=True)
    for sizes in ((2, 6, 8), (3, 10, 7), (4, 5, 5)):
        assert_equal_calls(compiled, network, sizes, native)
    assert counter.frame_count == 1


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="inductor needs a C++ compiler")
def test_inductor_gives_the_same_numbers(native):
    torch._dynamo.reset()
    x, mask, weight, bias = sample(2, 6, 8, native)
    x = x.to(memory_format=torch.channels_last)

    def run(function):
        upstream = torch.ones(2, 4, 3, 4, device=native)
        return gradients(lambda *leaves: function(leaves[0], mask, *leaves[1:])[0], upstream, x, weight, bias)

    ours, wanted = run(torch.compile(encoder, fullgraph=True, dynamic=True)), run(encoder)
    for a, b in zip((ours[0], *ours[1]), (wanted[0], *wanted[1]), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("network", "form"), CALLS, ids=CALL_IDS)
def test_exports_with_free_batch_and_size(native, network, form, monkeypatch):
    force_form(monkeypatch, form)
    network = exportable(network)

    class Module(torch.nn.Module):
        def forward(self, x, mask, weight, bias):
            return network(x, mask, weight, bias)

    batch, height, width = (
        torch.export.Dim("batch", min=2),
        torch.export.Dim("height", min=4),
        torch.export.Dim("width", min=4),
    )
    free = {0: batch, 2: height, 3: width}
    shapes = {"x": free, "mask": free, "weight": None, "bias": None}
    exported = torch.export.export(Module(), sample(2, 6, 8, native), dynamic_shapes=shapes)
    other = sample(3, 10, 7, native)
    for a, b in zip(exported.module()(*other), network(*other), strict=True):
        assert torch.equal(a, b)


# ---- autocast ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["phases", "concatenation", "partial_conv2d"])
def test_autocast_computes_in_bfloat16_and_returns_float32_gradients(backend, device, form, monkeypatch):
    force_form(monkeypatch, "phases" if form == "phases" else "concatenation")
    x, mask, weight, bias = sample(2, 8, 8, device)
    low, low_mask = torch.randn(2, 2, 4, 4, device=device), mask[:, :, ::2, ::2]
    inputs = (x, weight, bias) if form == "partial_conv2d" else (low, x[:, :1], weight, bias)

    def run(*leaves):
        if form == "partial_conv2d":
            return partial_conv2d(leaves[0], mask, *leaves[1:], padding=1, backend=backend)
        return partial_conv2d_upcat(leaves[0], low_mask, leaves[1], mask, *leaves[2:], backend=backend)

    leaves = [t.clone().requires_grad_() for t in inputs]
    with torch.autocast(device, dtype=torch.bfloat16):
        output, new_mask = run(*leaves)
    assert output.dtype == torch.bfloat16
    assert new_mask.dtype == mask.dtype
    got = torch.autograd.grad(output.float().square().sum(), leaves)
    by_hand = [t.clone().requires_grad_() for t in inputs]
    cast, _ = run(*(t.bfloat16() for t in by_hand))
    assert torch.equal(output, cast)
    for gradient, wanted in zip(got, torch.autograd.grad(cast.float().square().sum(), by_hand), strict=True):
        assert gradient.dtype == torch.float32
        assert torch.equal(gradient, wanted)


def test_autocast_accepts_mixed_dtypes_but_leaves_float64_alone(native):
    x, mask, weight, bias = sample(2, 8, 8, native)
    with torch.autocast(native, dtype=torch.bfloat16):
        assert partial_conv2d(x.half(), mask, weight, bias)[0].dtype == torch.bfloat16
        assert partial_conv2d(x.double(), mask, weight.double(), bias.double())[0].dtype == torch.float64
        with torch.autocast(native, enabled=False):
            assert partial_conv2d(x, mask, weight, bias)[0].dtype == torch.float32


# ---- FLOPs ---------------------------------------------------------------------------------------------------------


def test_flops_of_a_known_call():
    x, weight = torch.randn(2, 3, 9, 8), torch.randn(4, 3, 3, 3)
    with FlopCounterMode(display=False) as counter:
        partial_conv2d(x, torch.ones(2, 1, 9, 8), weight, None, 2, 1, backend="cpu")
    assert counter.get_total_flops() == 2 * (2 * 4 * 5 * 4) * (3 * 3 * 3)  # multiply and add · outputs · taps


@pytest.mark.parametrize(
    "wanted", [(True, True, True), (True, False, False), (False, True, False), (False, False, True)], ids=str
)
@pytest.mark.parametrize(("network", "form"), CALLS, ids=CALL_IDS)
def test_flops_are_those_of_the_convolutions_that_run(network, form, wanted, monkeypatch):
    force_form(monkeypatch, form)
    x, mask, weight, bias = sample(2, 8, 6, "cpu")
    leaves = [t.requires_grad_(flag) for t, flag in zip((x, weight, bias), wanted, strict=True)]

    def step():
        network(leaves[0], mask, *leaves[1:])[0].sum().backward()

    ran = 0
    for event, flops in convolutions(profiled(step)):
        products = sum(event.concrete_inputs[-1][:2]) if event.name.endswith("backward") else 1
        ran += products * flops
    with FlopCounterMode(display=False) as counter:
        step()
    assert counter.get_total_flops() == ran > 0


def test_flops_of_groups():
    x, weight = torch.randn(2, 4, 6, 6), torch.randn(6, 2, 3, 3)
    arguments = torch.ones(2, 1, 6, 6), weight, None, 1, 1, 1, 2
    with FlopCounterMode(display=False) as counter:
        partial_conv2d(x, *arguments, backend="cpu")
    ((_, flops),) = convolutions(profiled(lambda: partial_conv2d(x, *arguments, backend="cpu")))
    assert counter.get_total_flops() == flops == 2 * (2 * 6 * 36) * (2 * 9)
