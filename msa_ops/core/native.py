"""Loads the compiled libraries, once, and never fails: what is missing is remembered with the reason.

Triton is only looked for here, and imported when it is first used.

Environment:
    MSA_OPS_LIBRARY_DIR: the folder that ``_cpu.so`` and ``_cuda.so`` are loaded from in place of the package's own;
        for tests of another build (see ``MSA_OPS_PORTABLE`` in setup.py).
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
from importlib.resources import files
from pathlib import Path

import torch

OLDEST_TORCH = (2, 11)


def library_folder() -> Path:
    """The folder that holds the compiled libraries."""
    return Path(os.environ.get("MSA_OPS_LIBRARY_DIR") or str(files("msa_ops")))


def _load(library: Path) -> str | None:
    """Loads a library, which registers its operators with torch; returns why not, or None."""
    try:
        torch.ops.load_library(str(library))
    except OSError as error:  # newer torches keep the loader's own words in the cause
        return f"msa_ops/{library.name} does not load ({error.__cause__ or error})"
    return None


def _load_cpu() -> str | None:
    """Registers the operators' schemas and CPU kernels; returns why not, or None."""
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < OLDEST_TORCH:
        return f"torch {torch.__version__} is older than {'.'.join(map(str, OLDEST_TORCH))}"
    return _load(library_folder() / "_cpu.so")


def _load_cuda(missing_cpu: str | None) -> str | None:
    """Registers the CUDA kernels where torch has CUDA; returns why not, or None. Never touches the CUDA driver."""
    if missing_cpu:
        return missing_cpu
    if torch.version.cuda is None:
        return "this torch is built without CUDA"
    library = library_folder() / "_cuda.so"
    if not library.exists():
        return "msa_ops was built without CUDA (msa_ops/_cuda.so is missing)"
    return _load(library)


def _find_triton(missing_cpu: str | None) -> str | None:
    """Why the Triton kernels cannot be used, or None."""
    if missing_cpu:  # the Triton operators have the schemas of the compiled ones
        return missing_cpu
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    compilers = [os.environ.get("CC"), "gcc", "clang", "cc"]
    if not any(shutil.which(name) for name in compilers if name):
        return "triton needs a C compiler when it first runs a kernel, and none was found (CC, gcc, clang, cc)"
    return None


def build_facts() -> dict[str, str]:
    """What the compiled libraries were built with, and the widest instructions of this processor.

    Only where ``_cpu.so`` loads.
    """
    library = ctypes.CDLL(str(library_folder() / "_cpu.so"))
    library.msa_ops_build_facts.restype = library.msa_ops_instruction_set.restype = ctypes.c_char_p
    facts = dict(line.split("\t") for line in library.msa_ops_build_facts().decode().split("\n"))
    return facts | {"instruction_set": library.msa_ops_instruction_set().decode()}


#: Why the kernels of a backend cannot be used; None where they can.
MISSING: dict[str, str | None] = {"cpu": _load_cpu()}
MISSING["cuda"] = _load_cuda(MISSING["cpu"])
MISSING["triton"] = _find_triton(MISSING["cpu"])
