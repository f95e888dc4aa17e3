"""Small calls of partial_conv2d that several test files make."""

import torch

from msa_ops import partial_conv2d

NAMES = ("input", "weight", "bias")


def make(n=2, c=3, h=7, w=6, c_out=4, kernel=(3, 3), groups=1, dtype=torch.float64, device="cpu"):
    """Input, weight and bias; sizes differ from one another so that a swapped axis shows."""
    kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
    x = torch.randn(n, c, h, w, dtype=dtype, device=device)
    weight = torch.randn(c_out, c // groups, *kernel, dtype=dtype, device=device)
    return x, weight, torch.randn(c_out, dtype=dtype, device=device)


def runner(mask, *geometry, **options):
    """backend -> the output as a function of input, weight and bias."""

    def with_backend(backend):
        def call(x, weight, bias=None):
            return partial_conv2d(x, mask, weight, bias, *geometry, backend=backend, **options)[0]

        return call

    return with_backend
