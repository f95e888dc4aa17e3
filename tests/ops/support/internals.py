"""Every name inside msa_ops, other than the public ones, that the operator tests use."""

import importlib

from msa_ops import backends, native
from msa_ops import partial_conv_upcat as decoder_form  # MIN_SMALL_PIXELS, phases_win
from msa_ops import pixel_attention as hole_attention_module  # _operand_dtype
from msa_ops.reference import pixel_attention as attention_reference  # shift_attention_argmax

__all__ = ["MISSING", "attention_reference", "backends", "decoder_form", "hole_attention_module", "native", "triton"]

#: Why a backend's kernels cannot be used; None where they can.
MISSING = native.MISSING
#: The Python module whose import loads the compiled operators.
COMPILED = "msa_ops._C"

_TRITON = {
    "attention_hole_calls": "msa_ops.triton.attention_holes",
    "attention_holes": "msa_ops.triton.attention_holes",
    "attention_layout": "msa_ops.triton.attention_layout",
    "attention_plan": "msa_ops.triton.attention_plan",
    "attention_products": "msa_ops.triton.attention_products",
    "attention": "msa_ops.triton.pixel_attention",
    "attention_scores": "msa_ops.triton.attention_scores",
    "image_layer": "msa_ops.triton.image_layer",
    "partial_conv": "msa_ops.triton.partial_conv",
    "upcat": "msa_ops.triton.partial_conv",
}


def triton(name):
    """A module of Triton kernels, imported when a test first needs it."""
    return importlib.import_module(_TRITON[name])


def triton_import(*names):
    """The lines that import these modules under these names, for code that runs in a process of its own."""
    return "\n".join(f"import {_TRITON[name]} as {name}" for name in names)
