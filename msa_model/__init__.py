"""The multistage attention network for image inpainting, built on `msa_ops`.

The packages, in the order in which they may import one another: `nn` and `data`, `inpainting`, `evaluate`, `train`,
`cli`.
"""

from typing import TYPE_CHECKING

from ._lazy import lazy_names

if TYPE_CHECKING:
    from .data.brush import free_form_mask
    from .inpainting import inpaint
    from .nn.attention_block import AttentionBlock
    from .nn.discriminator import Discriminator
    from .nn.generator import Generator, GeneratorConfig
    from .nn.losses import InpaintingLoss
    from .nn.released import load_released
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

# Imported on first use, so that the command line answers --help without waiting for torch.
__getattr__ = lazy_names(
    __name__,
    {
        "AttentionBlock": "nn.attention_block",
        "Discriminator": "nn.discriminator",
        "Generator": "nn.generator",
        "GeneratorConfig": "nn.generator",
        "InpaintingLoss": "nn.losses",
        "demo_weights": "weights",
        "free_form_mask": "data.brush",
        "inpaint": "inpainting",
        "load_released": "nn.released",
    },
)
