"""What only a GPU can show: streams, CUDA graphs, no synchronisation, peak memory."""

import pytest
import torch
import torch.nn.functional as F

from msa_ops import hole_attention, partial_conv2d

from .support import masks
from .support.upcat import upcat

pytestmark = pytest.mark.gpu

SIZE = (2, 16, 24, 20)


def _on_cuda(*shape):
    return torch.randn(shape, device="cuda").to(memory_format=torch.channels_last).requires_grad_()


def _partial_conv(is_upcat, backend="cuda", form="phases"):
    n, c, h, w = SIZE
    x, low = _on_cuda(*SIZE), _on_cuda(n, 8, h // 2, w // 2)
    mask, low_mask = masks.random_plane(0.5, n, h, w).cuda(), masks.random_plane(0.5, n, h // 2, w // 2).cuda()
    weight = torch.randn(4, c + 8 * is_upcat, 3, 3, device="cuda", requires_grad=True)
    bias = torch.randn(4, device="cuda", requires_grad=True)
    if is_upcat:
        inputs = low, x, weight, bias
        return inputs, lambda: upcat(form, low, low_mask, x, mask, weight, bias, backend=backend)
    return (x, weight, bias), lambda: partial_conv2d(x, mask, weight, bias, padding=1, backend=backend)


def _image_layer():
    n, _, h, w = SIZE
    low, skip = _on_cuda(n, 16, h // 2, w // 2), _on_cuda(n, 3, h, w).detach()
    mask, low_mask = masks.random_plane(0.5, n, h, w).cuda(), masks.random_plane(0.5, n, h // 2, w // 2).cuda()
    weight = torch.randn(3, 19, 3, 3, device="cuda", requires_grad=True)
    bias = torch.randn(3, device="cuda", requires_grad=True)
    call = low, low_mask, skip, mask, weight, bias
    return (low, weight, bias), lambda: upcat("phases", *call, backend="triton")


def _attention(backend):
    x, mask = _on_cuda(*SIZE), masks.random_plane(0.5, SIZE[0], *SIZE[2:]).cuda()
    return (x,), lambda: (hole_attention(x, mask, renormalize=True, backend=backend),)


STEPS = {
    "partial_conv2d": lambda: _partial_conv(False),
    "partial_conv2d_upcat_phases": lambda: _partial_conv(True),
    "partial_conv2d_upcat_concatenation": lambda: _partial_conv(True, form="concatenation"),
    "partial_conv2d_triton": lambda: _partial_conv(False, "triton"),
    "partial_conv2d_upcat_triton": lambda: _partial_conv(True, "triton"),
    "partial_conv2d_upcat_triton_image": _image_layer,
    "hole_attention": lambda: _attention("cuda"),
    "hole_attention_triton": lambda: _attention("triton"),
}


@pytest.fixture(params=STEPS)
def step(request):
    """A forward and backward on fixed tensors; returns the outputs and the gradients."""
    leaves, forward = STEPS[request.param]()
    upstream = torch.randn_like(forward()[0])

    def run():
        outputs = forward()
        return *outputs, *torch.autograd.grad(outputs[0], leaves, upstream)

    run.inputs = leaves
    return run


def test_runs_on_a_stream_of_the_caller(step):
    wanted = step()
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)  # work on the default stream would overtake what follows
        with torch.no_grad():
            for leaf in step.inputs:
                leaf.mul_(2)
        got = step()
        with torch.no_grad():
            for leaf in step.inputs:
                leaf.div_(2)
        again = step()
    torch.cuda.synchronize()
    assert not torch.equal(got[0], wanted[0])
    for a, b in zip(again, wanted, strict=True):
        assert torch.equal(a, b)


def test_captured_graph_replays_on_new_numbers(step):
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        for leaf in step.inputs:
            leaf.copy_(torch.randn_like(leaf))
    graph.replay()
    for a, b in zip(captured, step(), strict=True):
        torch.testing.assert_close(a, b)


def test_never_synchronises(step):
    step()
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode(mode)


def test_a_repeated_call_is_bitwise_equal(step):
    for first, second in zip(step(), step(), strict=True):
        assert torch.equal(first, second)


def peak(function):
    function()  # plans and workspaces
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


@pytest.mark.parametrize(("is_masked", "copies"), [(False, 1), (True, 0)])
def test_forward_needs_one_copy_of_the_input_more_than_a_bare_convolution(is_masked, copies):
    x = torch.randn(4, 64, 64, 64, device="cuda").to(memory_format=torch.channels_last)
    weight, mask = torch.randn(64, 64, 3, 3, device="cuda"), masks.random_plane(0.5, 4, 64, 64).cuda()
    options = {"padding": 1, "input_is_masked": is_masked, "backend": "cuda"}
    more = peak(lambda: partial_conv2d(x, mask, weight, **options)) - peak(lambda: F.conv2d(x, weight, padding=1))
    assert more <= (copies + 0.25) * x.numel() * x.element_size()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_memory_is_far_below_one_dense_matrix(dtype):
    x = torch.randn(1, 128, 128, 128, device="cuda", dtype=dtype).to(memory_format=torch.channels_last)
    mask = masks.random_plane(0.75, 1, 128, 128).cuda()
    assert peak(lambda: hole_attention(x, mask)) <= 64 * 2**20  # one dense float32 matrix is 1 GiB
    x.requires_grad_()
    assert peak(lambda: hole_attention(x, mask).sum().backward()) <= 128 * 2**20


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_runs_on_a_device_that_is_not_the_current_one():
    x, weight = torch.randn(1, 3, 8, 8, device="cuda:1"), torch.randn(2, 3, 3, 3, device="cuda:1")
    mask = torch.ones(1, 1, 8, 8, device="cuda:1")
    with torch.cuda.device(0):
        output, new_mask = partial_conv2d(x, mask, weight, backend="cuda")
    assert output.device == new_mask.device == x.device
    torch.testing.assert_close(output, F.conv2d(x, weight))
