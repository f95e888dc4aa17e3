"""Small calls of partial_conv2d_upcat that several test files make."""

import torch

from ..support import masks
from ..support.upcat import upcat

NAMES = ("low", "skip", "weight", "bias")


def make(n=2, c1=3, c2=2, h=3, w=4, c_out=4, dtype=torch.float64, device="cpu"):
    options = {"dtype": dtype, "device": device}
    low, skip = torch.randn(n, c1, h, w, **options), torch.randn(n, c2, 2 * h, 2 * w, **options)
    return low, skip, torch.randn(c_out, c1 + c2, 3, 3, **options), torch.randn(c_out, **options)


def make_masks(low_name, skip_name, n=2, h=3, w=4, device="cpu"):
    return masks.plane(low_name, n, h, w).to(device), masks.plane(skip_name, n, 2 * h, 2 * w).to(device)


def runner(form, low_mask, skip_mask, **options):
    """backend -> the output as a function of low, skip, weight and bias."""

    def with_backend(backend):
        def call(low, skip, weight, bias=None):
            return upcat(form, low, low_mask, skip, skip_mask, weight, bias, backend=backend, **options)[0]

        return call

    return with_backend
