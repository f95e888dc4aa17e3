"""Loads the compiled part, once, without ever failing: what is missing is remembered, with the reason. Triton is only
looked for, and imported when first used."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
from pathlib import Path

import torch

OLDEST_TORCH = (2, 11)


def _load_cpu() -> str | None:
    """Registers the operators' schemas and CPU kernels; returns why not, or None."""
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < OLDEST_TORCH:
        return f"torch {torch.__version__} is older than {'.'.join(map(str, OLDEST_TORCH))}"
    try:
        importlib.import_module("msa_ops._C")
    except ImportError as error:
        return f"the compiled module msa_ops._C does not load ({error})"
    return None


def _load_cuda(missing_cpu: str | None) -> str | None:
    """Registers the CUDA kernels where torch has CUDA; returns why not, or None. Never touches the CUDA driver."""
    if missing_cpu:
        return missing_cpu
    if torch.version.cuda is None:
        return "this torch is built without CUDA"
    library = Path(__file__).parents[1] / "_cuda.so"
    if not library.exists():
        return "msa_ops was built without CUDA (msa_ops/_cuda.so is missing)"
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        return f"msa_ops/_cuda.so does not load ({error})"
    return None


def _find_triton(missing_cpu: str | None) -> str | None:
    """Why the Triton kernels cannot be used, or None."""
    if missing_cpu:  # their operators take the schemas of the compiled ones
        return missing_cpu
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    compilers = [os.environ.get("CC"), "gcc", "clang", "cc"]
    if not any(shutil.which(name) for name in compilers if name):
        return "triton needs a C compiler when it first runs a kernel, and none was found (CC, gcc, clang, cc)"
    return None


#: Why the kernels of a backend cannot be used; None where they can.
MISSING: dict[str, str | None] = {"cpu": _load_cpu()}
MISSING["cuda"] = _load_cuda(MISSING["cpu"])
MISSING["triton"] = _find_triton(MISSING["cpu"])
