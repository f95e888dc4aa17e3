"""The convolution operators give the same bits again, with one thread or two."""

import pytest
import torch

from msa_ops import partial_conv2d_upcat

from ..partial_conv.calls import make, runner
from ..support import masks
from ..support.compare import gradients

FORMATS = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)


def results(device, dtype, layout):
    """Outputs and gradients of both operators, at sizes that are worth two threads."""
    torch.manual_seed(1)
    x, weight, bias = make(2, 16, 48, 40, 24, dtype=dtype, device=device)
    x = x.to(memory_format=layout)
    mask = masks.random_plane(0.5, 2, 48, 40).to(device)
    output, grads = gradients(runner(mask, 1, 1)("auto"), torch.randn(2, 24, 48, 40, device=device), x, weight, bias)
    low, low_mask = torch.randn(2, 8, 24, 20, dtype=dtype, device=device), masks.random_plane(0.5, 2, 24, 20).to(device)

    def upcat(low, skip, weight, bias):
        return partial_conv2d_upcat(low, low_mask, skip, mask, weight, bias)[0]

    upstream = torch.randn(2, 24, 48, 40, device=device)
    wide = torch.cat([weight, weight[:, :8]], dim=1)
    decoded, decoded_grads = gradients(upcat, upstream, low.to(memory_format=layout), x, wide, bias)
    return [output, *grads, decoded, *decoded_grads]


#: Their places among the above.
WEIGHT_GRADIENTS = 2, 7


@FORMATS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_repeated_call_is_bitwise_equal(native, dtype, layout):
    for first, second in zip(results(native, dtype, layout), results(native, dtype, layout), strict=True):
        assert torch.equal(first, second)


@FORMATS
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_one_thread_and_two_are_bitwise_equal(dtype, layout):
    """But for the gradients of weights, which torch's convolution sums as its threads share the pixels on some
    processors."""
    before, runs = torch.get_num_threads(), {}
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            runs[threads] = results("cpu", dtype, layout)
    finally:
        torch.set_num_threads(before)
    for i, (one, two) in enumerate(zip(runs[1], runs[2], strict=True)):
        if i in WEIGHT_GRADIENTS:
            assert (one - two).abs().max() <= 16 * torch.finfo(dtype).eps * two.abs().max()
        else:
            assert torch.equal(one, two)
