"""The partial convolution as a layer."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import checks
from .autograd import OP
from .functional import partial_conv2d


class PartialConv2d(nn.Conv2d):
    """Partial convolution layer; a drop-in for NVIDIA's ``PartialConv2d``.

    The state dict holds ``weight`` and ``bias`` only. Numbers equal NVIDIA's for binary masks in both modes. Two
    differences are intended: ``mask_in=None`` always means all valid (not the last mask seen), and with a
    ``padding_mode`` other than zeros the mask is padded the same way as the image, so that a copied pixel is as valid
    as its original.

    Args:
        *args: those of :class:`torch.nn.Conv2d`.
        multi_channel: masks have one plane per channel (N, C, H, W), and so has the returned mask (an expanded view).
            Otherwise masks are one plane (N, 1, H, W).
        return_mask: :meth:`forward` returns ``(output, new_mask)`` instead of the output.
        scale: as for :func:`msa_ops.partial_conv2d`.
        backend: as for :func:`msa_ops.partial_conv2d`.
        **kwargs: those of :class:`torch.nn.Conv2d`.
    """

    def __init__(
        self,
        *args: Any,
        multi_channel: bool = False,
        return_mask: bool = False,
        scale: str = "window",
        backend: str = "auto",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.multi_channel = multi_channel
        self.return_mask = return_mask
        self.scale = scale
        self.backend = backend

    # The layer is called like NVIDIA's, which takes a mask and may return one; nn.Conv2d's is not.
    def forward(  # type: ignore[override]
        self, input: Tensor, mask_in: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Convolves the valid pixels.

        Args:
            input: (N, C, H, W).
            mask_in: (N or 1, 1 or C, H, W), 1 = valid, 0 = hole; None: all valid.

        Returns:
            The output (N, C_out, H', W'); with ``return_mask`` also the new mask (N, 1 or C_out, H', W').
        """
        checks.check_tensor(OP, "input", input)
        if mask_in is None:
            ones = torch.ones((), dtype=input.dtype, device=input.device)
            mask = ones.expand(input.shape[0], 1, *input.shape[2:])
        elif checks.check_tensor(OP, "mask", mask_in).dim() == 4 and mask_in.shape[0] == 1:
            mask = mask_in.expand(input.shape[0], -1, -1, -1)
        else:
            mask = mask_in
        if self.multi_channel and mask.dim() == 4 and mask.shape[1] == 1:
            mask = mask.expand(-1, self.in_channels, -1, -1)

        padding = self.padding
        if self.padding_mode != "zeros":
            margins = self._reversed_padding_repeated_twice
            input = F.pad(input, margins, mode=self.padding_mode)
            # As 0 and 1: a small number of another dtype could become 0.
            mask = F.pad(checks.as_bool(mask).to(input.dtype), margins, mode=self.padding_mode)
            padding = (0, 0)
        output, new_mask = partial_conv2d(
            input,
            mask,
            self.weight,
            self.bias,
            self.stride,
            padding,
            self.dilation,
            self.groups,
            scale=self.scale,
            input_is_masked=mask_in is None,
            backend=self.backend,
        )
        if not self.return_mask:
            return output
        return output, new_mask.expand(-1, self.out_channels, -1, -1) if self.multi_channel else new_mask

    def extra_repr(self) -> str:
        extras = [f"multi_channel={self.multi_channel}", f"return_mask={self.return_mask}"]
        if self.scale != "window":
            extras.append(f"scale={self.scale!r}")
        return ", ".join([super().extra_repr(), *extras])
