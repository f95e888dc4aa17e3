"""nn.Module faces of the operators, and the swap of other projects' partial convolution layers for ours."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .partial_conv import partial_conv2d


class PartialConv2d(nn.Conv2d):
    """Partial convolution layer; a drop-in for NVIDIA's ``PartialConv2d``.

    Takes the arguments of :class:`torch.nn.Conv2d`, and by keyword:

    Args:
        multi_channel: masks have one plane per channel (N, C, H, W), and so has the returned mask (an expanded view).
            Otherwise masks are one plane (N, 1, H, W).
        return_mask: :meth:`forward` returns ``(output, new_mask)`` instead of the output.
        scale, backend: as for :func:`msa_ops.partial_conv2d`.

    The state dict holds ``weight`` and ``bias`` only. Numbers equal NVIDIA's for binary masks in both modes. Two
    differences are meant: ``mask_in=None`` always means all valid (not the last mask seen), and with a ``padding_mode``
    other than zeros the mask is padded the same way as the image, so that a copied pixel is as valid as its original.
    """

    def __init__(
        self,
        *args,
        multi_channel: bool = False,
        return_mask: bool = False,
        scale: str = "window",
        backend: str = "auto",
        **kwargs,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.multi_channel = multi_channel
        self.return_mask = return_mask
        self.scale = scale
        self.backend = backend

    def forward(self, input: Tensor, mask_in: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """
        Args:
            input: (N, C, H, W).
            mask_in: (N or 1, 1 or C, H, W), 1 = valid, 0 = hole; None: all valid.

        Returns:
            The output (N, C_out, H', W'); with ``return_mask`` also the new mask (N, 1 or C_out, H', W').
        """
        all_valid = mask_in is None
        mask = torch.ones((), dtype=input.dtype, device=input.device) if all_valid else mask_in
        if all_valid:
            mask = mask.expand(input.shape[0], 1, *input.shape[2:])
        elif mask.dim() == 4 and mask.shape[0] == 1:
            mask = mask.expand(input.shape[0], -1, -1, -1)
        if self.multi_channel and mask.dim() == 4 and mask.shape[1] == 1:
            mask = mask.expand(-1, self.in_channels, -1, -1)

        padding = self.padding
        if self.padding_mode != "zeros":
            margins = self._reversed_padding_repeated_twice
            input = F.pad(input, margins, mode=self.padding_mode)
            mask = F.pad(mask.to(input.dtype), margins, mode=self.padding_mode)
            padding = 0
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
            input_is_masked=all_valid,
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


def convert_partial_convs(module: nn.Module) -> nn.Module:
    """Swaps every look-alike of a partial convolution layer in ``module`` for :class:`PartialConv2d`, in place.

    Two kinds are known, by their shape and not by their name, so that models this project has never seen are served:

    - a subclass of ``nn.Conv2d`` with the attributes ``multi_channel`` and ``return_mask`` (NVIDIA's layer and copies);
    - a module that holds two ``nn.Conv2d`` called ``input_conv`` and ``mask_conv`` and is called with ``(input, mask)``
      (a common community layer, which divides by the number of valid entries alone: ``scale="sum"``). Parameters then
      move from ``input_conv.weight`` to ``weight``.

    Parameters stay the same objects (optimisers keep working), as do training flag, hooks, and layers shared under
    several names.

    Args:
        module: any model; like ``nn.SyncBatchNorm.convert_sync_batchnorm``, a look-alike itself may be passed.

    Returns:
        ``module``, or its replacement where it is a look-alike itself.

    Raises:
        ValueError: a look-alike that cannot be swapped (parametrised weights, or groups in the second kind), by name.
    """
    replacements: dict[nn.Module, nn.Module] = {}
    for name, layer in module.named_modules():
        if replacement := _replacement(layer, name or type(layer).__name__):
            replacements[layer] = replacement
    for parent in list(module.modules()):
        for name, child in parent._modules.items():
            if child in replacements:
                parent._modules[name] = replacements[child]
    return replacements.get(module, module)


def _replacement(layer: nn.Module, name: str) -> PartialConv2d | None:
    if isinstance(layer, PartialConv2d):
        return None
    if isinstance(layer, nn.Conv2d) and hasattr(layer, "multi_channel") and hasattr(layer, "return_mask"):
        return _like(layer, layer, name, bool(layer.multi_channel), bool(layer.return_mask), "window")
    conv, mask_conv = getattr(layer, "input_conv", None), getattr(layer, "mask_conv", None)
    if isinstance(conv, nn.Conv2d) and isinstance(mask_conv, nn.Conv2d):
        if conv.groups != 1:
            raise ValueError(
                f"msa_ops.convert_partial_convs: {name} counts valid entries per group (groups={conv.groups}), "
                "which PartialConv2d does not"
            )
        return _like(layer, conv, name, True, True, "sum")
    return None


def _like(
    layer: nn.Module, conv: nn.Conv2d, name: str, multi_channel: bool, return_mask: bool, scale: str
) -> PartialConv2d:
    if "weight" not in conv._parameters:
        raise ValueError(
            f"msa_ops.convert_partial_convs: the weight of {name} is parametrised (weight or spectral norm); "
            "remove the parametrisation, convert, and apply it again"
        )
    swapped = PartialConv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        conv.stride,
        conv.padding,
        conv.dilation,
        conv.groups,
        bias=conv.bias is not None,
        padding_mode=conv.padding_mode,
        device="meta",
        multi_channel=multi_channel,
        return_mask=return_mask,
        scale=scale,
    )
    swapped.weight, swapped.bias = conv.weight, conv.bias
    swapped.training = layer.training
    for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
        setattr(swapped, hooks, getattr(layer, hooks))
    return swapped
