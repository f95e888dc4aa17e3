"""Reads state dicts from files of ``torch.save``, and says in one line what is wrong with them."""

from __future__ import annotations

import os
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from typing import Any, BinaryIO, Protocol

import torch
from torch import Tensor

from .. import user_files


class Described(Protocol):
    """What is known of a tensor before it is read."""

    @property
    def shape(self) -> Any: ...

    @property
    def dtype(self) -> torch.dtype: ...


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
    try:
        file = user_files.open_file(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{who}: no weights at {path}{hint}") from None
    except user_files.NotAFileError as error:
        raise ValueError(f"{who}: {path}: {error.strerror}{hint}") from None
    with file:
        try:
            _refuse_packed(file)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what torch guesses about a file of another kind
                return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # torch.load raises many types: pickle's, zip's, EOFError, RuntimeError ...
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise ValueError(
                f"{who}: {path} is not a file of weights that torch.load reads ({reason}){hint}"
            ) from error


def _refuse_packed(file: BinaryIO) -> None:
    """Refuses a zip file that unpacks to more than its own size. ``torch.save`` packs nothing.

    Raises:
        ValueError: it does.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if zipfile.is_zipfile(file):
        file.seek(0)
        with zipfile.ZipFile(file) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > size:
            raise ValueError(f"{unpacked} bytes packed into a file of {size}")
    file.seek(0)


def state_dict(content: object, path: str | os.PathLike, who: str, hint: str = "") -> dict[str, Tensor]:
    """Returns the content as a state dict, without the prefix ``module.`` that DataParallel adds.

    Raises:
        ValueError: the content is no state dict.
    """
    if not isinstance(content, Mapping) or not content or not all(map(_is_plain, content.values())):
        raise ValueError(f"{who}: {path} does not hold a state dict{hint}")
    return {str(name).removeprefix("module."): tensor for name, tensor in content.items()}


def _is_plain(value: object) -> bool:
    """Whether a value is a tensor that has all its elements in memory: not sparse, quantised, expanded or without data.

    An expanded tensor has any shape for the price of one element, and would be believed.
    """
    if (
        not isinstance(value, Tensor)
        or value.layout != torch.strided
        or value.is_quantized
        or value.device.type != "cpu"
    ):
        return False
    return value.untyped_storage().nbytes() >= value.numel() * value.element_size()


def differences(found: Mapping[str, Described], wanted: Mapping[str, Described], optional: Iterable[str] = ()) -> str:
    """Lists missing and unknown keys and other shapes and dtypes of a state dict, in one line; "" where it fits.

    A floating-point dtype fits any other; whole numbers and bools must have the wanted dtype.
    """
    optional = set(optional)
    missing = [name for name in wanted if name not in found and name not in optional]
    unknown = [name for name in found if name not in wanted]
    both = [(name, found[name], wanted[name]) for name in wanted if name in found]
    shapes = [
        f"{name} {tuple(ours.shape)} (wanted {tuple(theirs.shape)})"
        for name, ours, theirs in both
        if tuple(ours.shape) != tuple(theirs.shape)
    ]
    dtypes = [
        f"{name} {ours.dtype} (wanted {theirs.dtype})"
        for name, ours, theirs in both
        if ours.dtype != theirs.dtype and not (ours.dtype.is_floating_point and theirs.dtype.is_floating_point)
    ]
    parts = [("missing", missing), ("unknown", unknown), ("of another shape", shapes), ("of another dtype", dtypes)]
    return "; ".join(f"{what}: {_some(names)}" for what, names in parts if names)


def not_finite(tensors: Mapping[str, Tensor]) -> str:
    """Lists the tensors that hold an infinite value or NaN; "" where there is none."""
    return _some([name for name, t in tensors.items() if t.is_floating_point() and not torch.isfinite(t).all()])


def _some(names: list[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
