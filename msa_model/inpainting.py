"""The composite: valid pixels as they were, holes from the generator. Tensors or PIL images, of any size."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from . import images

_MASK_DTYPES = (torch.bool, torch.uint8, torch.float64, torch.float32, torch.float16, torch.bfloat16)


def inpaint(
    generator: nn.Module, image: Tensor | Image.Image, mask: Tensor | Image.Image, *, invert_mask: bool = False
) -> Tensor | Image.Image:
    """Fills the holes of an image: ``mask * image + (1 - mask) * prediction``, with valid pixels bit for bit.

    Tensors follow the library's convention, PIL images that of files:

    ========  ==========================================================  ==============================================
    ..        tensors                                                     PIL images
    ========  ==========================================================  ==============================================
    image     (N, 3, H, W), floating, in [0, 1]; values in the holes are  any mode but LAB (I;16 and I hold 0 ... 65535,
              never used, not even NaN                                    F holds 0 ... 1)
    mask      (N, 1, H, W), bool, uint8 or floating; **1 = valid**        same size; **white (above 127) = hole**
    result    as image: shape, dtype, device                              as image: size and mode; alpha is carried over
    ========  ==========================================================  ==============================================

    The generator runs on its own device and in its own dtype (autocast, where the caller has it on, is honoured), in
    evaluation mode, without gradients; its modules' training flags are restored. The prediction is clamped to [0, 1].
    Of a PIL image without any hole a copy is returned and the generator does not run.

    Args:
        generator: :class:`msa_model.Generator`, or any module that is called as ``generator(image, mask)``, tensors as
            above, and returns the prediction (N, 3, H, W).
        image, mask: both tensors or both PIL images.
        invert_mask: the mask means the opposite of the above.

    Raises:
        ValueError: shapes, dtypes, modes or sizes that do not fit; a tensor beside a PIL image.
        FloatingPointError: PIL images only: the prediction is not finite (for tensors that is not looked at).
    """
    if not isinstance(generator, nn.Module):
        _fail(f"generator must be a torch.nn.Module, got {type(generator).__name__}")
    if isinstance(image, Tensor) and isinstance(mask, Tensor):
        return _inpaint_tensors(generator, image, mask, invert_mask)
    if isinstance(image, Image.Image) and isinstance(mask, Image.Image):
        return _inpaint_pil(generator, image, mask, invert_mask)
    got = f"{type(image).__name__} and {type(mask).__name__}"
    return _fail(f"image and mask must both be tensors or both be PIL images, got {got}")


def _fail(message: str) -> None:
    raise ValueError(f"msa_model.inpaint: {message}")


def _inpaint_tensors(generator: nn.Module, image: Tensor, mask: Tensor, invert_mask: bool) -> Tensor:
    if image.dim() != 4 or image.shape[1] != 3:
        _fail(f"image must have shape (N, 3, H, W), got {tuple(image.shape)}")
    if not image.dtype.is_floating_point:
        _fail(f"image must have a floating-point dtype, values in [0, 1], got {image.dtype}")
    n, _, h, w = image.shape
    if mask.shape != (n, 1, h, w):
        _fail(f"mask must have shape (N, 1, H, W) with N={n}, H={h}, W={w}, got {tuple(mask.shape)}")
    if mask.dtype not in _MASK_DTYPES:
        _fail(f"mask must be bool, uint8 or floating-point, got {mask.dtype}")
    if not image.numel():
        return image.clone()
    with torch.no_grad():
        valid = (mask == 0 if invert_mask else mask != 0).to(image.device)
        prediction = _predict(generator, torch.where(valid, image, 0), valid).to(image.device, image.dtype)
        # Not mask * image + ...: 0 * NaN is NaN, and -0.0 + 0.0 is not -0.0.
        return torch.where(valid, image, prediction.clamp(0, 1))


def _predict(generator: nn.Module, image: Tensor, valid: Tensor) -> Tensor:
    """The generator's output, on its device and in its dtype; evaluation mode while it runs."""
    weight = next((p for p in generator.parameters() if p.is_floating_point()), image)
    image, mask = image.to(weight.device, weight.dtype), valid.to(weight.device, weight.dtype)
    training = [module for module in generator.modules() if module.training]
    generator.eval()
    try:
        prediction = generator(image, mask)
    finally:
        for module in training:  # one by one: part of a network may be frozen in evaluation mode
            module.training = True
    if prediction.shape != image.shape:
        _fail(f"the generator must return shape {tuple(image.shape)}, got {tuple(prediction.shape)}")
    return prediction


def _inpaint_pil(generator: nn.Module, image: Image.Image, mask: Image.Image, invert_mask: bool) -> Image.Image:
    if mask.size != image.size:
        _fail(f"mask must have the size of the image, {image.size}, got {mask.size}")
    try:
        hole = images.hole_pixels(mask, invert_mask)
        colours = images.to_rgb(image, hole)
    except ValueError as error:
        _fail(str(error))
    if not hole.any():
        return image.copy()
    tensor = torch.from_numpy(np.ascontiguousarray(colours)).permute(2, 0, 1)[None]
    valid = torch.from_numpy(~hole)[None, None]
    filled = _inpaint_tensors(generator, tensor, valid, False)[0].permute(1, 2, 0).numpy()
    if not np.isfinite(filled).all():
        raise FloatingPointError("msa_model.inpaint: the prediction is not finite")
    return images.fill(image, filled, hole)
