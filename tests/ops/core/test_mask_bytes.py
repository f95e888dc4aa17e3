"""A bool mask may hold any bytes (`uint8_mask.view(torch.bool)`); torch takes all but 0 for True, and so do we."""

import pytest
import torch

from msa_ops import hole_attention, hole_attention_map, partial_conv2d, shift_attention

from ..support.internals import MISSING
from ..support.upcat import FORMS, upcat

TRITON = pytest.param(
    "triton", marks=pytest.mark.skipif(MISSING["triton"] is not None, reason=f"no Triton: {MISSING['triton']}")
)


@pytest.fixture(params=["reference", "cpu", TRITON, pytest.param("cuda", marks=pytest.mark.gpu)])
def backend(request):
    return request.param


@pytest.fixture
def device(backend):
    on_gpu = backend == "cuda" or (backend == "triton" and torch.cuda.is_available())
    return "cuda" if on_gpu else "cpu"


def odd_bytes(n, c, h, w, device):
    """A mask whose bytes are 0 and 2 to 255, and the same mask of zeros and ones. The first map of a batch is all
    valid."""
    numbers = torch.randint(2, 256, (n, c, h, w), dtype=torch.uint8) * (torch.rand(n, c, h, w) < 0.6)
    numbers[0].clamp_(min=2)
    return numbers.to(device).view(torch.bool), (numbers != 0).to(device)


def assert_same(run, masks, *leaves):
    """`run(*masks)` gives a function of the leaves, and `masks` are pairs as above. Results and gradients must be the
    same to the bit."""
    ours, wanted = (everything(run(*planes), leaves) for planes in zip(*masks, strict=True))
    for left, right in zip(ours, wanted, strict=True):
        assert torch.equal(left, right)


def everything(function, leaves):
    """All results of function(*leaves), and the gradients of the leaves if the first result has any."""
    leaves = [t.detach().requires_grad_() for t in leaves]
    results = function(*leaves)
    results = results if isinstance(results, tuple) else (results,)
    has_gradient = results[0].requires_grad
    return [*results, *(torch.autograd.grad(results[0].sum(), leaves) if has_gradient else [])]


#: name -> (N, C, H, W), C_out, kernel, planes of the mask (0: grouped), layout. On the CPU these are the library's
#: convolution in both layouts, minimal filtering, and patches.
CALLS = {
    "contiguous": ((2, 5, 9, 11), 4, 3, 1, torch.contiguous_format),
    "channels_last": ((2, 5, 9, 11), 4, 3, 1, torch.channels_last),
    "an image": ((2, 3, 9, 11), 4, 7, 1, torch.channels_last),
    "minimal filtering": ((2, 16, 12, 12), 16, 3, 1, torch.channels_last),
    "patches": ((2, 16, 6, 6), 16, 3, 1, torch.channels_last),
    "a plane per channel": ((2, 5, 9, 11), 4, 3, 5, torch.contiguous_format),
    "a plane per channel, channels_last": ((2, 5, 9, 11), 4, 3, 5, torch.channels_last),
    "grouped": ((2, 5, 9, 11), 4, 3, 0, torch.contiguous_format),
}


@pytest.mark.parametrize("name", CALLS)
def test_partial_conv2d(name, backend, device):
    (n, c, h, w), c_out, kernel, planes, layout = CALLS[name]
    if backend == "triton" and name != "an image":
        return  # its kernels read every mask in the same way
    x = torch.randn(n, c, h, w, device=device).contiguous(memory_format=layout)
    weight, bias = torch.randn(c_out, c, kernel, kernel, device=device), torch.randn(c_out, device=device)
    masks = odd_bytes(n, planes or 2, h, w, device)

    def run(mask):
        argument = mask if planes else [(2, mask[:, :1]), (c - 2, mask[:, 1:])]
        return lambda *leaves: partial_conv2d(leaves[0], argument, *leaves[1:], padding=1, backend=backend)

    assert_same(run, [masks], x, weight, bias)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("channels", [(5, 4, 3), (16, 16, 16), (16, 3, 3)], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_partial_conv2d_upcat(form, channels, layout, backend, device):
    low_channels, skip_channels, c_out = channels
    if backend == "triton" and (form == "concatenation" or layout != torch.channels_last or c_out > 4):
        return  # it has the phases alone, in channels_last
    low = torch.randn(2, low_channels, 5, 6, device=device).contiguous(memory_format=layout)
    skip = torch.randn(2, skip_channels, 10, 12, device=device).contiguous(memory_format=layout)
    weight = torch.randn(c_out, low_channels + skip_channels, 3, 3, device=device)
    masks = odd_bytes(2, 1, 5, 6, device), odd_bytes(2, 1, 10, 12, device)

    def run(low_mask, skip_mask):
        return lambda low, skip, weight: upcat(form, low, low_mask, skip, skip_mask, weight, backend=backend)

    assert_same(run, masks, low, skip, weight)


def test_attention(backend, device, small_plans):
    maps = torch.randn(3, 2, 4, 6, 5, device=device).unbind()
    masks = odd_bytes(2, 1, 6, 5, device), odd_bytes(2, 1, 6, 5, device)
    assert_same(lambda *planes: lambda *x: shift_attention(*x, *planes, radius=1, backend=backend), masks, *maps)
    assert_same(lambda mask: lambda x: hole_attention(x, mask, backend=backend), masks[:1], maps[0])
    if backend != "triton":  # it has no such kernel
        assert_same(lambda mask: lambda x: hole_attention_map(x, mask, backend=backend), masks[:1], maps[0])
