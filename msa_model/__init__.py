"""The multistage attention network for image inpainting, built on :mod:`msa_ops`."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .attention_block import AttentionBlock
    from .generator import Generator, GeneratorConfig
    from .inpainting import inpaint
    from .masks import free_form_mask

__all__ = ["AttentionBlock", "Generator", "GeneratorConfig", "free_form_mask", "inpaint"]

_HOMES = {
    "AttentionBlock": "attention_block",
    "Generator": "generator",
    "GeneratorConfig": "generator",
    "free_form_mask": "masks",
    "inpaint": "inpainting",
}


def __getattr__(name: str):
    # Imported on first use, so that the command line answers --help without waiting for torch.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
