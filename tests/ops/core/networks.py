"""Functions with the convolution operators inside, for the tests of torch's transformations."""

import torch

from msa_ops import partial_conv2d

from ..support import masks
from ..support.upcat import upcat


def encoder(x, mask, weight, bias):
    hidden, hidden_mask = partial_conv2d(x, mask, weight, bias, 2, 1)
    return hidden.relu() * 2, hidden_mask


def grouped(x, mask, weight, bias):
    return partial_conv2d(x, [(1, mask), (x.shape[1] - 1, mask.flip(3))], weight, bias, padding="same")


def expanded(x, mask, weight, bias):
    return partial_conv2d(x, mask.expand_as(x), weight, bias, padding=1, scale="sum", input_is_masked=True)


def upsampled(t):
    if torch.compiler.is_exporting():  # of repeat_interleave torch 2.11 exports guards on the order of strides
        return torch.nn.functional.conv_transpose2d(t, t.new_ones(1, 1, 2, 2), stride=2)
    return t.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


def decoder(form):
    def call(x, mask, weight, bias):
        skip, skip_mask = upsampled(x[:, :1]), upsampled(mask)
        return upcat(form, x[:, 1:], mask, skip, skip_mask, weight, bias)

    return call


NETWORKS = {
    "encoder": encoder,
    "grouped": grouped,
    "expanded": expanded,
    "decoder_by_phases": decoder("phases"),
    "decoder_by_concatenation": decoder("concatenation"),
}


def sample(n, h, w, device):
    x = torch.randn(n, 3, h, w, device=device)
    mask = masks.random_plane(0.5, n, h, w).to(device).float()
    return x, mask, torch.randn(4, 3, 3, 3, device=device), torch.randn(4, device=device)
