"""convert_partial_convs: the swap of other projects' partial convolution layers for ours."""

import copy

import pytest
import torch
from torch import nn

import msa_ops

from ..support.look_alikes import TwoConvLookAlike, WindowLookAlike, case


class Strange(nn.Module):
    """A model this project has never seen: both kinds of look-alike, nested, one of them shared under two names."""

    def __init__(self):
        super().__init__()
        self.stem = WindowLookAlike(3, 4, 3, padding=1, return_mask=True)
        self.body = nn.ModuleDict({"a": nn.ModuleList([TwoConvLookAlike(4, 4, 3, padding=1)])})
        self.shared = WindowLookAlike(4, 4, 3, padding=1, multi_channel=True, bias=False)
        self.alias = self.shared
        self.plain = nn.Conv2d(4, 2, 1)

    def forward(self, x, mask):
        x, mask = self.stem(x, mask)
        x, mask = self.body["a"][0](x, mask.expand(-1, 4, -1, -1))
        return self.plain(self.alias(self.shared(x, mask), mask))


def test_convert_carries_numbers_parameters_modes_and_sharing_over():
    torch.manual_seed(0)
    model = Strange().double().eval()
    model.stem.weight.requires_grad_(False)
    original = copy.deepcopy(model)
    weight = model.body["a"][0].input_conv.weight
    calls = []
    model.shared.register_forward_hook(lambda *_: calls.append(1))

    converted = msa_ops.convert_partial_convs(model)

    assert converted is model
    layers = [m for m in model.modules() if isinstance(m, msa_ops.PartialConv2d)]
    assert len(layers) == 3
    assert model.shared is model.alias
    assert model.body["a"][0].weight is weight
    assert not model.stem.weight.requires_grad
    assert not model.stem.training
    assert (model.stem.return_mask, model.shared.multi_channel) == (True, True)
    x, mask = case(False, channels=3)
    torch.testing.assert_close(model(x, mask), original(x, mask), rtol=1e-6, atol=1e-6)
    assert len(calls) == 2


def test_convert_replaces_a_look_alike_that_is_the_root_and_leaves_ours_alone():
    assert isinstance(msa_ops.convert_partial_convs(WindowLookAlike(3, 4, 3)), msa_ops.PartialConv2d)
    ours = msa_ops.PartialConv2d(3, 4, 3)
    assert msa_ops.convert_partial_convs(ours) is ours


def test_convert_names_what_it_cannot_swap():
    parametrised = nn.Sequential(nn.utils.parametrizations.spectral_norm(WindowLookAlike(3, 4, 3)))
    with pytest.raises(ValueError, match=r"the weight of 0 is parametrised"):
        msa_ops.convert_partial_convs(parametrised)
    with pytest.raises(ValueError, match=r"x counts valid entries per group \(groups=2\)"):
        msa_ops.convert_partial_convs(nn.ModuleDict({"x": TwoConvLookAlike(4, 4, 3, groups=2)}))
