"""Fills the holes of tensors and PIL images of any size with the predictions of a generator."""

from __future__ import annotations

from typing import NoReturn, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from .data import image_modes

_MASK_DTYPES = (torch.bool, torch.uint8, torch.float64, torch.float32, torch.float16, torch.bfloat16)


@overload
def inpaint(generator: nn.Module, image: Tensor, mask: Tensor, *, invert_mask: bool = False) -> Tensor: ...


@overload
def inpaint(
    generator: nn.Module, image: Image.Image, mask: Image.Image, *, invert_mask: bool = False
) -> Image.Image: ...


def inpaint(
    generator: nn.Module, image: Tensor | Image.Image, mask: Tensor | Image.Image, *, invert_mask: bool = False
) -> Tensor | Image.Image:
    """Fills the holes of an image: `mask * image + (1 - mask) * prediction`; valid pixels keep their bits.

    Tensors follow the library's convention, PIL images that of image files:

    |        | tensors                                           | PIL images                                          |
    | ------ | ------------------------------------------------- | --------------------------------------------------- |
    | image  | (N, 3, H, W), floating, in [0, 1]; values in the  | any mode but LAB (I;16 and I hold 0 ... 65535,      |
    |        | holes are never used, not even NaN                | F holds 0 ... 1)                                    |
    | mask   | (N, 1, H, W), bool, uint8 or floating;            | same size;                                          |
    |        | **1 = valid**                                     | **white (above 127) = hole**                        |
    | result | shape, dtype and device of the image              | size, mode and alpha of the image                   |

    The generator runs on its own device and in its own dtype (under autocast if the caller has that on), in evaluation
    mode and without gradients; the training flags of its modules are restored. The prediction is clamped to [0, 1]. For
    a PIL image without any hole the generator does not run, and the result is a copy.

    Args:
        generator: `msa_model.Generator`, or any module that takes tensors `(image, mask)` as above and returns the
            prediction (N, 3, H, W).
        image: a tensor or a PIL image.
        mask: of the same kind as the image.
        invert_mask: the mask means the opposite of the above.

    Returns:
        The filled image, of the same kind as the image.

    Raises:
        ValueError: shapes, dtypes, modes or sizes do not fit; one of image and mask is a tensor, the other is not.
        FloatingPointError: the prediction is not finite. Only PIL images are checked for this.
    """
    if not isinstance(generator, nn.Module):
        _fail(f"generator must be a torch.nn.Module, got {type(generator).__name__}")
    if isinstance(image, Tensor) and isinstance(mask, Tensor):
        return _inpaint_tensors(generator, image, mask, invert_mask)
    if isinstance(image, Image.Image) and isinstance(mask, Image.Image):
        return _inpaint_pil(generator, image, mask, invert_mask)
    got = f"{type(image).__name__} and {type(mask).__name__}"
    _fail(f"image and mask must both be tensors or both be PIL images, got {got}")


def _fail(message: str) -> NoReturn:
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
        # Arithmetic (mask * image + ...) would change valid pixels: 0 * NaN is NaN, and -0.0 + 0.0 is not -0.0.
        return torch.where(valid, image, prediction.clamp(0, 1))


def _predict(generator: nn.Module, image: Tensor, valid: Tensor) -> Tensor:
    """Runs the generator in evaluation mode, on its own device and in its own dtype."""
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
        hole = image_modes.hole_pixels(mask, invert_mask)
        colours = image_modes.to_rgb(image, hole)
    except ValueError as error:
        _fail(str(error))
    if not hole.any():
        return image.copy()
    tensor = torch.from_numpy(np.ascontiguousarray(colours)).permute(2, 0, 1)[None]
    valid = torch.from_numpy(~hole)[None, None]
    filled = _inpaint_tensors(generator, tensor, valid, False)[0].permute(1, 2, 0).numpy()
    if not np.isfinite(filled).all():
        raise FloatingPointError("msa_model.inpaint: the prediction is not finite")
    return image_modes.fill(image, filled, hole)
