"""PartialConv2d against a look-alike of NVIDIA's layer."""

import pytest
import torch
import torch.nn.functional as F

import msa_ops

from ..support.look_alikes import WindowLookAlike, case


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


def test_what_is_no_tensor_is_refused():
    layer, x = msa_ops.PartialConv2d(4, 3, 3), torch.randn(1, 4, 5, 5)
    with pytest.raises(ValueError, match="msa_ops::partial_conv2d: mask must be a tensor, got str"):
        layer(x, "mask")
    with pytest.raises(ValueError, match="msa_ops::partial_conv2d: input must be a tensor, got list"):
        layer([x])


def test_a_small_mask_of_another_dtype_stays_valid_when_it_is_padded():
    layer = msa_ops.PartialConv2d(1, 1, 3, padding=1, padding_mode="reflect", return_mask=True)
    x, mask = torch.randn(1, 1, 5, 5), torch.full((1, 1, 5, 5), 1e-200, dtype=torch.float64)
    output, new_mask = layer(x, mask)
    assert torch.equal(output, layer(x, torch.ones(1, 1, 5, 5))[0])
    assert bool((new_mask == 1).all())
