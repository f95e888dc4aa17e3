"""Every name inside msa_ops, other than the public ones, that the operator tests use."""

import importlib

from msa_ops.core import backends, eager, native
from msa_ops.shift_attention import hole as hole_attention_module  # _operand_dtype
from msa_ops.shift_attention import reference as attention_reference  # shift_attention_argmax

__all__ = [
    "MISSING",
    "attention_reference",
    "backends",
    "eager",
    "hole_attention_module",
    "native",
    "triton",
    "triton_import",
]

#: Why a backend's kernels cannot be used; None where they can.
MISSING = native.MISSING

_TRITON = {
    "attention_call": "msa_ops.shift_attention.triton.call",
    "attention_holes": "msa_ops.shift_attention.triton.holes",
    "attention_hole_kernels": "msa_ops.shift_attention.triton.hole_kernels",
    "attention_layout_kernels": "msa_ops.shift_attention.triton.layout_kernels",
    "attention_planning": "msa_ops.shift_attention.triton.planning",
    "attention_product_kernels": "msa_ops.shift_attention.triton.product_kernels",
    "attention_score_kernels": "msa_ops.shift_attention.triton.score_kernels",
    "image_layer": "msa_ops.decoder_conv.triton.image_layer",
    "partial_conv": "msa_ops.partial_conv.triton.operators",
    "decoder_conv": "msa_ops.decoder_conv.triton.operators",
}


def triton(name):
    """Returns a module that imports Triton; it is imported when a test first needs it."""
    return importlib.import_module(_TRITON[name])


def triton_import(*names):
    """Returns the lines that import these modules under these names, for code that runs in a process of its own."""
    return "\n".join(["import importlib", *(f"{name} = importlib.import_module({_TRITON[name]!r})" for name in names)])
