"""Which backends there are, what each can run, and how ``backend="auto"`` chooses one.

``auto`` takes the first backend of `preferred` that can take the inputs, and the plain PyTorch reference where none
can. A backend that the caller names either runs or raises an error with all the reasons; it never falls back.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping

import torch

from . import native
from .dtypes import HALVES

#: Returns the reasons why a backend cannot take an operator's arguments. It is called with as many of them as are
#: known.
Condition = Callable[..., list[str]]


@dataclasses.dataclass(frozen=True)
class Kernels:
    """The kernels of one backend.

    Attributes:
        device_type: of the tensors that they take.
        dtypes: that they compute in.
        operators: the operators that have such kernels (each room adds its own, see `add_operator`), with the further
            conditions on their arguments.
    """

    device_type: str
    dtypes: tuple[torch.dtype, ...]
    operators: dict[str, Condition | None] = dataclasses.field(default_factory=dict)


#: The table of backends that have kernels.
KERNELS = {
    "cpu": Kernels("cpu", (torch.float64, torch.float32, *HALVES)),
    "cuda": Kernels("cuda", (torch.float64, torch.float32, *HALVES)),
    "triton": Kernels("cuda", (torch.float32, *HALVES)),
}

#: The values of the argument ``backend``.
BACKENDS = ("auto", "reference", *KERNELS)

#: Operator -> the dtypes for which ``auto`` tries Triton's kernels before the compiled ones on CUDA.
TRITON_FIRST: dict[str, tuple[torch.dtype, ...]] = {}


def add_operator(
    name: str, kernels: Mapping[str, Condition | None], triton_first: tuple[torch.dtype, ...] = HALVES
) -> None:
    """Makes an operator known.

    Args:
        name: of the public function.
        kernels: the backends that have kernels for it, each with its further conditions or None.
        triton_first: the dtypes for which Triton's kernels are the faster ones on CUDA (measured on an H100; the
            performance log in docs/ has the figures).
    """
    TRITON_FIRST[name] = triton_first if "triton" in kernels else ()
    for backend, condition in kernels.items():
        KERNELS[backend].operators[name] = condition


def operators() -> list[str]:
    """Returns the names of all operators, sorted."""
    return sorted(TRITON_FIRST)


def preferred(op: str, tensor: torch.Tensor) -> tuple[str, ...]:
    """Returns the backends that ``auto`` tries for this operator and first argument, best first."""
    device_type = tensor.device.type
    if device_type == "cuda" and tensor.dtype in TRITON_FIRST[op]:
        return "triton", "cuda"
    return (device_type,) if device_type in ("cpu", "cuda") else ()


def not_supported_reasons(op: str, backend: str, *inputs: object) -> list[str]:
    """Explains why a backend cannot run an operator on these inputs.

    Args:
        op: the name of an operator of this package, for example ``"partial_conv2d"``.
        backend: ``"auto"``, ``"reference"``, ``"cpu"``, ``"cuda"`` or ``"triton"``.
        inputs: the operator's arguments in their order, or the first of them. Without any, the reasons are those that
            hold for all inputs.

    Returns:
        One sentence per reason; an empty list if the backend can.

    Raises:
        ValueError: if the operator or the backend is not known.
    """
    if op not in TRITON_FIRST:
        raise ValueError(f"unknown operator {op!r}; known are {', '.join(operators())}")
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; known are {', '.join(BACKENDS)}")
    if backend in ("auto", "reference"):
        return []
    kernels = KERNELS[backend]
    reasons = []
    if op not in kernels.operators:
        reasons.append(f"{op} has no {backend} kernels")
    missing = native.MISSING.get(backend)
    if missing is not None:
        reasons.append(missing)
    is_interpreted = backend == "triton" and interpreted()
    device_type = "cpu" if is_interpreted else kernels.device_type
    tensors = [x for x in inputs if isinstance(x, torch.Tensor)]
    for tensor in tensors:
        if tensor.device.type != device_type:
            reasons.append(f"it runs on {device_type} tensors, got one on {tensor.device}")
            break
    for tensor in tensors:
        if tensor.dtype not in kernels.dtypes and tensor.dtype not in (torch.bool, torch.uint8):
            reasons.append(f"it has no kernel for {tensor.dtype}")
            break
    if is_interpreted and any(tensor.dtype == torch.bfloat16 for tensor in tensors):
        reasons.append("Triton's interpreter cannot multiply torch.bfloat16")
    condition = kernels.operators.get(op)
    if tensors and condition is not None:
        reasons += condition(*inputs)
    return reasons


def interpreted() -> bool:
    """Tells whether Triton's interpreter replaces the GPU, as it does in tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def choose(op: str, backend: str, *inputs: object) -> str:
    """Returns the backend that runs: `backend` itself if it can, and for ``"auto"`` what the rule above picks.

    Raises:
        ValueError: if a name is not known.
        RuntimeError: if a named backend cannot take the inputs, with every reason.
    """
    if backend == "auto":
        first = next(x for x in inputs if isinstance(x, torch.Tensor))
        able = (name for name in preferred(op, first) if not not_supported_reasons(op, name, *inputs))
        return next(able, "reference")
    reasons = not_supported_reasons(op, backend, *inputs)
    if reasons:
        raise RuntimeError(f"msa_ops::{op}: backend {backend!r} cannot run: {'; '.join(reasons)}")
    return backend
