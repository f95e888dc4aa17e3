"""The convolution operators under torch.compile and torch.export."""

import os
import shutil

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from ..support.compare import gradients
from .networks import NETWORKS, encoder, sample


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


@pytest.mark.parametrize("name", NETWORKS)
def test_compiles_whole_and_once_for_every_size(native, name):
    network = NETWORKS[name]
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(network, backend=counter, fullgraph=True, dynamic=True)
    for sizes in ((2, 6, 8), (3, 10, 7), (4, 5, 5)):
        assert_equal_calls(compiled, network, sizes, native)
    assert counter.frame_count == 1


@pytest.mark.skipif(
    os.environ.get("ATEN_CPU_CAPABILITY") == "default",
    reason="inductor's own C++ does not compile with ATEN_CPU_CAPABILITY=default: at::vec is not declared",
)
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


@pytest.mark.parametrize("name", NETWORKS)
def test_exports_with_free_batch_and_size(native, name):
    network = NETWORKS[name]

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
