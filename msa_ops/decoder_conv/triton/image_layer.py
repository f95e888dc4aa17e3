"""Gradients of a decoder layer of up to four output channels, the one that makes the image, in one pass over the maps.

In a library's convolution the 3×3 windows over the upsampled map fill three columns of a matrix product whose tiles
have sixteen or more, and the gradient, the map and the skip are read many times. Here a row of the products is a
*small* pixel (i, j). The outputs that read it lie at (2i - 1 + r, 2j - 1 + s) with r, s in 0..3. With the scaled
gradient G = ratio ⊙ dY of those 16 outputs as one row of 16·C_out elements,

    d low = G E        E[r, s, o][c] = Σ of the taps (ky, kx) of the kernel with r in {2 - ky, 3 - ky}, s likewise
    dE    = Gᵀ low     and the gradient of tap (ky, kx) is the sum of the four dE that it went into
    dX    = Gᵀ X       with X the 16 pixels (2i - 1 + a, 2j - 1 + b) of the skip: tap (ky, kx) of output (r, s), for the
                       four outputs that the small pixel owns (r, s in {1, 2}), reads a = r - 1 + ky, b = s - 1 + kx

Programs keep dE and dX in registers while they go through their pixels. Their sums are added up in a fixed order, and a
second kernel makes the gradients of the taps from them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...core.triton.arguments import convolution_precision, map_strides, mask_strides, weight_strides
from ...core.triton.launch import launch
from ...core.triton.tiles import cdiv, next_power_of_2
from .image_layer_kernels import fold_kernel, gradients_kernel

#: Most output channels, and channels of the skip: 16 positions of each are one block.
MOST_CHANNELS = 4
#: Most channels of the small map, which are one block.
MOST_LOW_CHANNELS = 128
PROGRAMS, BLOCK = 132, 64


def takes(low: Tensor, skip: Tensor, weight: Tensor, needed: list[bool]) -> bool:
    """Tells whether `backward` computes these gradients. It has none of the skip, since the image needs no gradient."""
    small = weight.shape[0] <= MOST_CHANNELS and skip.shape[1] <= MOST_CHANNELS
    return small and low.shape[1] <= MOST_LOW_CHANNELS and low.numel() > 0 and not needed[1]


def backward(
    grad_output: Tensor,
    low: Tensor,
    low_mask: Tensor,
    skip: Tensor,
    skip_mask: Tensor,
    weight: Tensor,
    ratio: Tensor,
    low_is_masked: bool,
    needed: list[bool],
) -> tuple[Tensor | None, None, Tensor | None, Tensor | None]:
    """Returns the gradients of low, skip (always None), weight and bias; None where not needed."""
    n, c1, h, w = low.shape
    c2, out_channels = skip.shape[1], weight.shape[0]
    block_c = max(16, next_power_of_2(c1))
    pixels = n * h * w
    programs = min(PROGRAMS, cdiv(pixels, BLOCK))
    grad_low = torch.empty_like(low, memory_format=torch.channels_last) if needed[0] else None
    grad_weight = torch.empty_like(weight, memory_format=torch.channels_last)
    grad_bias = weight.new_empty(out_channels) if needed[3] else None
    sums = low.new_empty((programs, 64 * (block_c + 64 + 1)), dtype=torch.float32)
    channels = {"low_channels": c1, "skip_channels": c2, "out_channels": out_channels, "BLOCK_C": block_c}
    launch(
        gradients_kernel, (programs,), low.device, grad=grad_output, **map_strides("grad", grad_output), ratios=ratio,
        low=low, **map_strides("low", low), low_mask=low_mask, **mask_strides("low_mask", low_mask), skip=skip,
        **map_strides("skip", skip), skip_mask=skip_mask, **mask_strides("skip_mask", skip_mask), weight=weight,
        **weight_strides(weight), grad_low=grad_low, sums=sums, height=h, width=w, pixels=pixels, **channels,
        NEEDS_LOW=needed[0], CLEARS_LOW=not low_is_masked, BLOCK_M=BLOCK, PRECISION=convolution_precision(low.dtype),
        num_warps=8, num_stages=1,
    )  # fmt: skip
    low_sum, skip_sum, bias_sum = sums.sum(0).split([64 * block_c, 64 * 64, 64])
    launch(
        fold_kernel, (9, out_channels), low.device, low_sum=low_sum, skip_sum=skip_sum, bias_sum=bias_sum,
        grad_weight=grad_weight, **weight_strides(grad_weight), grad_bias=grad_bias, **channels, HAS_BIAS=needed[3],
    )  # fmt: skip
    return grad_low, None, grad_weight if needed[2] else None, grad_bias
