"""Memory that nobody wrote holds NaN while the tests run, in Python and in the kernels."""

import math

import torch

from ..partial_conv.calls import make, runner
from ..support import masks
from ..support.profiling import ancestors, profiled


def test_uninitialised_memory_is_nan():
    assert torch.empty(8).isnan().all()
    assert torch.empty(8, dtype=torch.float16).isnan().all()
    assert torch.empty(2, 3, 4, 5).to(memory_format=torch.channels_last).isnan().all()
    assert (torch.empty(8, dtype=torch.int32) == 2**31 - 1).all()


def test_uninitialised_memory_of_the_kernels_is_nan():
    """Every allocation that the C++ side makes is filled as well, so that no test passes on leftovers."""
    x, weight, bias = make()
    events = profiled(lambda: runner(masks.plane("mixed", 2, 7, 6), 1, 1)("cpu")(x, weight, bias))
    made = [e for e in events if e.name == "aten::empty" and "msa_ops::partial_conv2d_forward" in ancestors(e)]
    fills = [child.concrete_inputs[1] for e in made for child in e.cpu_children if child.name == "aten::fill_"]
    assert len(fills) == len(made) >= 4  # ratio, mask', counts, x ⊙ m
    assert sum(math.isnan(value) for value in fills) >= 2  # ratio, x ⊙ m
