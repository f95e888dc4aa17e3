"""Who can take which inputs, why not, and how ``backend="auto"`` picks.

``auto`` picks the first of `preferred` that can take the input, and the plain PyTorch reference where none can. Any
other name is taken at its word: if that backend cannot take the input, the call fails with all the reasons.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import torch

from . import native

BACKENDS = ("auto", "reference", "cpu", "cuda", "triton")
HALVES = (torch.float16, torch.bfloat16)
DTYPES = {
    "cpu": (torch.float64, torch.float32, *HALVES),
    "cuda": (torch.float64, torch.float32, *HALVES),
    "triton": (torch.float32, *HALVES),
}

#: Operators that have kernels, per backend that is not the reference.
KERNELS: dict[str, set[str]] = {
    "cpu": {"partial_conv2d", "partial_conv2d_upcat", "shift_attention"},
    "cuda": {"partial_conv2d", "partial_conv2d_upcat", "shift_attention"},
    "triton": {"partial_conv2d", "partial_conv2d_upcat", "shift_attention"},
}
OPERATORS = ("partial_conv2d", "partial_conv2d_upcat", "shift_attention")

#: (operator, backend) -> what else the backend wants of the operator's arguments: the reasons against them. Called with
#: as many of the arguments as are known.
CONDITIONS: dict[tuple[str, str], Callable[..., list[str]]] = {}


def preferred(op: str, tensor: torch.Tensor) -> tuple[str, ...]:
    """The backends that ``auto`` tries, best first. On CUDA the Triton kernels for float16 and bfloat16, and those of
    attention for float32 too; else the compiled kernels of the device, cuDNN among them. Measured on an H100
    (docs/performance.md)."""
    dtypes = (torch.float32, *HALVES) if op == "shift_attention" else HALVES
    if tensor.device.type == "cuda" and tensor.dtype in dtypes and op in KERNELS["triton"]:
        return "triton", "cuda"
    return (tensor.device.type,) if tensor.device.type in ("cpu", "cuda") else ()


def not_supported_reasons(op: str, backend: str, *inputs: object) -> list[str]:
    """Why ``backend`` cannot run operator ``op`` on these inputs; an empty list if it can.

    Args:
        op: name of an operator of this package, for example ``"partial_conv2d"``.
        backend: ``"auto"``, ``"reference"``, ``"cpu"``, ``"cuda"`` or ``"triton"``.
        inputs: the operator's arguments in their order, or the first of them; none: what holds for all.

    Raises:
        ValueError: if the operator or the backend is not known.
    """
    if op not in OPERATORS:
        raise ValueError(f"unknown operator {op!r}; known are {', '.join(OPERATORS)}")
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; known are {', '.join(BACKENDS)}")
    if backend in ("auto", "reference"):
        return []
    reasons = []
    if op not in KERNELS[backend]:
        reasons.append(f"{op} has no {backend} kernels")
    missing = native.MISSING.get(backend)
    if missing is not None:
        reasons.append(missing)
    device_type = "cpu" if backend == "cpu" or (backend == "triton" and interpreted()) else "cuda"
    tensors = [x for x in inputs if isinstance(x, torch.Tensor)]
    for tensor in tensors:
        if tensor.device.type != device_type:
            reasons.append(f"it runs on {device_type} tensors, got one on {tensor.device}")
            break
    for tensor in tensors:
        if tensor.dtype not in DTYPES[backend] and tensor.dtype not in (torch.bool, torch.uint8):
            reasons.append(f"it has no kernel for {tensor.dtype}")
            break
    if backend == "triton" and interpreted() and any(tensor.dtype == torch.bfloat16 for tensor in tensors):
        reasons.append("Triton's interpreter cannot multiply torch.bfloat16")
    if tensors and (op, backend) in CONDITIONS:
        reasons += CONDITIONS[op, backend](*inputs)
    return reasons


def interpreted() -> bool:
    """Whether Triton's interpreter stands in for a GPU, for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def choose(op: str, backend: str, *inputs: object) -> str:
    """The backend that runs: ``backend`` itself if it can, the rule above for ``"auto"``.

    Raises:
        ValueError: unknown names.
        RuntimeError: a named backend that cannot take the inputs, with every reason.
    """
    if backend == "auto":
        first = next(x for x in inputs if isinstance(x, torch.Tensor))
        able = (name for name in preferred(op, first) if not not_supported_reasons(op, name, *inputs))
        return next(able, "reference")
    reasons = not_supported_reasons(op, backend, *inputs)
    if reasons:
        raise RuntimeError(f"msa_ops::{op}: backend {backend!r} cannot run: {'; '.join(reasons)}")
    return backend
