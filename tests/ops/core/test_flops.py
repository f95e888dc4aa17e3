"""FLOPs of the convolution operators, as torch's counter sees them."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from msa_ops import partial_conv2d

from ..support.profiling import convolutions, profiled
from .networks import NETWORKS, sample


def test_flops_of_a_known_call():
    x, weight = torch.randn(2, 3, 9, 8), torch.randn(4, 3, 3, 3)
    with FlopCounterMode(display=False) as counter:
        partial_conv2d(x, torch.ones(2, 1, 9, 8), weight, None, 2, 1, backend="cpu")
    assert counter.get_total_flops() == 2 * (2 * 4 * 5 * 4) * (3 * 3 * 3)  # multiply and add · outputs · taps


@pytest.mark.parametrize(
    "wanted", [(True, True, True), (True, False, False), (False, True, False), (False, False, True)], ids=str
)
@pytest.mark.parametrize("name", NETWORKS)
def test_flops_are_those_of_the_convolutions_that_run(name, wanted):
    network = NETWORKS[name]
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
