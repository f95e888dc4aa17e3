"""Who can take which inputs, why not, and how ``backend="auto"`` picks.

``auto`` picks the compiled kernels of the input's device where they can take the input, and the plain PyTorch
reference elsewhere. Any other name is taken at its word: if that backend cannot take the input, the call fails with all
the reasons.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from . import native

BACKENDS = ("auto", "reference", "cpu", "cuda", "triton")
NATIVE_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

#: Operators that have kernels, per backend that is not the reference.
KERNELS: dict[str, set[str]] = {
    "cpu": {"partial_conv2d", "partial_conv2d_upcat", "shift_attention"},
    "cuda": {"partial_conv2d", "partial_conv2d_upcat"},
    "triton": set(),
}
OPERATORS = ("partial_conv2d", "partial_conv2d_upcat", "shift_attention")

#: Operators may add conditions of their own: (backend, tensors) -> reasons.
EXTRA_CONDITIONS: dict[str, Callable[[str, Sequence[torch.Tensor]], list[str]]] = {}


def not_supported_reasons(op: str, backend: str, *inputs: object) -> list[str]:
    """Why ``backend`` cannot run operator ``op`` on these inputs; an empty list if it can.

    Args:
        op: name of an operator of this package, for example ``"partial_conv2d"``.
        backend: ``"auto"``, ``"reference"``, ``"cpu"``, ``"cuda"`` or ``"triton"``.
        inputs: the operator's arguments; only the tensors among them count.

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
    device_type = "cpu" if backend == "cpu" else "cuda"
    tensors = [x for x in inputs if isinstance(x, torch.Tensor)]
    for tensor in tensors:
        if tensor.device.type != device_type:
            reasons.append(f"it runs on {device_type} tensors, got one on {tensor.device}")
            break
    for tensor in tensors:
        if tensor.dtype not in NATIVE_DTYPES and tensor.dtype not in (torch.bool, torch.uint8):
            reasons.append(f"it has no kernel for {tensor.dtype}")
            break
    if op in EXTRA_CONDITIONS:
        reasons += EXTRA_CONDITIONS[op](backend, tensors)
    return reasons


def choose(op: str, backend: str, *inputs: object) -> str:
    """The backend that runs: ``backend`` itself if it can, the rule above for ``"auto"``.

    Raises:
        ValueError: unknown names.
        RuntimeError: a named backend that cannot take the inputs, with every reason.
    """
    if backend == "auto":
        device_type = next(x.device.type for x in inputs if isinstance(x, torch.Tensor))
        native_backend = device_type if device_type in ("cpu", "cuda") else "reference"
        return "reference" if not_supported_reasons(op, native_backend, *inputs) else native_backend
    reasons = not_supported_reasons(op, backend, *inputs)
    if reasons:
        raise RuntimeError(f"msa_ops::{op}: backend {backend!r} cannot run: {'; '.join(reasons)}")
    return backend
