"""Images and masks for training and evaluation.

- `Facades`, `ImageFolder`, `MixedImages`: sources of images, ``load(index, rng)``.
- `BrushMasks`, `MaskFolder`: sources of masks, ``load(index, rng, height, width)``.
- `InpaintingData`: both together, a torch data set for training; `StepSampler` and `make_loader` feed it.
- `render_facade`, `free_form_mask`, `spread_mask`: one rendered image, one drawn mask.
- `image_files` and `image_modes`: image files on the disk, and PIL's image modes.

Everything random is a function of (seed, index, draw): neither the number of workers nor a restart changes a pixel.
"""

from typing import TYPE_CHECKING

from .._lazy import lazy_names

if TYPE_CHECKING:
    from .brush import free_form_mask, spread_mask
    from .facades import render_facade
    from .image_sources import FIRST_HELD_OUT_FACADE, PRESETS, Facades, ImageFolder, ImageSource, MixedImages, Preset
    from .mask_sources import RATIO_BINS, BlankMaskError, BrushMasks, MaskFolder, MaskSource
    from .sampling import Skipped, StepSampler, make_loader
    from .training_data import InpaintingData

__all__ = [
    "FIRST_HELD_OUT_FACADE",
    "PRESETS",
    "RATIO_BINS",
    "BlankMaskError",
    "BrushMasks",
    "Facades",
    "ImageFolder",
    "ImageSource",
    "InpaintingData",
    "MaskFolder",
    "MaskSource",
    "MixedImages",
    "Preset",
    "Skipped",
    "StepSampler",
    "free_form_mask",
    "make_loader",
    "render_facade",
    "spread_mask",
]

# Imported on first use: the command line looks at file names before it waits for torch.
__getattr__ = lazy_names(
    __name__,
    {
        "FIRST_HELD_OUT_FACADE": "image_sources",
        "PRESETS": "image_sources",
        "RATIO_BINS": "mask_sources",
        "BlankMaskError": "mask_sources",
        "BrushMasks": "mask_sources",
        "Facades": "image_sources",
        "ImageFolder": "image_sources",
        "ImageSource": "image_sources",
        "InpaintingData": "training_data",
        "MaskFolder": "mask_sources",
        "MaskSource": "mask_sources",
        "MixedImages": "image_sources",
        "Preset": "image_sources",
        "Skipped": "sampling",
        "StepSampler": "sampling",
        "free_form_mask": "brush",
        "make_loader": "sampling",
        "render_facade": "facades",
        "spread_mask": "brush",
    },
)
