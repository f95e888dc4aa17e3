"""Replacement of other projects' partial convolution layers by ours."""

from __future__ import annotations

from torch import nn

from ..partial_conv import PartialConv2d


def convert_partial_convs(module: nn.Module) -> nn.Module:
    """Replaces other projects' partial convolution layers in a model by :class:`PartialConv2d`, in place.

    It recognises two kinds of layers by their attributes and not by their names, so that it also works for models which
    this project has never seen:

    - a subclass of ``nn.Conv2d`` with the attributes ``multi_channel`` and ``return_mask`` (NVIDIA's layer and copies);
    - a module that holds two ``nn.Conv2d`` called ``input_conv`` and ``mask_conv`` and is called with ``(input, mask)``
      (a common community layer, which divides by the number of valid entries alone: ``scale="sum"``). Parameters then
      move from ``input_conv.weight`` to ``weight``.

    Parameters stay the same objects, so that optimisers keep working. Training flags, hooks, and layers shared under
    several names are kept.

    Args:
        module: any model. As with ``nn.SyncBatchNorm.convert_sync_batchnorm``, it may be such a layer itself.

    Returns:
        ``module``, or its replacement where it is such a layer itself.

    Raises:
        ValueError: if a layer cannot be replaced (parametrised weights, or groups in the second kind); names the layer.
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
