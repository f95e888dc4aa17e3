"""Memory of partial_conv2d_upcat: the layout of its results, and what it allocates on the CPU."""

import pytest
import torch

from ..support import masks
from ..support.profiling import allocations, profiled
from ..support.upcat import upcat

FORMATS = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)


@FORMATS
def test_upcat_output_and_gradients_keep_the_memory_format(native, layout):
    low, skip, weight = torch.randn(2, 3, 8, 8), torch.randn(2, 2, 16, 16), torch.randn(4, 5, 3, 3)
    leaves = [t.to(native, memory_format=layout).requires_grad_() for t in (low, skip, weight)]
    low_mask, skip_mask = masks.plane("mixed", 2, 8, 8).to(native), masks.plane("checkerboard", 2, 16, 16).to(native)
    output, _ = upcat("auto", leaves[0], low_mask, leaves[1], skip_mask, leaves[2], backend=native)
    output.sum().backward()
    assert output.is_contiguous(memory_format=layout)
    assert leaves[0].grad.is_contiguous(memory_format=layout)
    assert leaves[1].grad.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("is_masked", [False, True])
def test_upcat_builds_neither_the_upsampled_map_nor_the_concatenation(is_masked):
    low, skip, weight = torch.randn(2, 64, 16, 16), torch.randn(2, 8, 32, 32), torch.randn(4, 72, 3, 3)
    low_mask, skip_mask = masks.plane("mixed", 2, 16, 16), masks.plane("mixed", 2, 32, 32)
    options = {"low_is_masked": is_masked, "skip_is_masked": is_masked, "backend": "cpu"}
    made = allocations(profiled(lambda: upcat("phases", low, low_mask, skip, skip_mask, weight, **options)))
    copies = [] if is_masked else [4 * low.numel(), 4 * skip.numel()]
    assert made[: len(copies)] == copies
    phase_weight, planes = 4 * 4 * 64 * 4 * 4, (4 + 4 + 1) * skip_mask.numel()
    assert sum(made[len(copies) :]) <= 1.1 * (phase_weight + planes)
