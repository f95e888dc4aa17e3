"""The multistage attention network for image inpainting, built on :mod:`msa_ops`."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .attention_block import AttentionBlock
    from .discriminator import Discriminator
    from .generator import Generator, GeneratorConfig
    from .inpainting import inpaint
    from .losses import InpaintingLoss
    from .masks import free_form_mask
    from .released import load_released
    from .weights import demo_weights

__all__ = [
    "AttentionBlock",
    "Discriminator",
    "Generator",
    "GeneratorConfig",
    "InpaintingLoss",
    "demo_weights",
    "free_form_mask",
    "inpaint",
    "load_released",
]

_HOMES = {
    "AttentionBlock": "attention_block",
    "Discriminator": "discriminator",
    "Generator": "generator",
    "GeneratorConfig": "generator",
    "InpaintingLoss": "losses",
    "demo_weights": "weights",
    "free_form_mask": "masks",
    "inpaint": "inpainting",
    "load_released": "released",
}


def __getattr__(name: str):
    # Imported on first use, so that the command line answers --help without waiting for torch.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
