"""Reads state dicts from files of ``torch.save``, and says in one line what is wrong with them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor


def read(path: str | os.PathLike, who: str, hint: str = "") -> object:
    """Reads a file of ``torch.save`` to the CPU; tensors and plain containers only (``weights_only=True``).

    Args:
        path: the file.
        who: how messages start.
        hint: how messages end: where to get the right file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is of another kind, or holds code.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{who}: no weights at {path}{hint}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch.load raises many types: pickle's, zip's, EOFError, RuntimeError ...
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ValueError(f"{who}: {path} is not a file of weights that torch.load reads ({reason}){hint}") from error


def state_dict(content: object, path: str | os.PathLike, who: str, hint: str = "") -> dict[str, Tensor]:
    """Returns the content as a state dict, without the prefix ``module.`` that DataParallel adds.

    Raises:
        ValueError: the content is no state dict.
    """
    if not isinstance(content, Mapping) or not content or not all(isinstance(t, Tensor) for t in content.values()):
        raise ValueError(f"{who}: {path} does not hold a state dict{hint}")
    return {str(name).removeprefix("module."): tensor for name, tensor in content.items()}


def differences(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], optional: Iterable[str] = ()) -> str:
    """Lists missing and unknown keys and other shapes of a state dict, in one line; "" where it fits."""
    optional = set(optional)
    missing = [name for name in wanted if name not in found and name not in optional]
    unknown = [name for name in found if name not in wanted]
    shapes = [
        f"{name} {tuple(found[name].shape)} (wanted {tuple(tensor.shape)})"
        for name, tensor in wanted.items()
        if name in found and found[name].shape != tensor.shape
    ]
    parts = [("missing", missing), ("unknown", unknown), ("of another shape", shapes)]
    return "; ".join(f"{what}: {_some(names)}" for what, names in parts if names)


def _some(names: list[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
