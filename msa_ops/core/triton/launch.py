"""Launches of Triton kernels, with every argument named and checked.

Triton's interpreter drops keywords that a kernel does not have, so a misspelt argument would go unseen in tests.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch

#: Options of Triton's compiler, which every launch may give beside the kernel's own arguments.
COMPILER_OPTIONS = frozenset({"num_warps", "num_stages"})

#: Kernel and names of a launch that has passed the check -> the kernel, which keeps its id from being used again.
_checked: dict[tuple[int, tuple[str, ...]], Any] = {}


def launch(kernel: Any, grid: tuple[int, ...], device: torch.device, /, **arguments: Any) -> None:
    """Runs a kernel on a device; does nothing if the grid is empty.

    Args:
        kernel: a function under ``triton.jit``.
        grid: the number of programs along up to three axes.
        device: of the tensors among the arguments.
        arguments: all of the kernel's parameters by name, and options of Triton's compiler.

    Raises:
        TypeError: if the kernel has no argument of such a name, or one is missing.
    """
    key = id(kernel), tuple(arguments)
    if key not in _checked:
        _check_names(kernel, arguments)
        _checked[key] = kernel
    if 0 in grid:
        return
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            kernel[grid](**arguments)
    else:
        kernel[grid](**arguments)


@functools.cache
def parameters(function: Any) -> dict[str, inspect.Parameter]:
    """Returns the parameters of the Python function under a kernel."""
    return dict(inspect.signature(function).parameters)


def _check_names(kernel: Any, arguments: dict[str, Any]) -> None:
    wanted = parameters(kernel.fn)
    unknown = [name for name in arguments if name not in wanted and name not in COMPILER_OPTIONS]
    missing = [
        name for name, parameter in wanted.items() if parameter.default is parameter.empty and name not in arguments
    ]
    found = {"unknown": unknown, "missing": missing}
    problems = [f"{problem} {', '.join(names)}" for problem, names in found.items() if names]
    if problems:
        raise TypeError(f"arguments of the Triton kernel {kernel.fn.__name__}: {'; '.join(problems)}")
