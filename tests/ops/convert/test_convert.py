"""PartialConv2d against look-alikes of other projects' layers, and the swap of those layers."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import msa_ops


class WindowLookAlike(nn.Conv2d):
    """The behaviour of NVIDIA's published layer, from its description: counts by a convolution with ones, per plane or
    per channel."""

    def __init__(self, *args, multi_channel=False, return_mask=False, **kwargs):
        super().__init__(*args, **kwargs)
        self.multi_channel = multi_channel
        self.return_mask = return_mask

    def forward(self, x, mask_in=None):
        planes = self.in_channels if self.multi_channel else 1
        mask = torch.ones(1, planes, *x.shape[2:], dtype=x.dtype) if mask_in is None else mask_in
        out_planes = self.out_channels if self.multi_channel else 1
        ones = torch.ones(out_planes, planes, *self.kernel_size, dtype=x.dtype)
        count = F.conv2d(mask, ones, None, self.stride, self.padding, self.dilation)
        new_mask = count.clamp(0, 1)
        ratio = ones[0].numel() / (count + 1e-8) * new_mask
        raw = super().forward(x * mask)
        if self.bias is None:
            output = raw * ratio
        else:
            bias = self.bias.view(1, -1, 1, 1)
            output = ((raw - bias) * ratio + bias) * new_mask
        return (output, new_mask) if self.return_mask else output


class TwoConvLookAlike(nn.Module):
    """A common community layer: a second convolution of ones counts, and the result is divided by the count alone."""

    def __init__(self, in_channels, out_channels, *args, bias=True, **kwargs):
        super().__init__()
        self.input_conv = nn.Conv2d(in_channels, out_channels, *args, bias=bias, **kwargs)
        self.mask_conv = nn.Conv2d(in_channels, out_channels, *args, bias=False, **kwargs)
        nn.init.ones_(self.mask_conv.weight).requires_grad_(False)

    def forward(self, x, mask):
        raw = self.input_conv(x * mask)
        bias = 0 if self.input_conv.bias is None else self.input_conv.bias.view(1, -1, 1, 1)
        count = self.mask_conv(mask)
        hole = count == 0
        output = ((raw - bias) / count.masked_fill(hole, 1.0) + bias).masked_fill(hole, 0.0)
        return output, (~hole).to(x.dtype)


def case(multi_channel, channels=4, seed=0):
    torch.manual_seed(seed)
    x = torch.randn(2, channels, 11, 9, dtype=torch.float64)
    mask = (torch.rand(2, channels if multi_channel else 1, 11, 9) > 0.7).double()
    return x, mask


@pytest.mark.parametrize("multi_channel", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("geometry", [{"padding": 1}, {"stride": 2, "padding": 2}, {"dilation": 2, "padding": 0}])
def test_numbers_and_state_dict_equal_the_look_alike(multi_channel, bias, geometry):
    options = dict(multi_channel=multi_channel, return_mask=True, bias=bias, dtype=torch.float64, **geometry)
    theirs = WindowLookAlike(4, 6, 3, **options)
    ours = msa_ops.PartialConv2d(4, 6, 3, **options)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x, mask = case(multi_channel)
    for mask_in in (mask, None):
        (output, new_mask), (wanted, wanted_mask) = ours(x, mask_in), theirs(x, mask_in)
        torch.testing.assert_close(output, wanted, rtol=1e-7, atol=1e-7)  # theirs adds 1e-8 to the count
        assert new_mask.shape[1] == wanted_mask.shape[1]
        assert torch.equal(new_mask.double(), wanted_mask.expand_as(new_mask))


def test_no_mask_means_all_valid_whatever_came_before():
    layer = msa_ops.PartialConv2d(4, 3, 3, padding=1)
    x, mask = (t.float() for t in case(False))
    before = layer(x)
    layer(x, mask)
    assert torch.equal(layer(x), before)


def test_a_mask_of_batch_one_serves_the_batch():
    layer = msa_ops.PartialConv2d(4, 3, 3, padding=1)
    x, mask = (t.float() for t in case(False))
    assert torch.equal(layer(x, mask[:1]), layer(x, mask[:1].repeat(2, 1, 1, 1)))


def test_the_returned_multi_channel_mask_is_a_view_and_feeds_the_next_layer_at_the_price_of_a_plane():
    first = msa_ops.PartialConv2d(4, 5, 3, multi_channel=True, return_mask=True)
    second = msa_ops.PartialConv2d(5, 2, 3, multi_channel=True, return_mask=True)
    x, mask = (t.float() for t in case(True))
    y, m = first(x, mask)
    assert m.shape == y.shape
    assert m.stride(1) == 0
    expanded, dense = second(y, m)[0], second(y, m.contiguous())[0]
    torch.testing.assert_close(expanded, dense)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_modes_pad_image_and_mask_alike(mode):
    layer = msa_ops.PartialConv2d(4, 3, 3, padding=1, padding_mode=mode, return_mask=True, dtype=torch.float64)
    x, mask = case(False)
    padded, padded_mask = (F.pad(t, (1, 1, 1, 1), mode=mode) for t in (x, mask))
    wanted, wanted_mask = msa_ops.partial_conv2d(padded, padded_mask, layer.weight, layer.bias)
    output, new_mask = layer(x, mask)
    torch.testing.assert_close(output, wanted)
    assert torch.equal(new_mask, wanted_mask)


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
