"""The multistage attention network for image inpainting, built on :mod:`msa_ops`."""

from .attention_block import AttentionBlock
from .generator import Generator, GeneratorConfig
from .inpainting import inpaint

__all__ = ["AttentionBlock", "Generator", "GeneratorConfig", "inpaint"]
