"""Reads safetensors files that nobody has to trust: what a file claims can be compared before a tensor is read.

The library `safetensors` maps the whole file and gives tensors of any size that the file names. Here the header comes
first, with limits, and each tensor is read by itself once it is wanted. The format: 8 bytes (the header's length), the
header (JSON: name -> dtype, shape, offsets; ``__metadata__``: name -> text), the tensors' bytes without gaps.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch
from torch import Tensor

#: Bytes of the longest header that is read. The longest that the project writes have about 20 thousand.
LONGEST_HEADER = 1 << 20
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class Entry:
    """A tensor in a file: its dtype, its shape, and the place of its bytes after the header."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsFile:
    """The header of an open file.

    Args:
        file: an open file, at its start.

    Attributes:
        metadata: name -> text.
        entries: name -> what the file says of a tensor; together they cover the file to its last byte.

    Raises:
        ValueError: the file is damaged, cut short or of another kind. The message says why, but not which file.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= size - 8:
            raise ValueError("it does not begin with the length of a header")
        if length > LONGEST_HEADER:
            raise ValueError(f"its header has {length} bytes, at most {LONGEST_HEADER} are read")
        header = json_object(file.read(length))
        self.metadata = header.pop("__metadata__", {})
        if not isinstance(self.metadata, dict) or not all(isinstance(v, str) for v in self.metadata.values()):
            raise ValueError("its metadata is not text")
        self.entries = {name: _entry(name, said) for name, said in header.items()}
        self._start = 8 + length
        here = 0
        for name, entry in sorted(self.entries.items(), key=lambda item: (item[1].begin, item[1].end)):
            if entry.begin != here:
                raise ValueError(f"the bytes of {name} do not follow those before them")
            here = entry.end
        if here != size - self._start:
            raise ValueError(f"its tensors have {here} bytes, the file has {size - self._start} for them")

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yields name and tensor (on the CPU), one after another.

        Raises:
            ValueError: the file has become shorter.
        """
        for name, entry in self.entries.items():
            content = torch.empty(entry.end - entry.begin, dtype=torch.uint8)
            self._file.seek(self._start + entry.begin)
            # BinaryIO does not list readinto.
            if self._file.readinto(content.numpy()) != len(content):  # type: ignore[attr-defined]
                raise ValueError(f"the file ends within {name}")
            yield name, content.view(entry.dtype).view(entry.shape)


def _entry(name: str, said: Any) -> Entry:
    if not isinstance(said, dict) or said.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"the entry of {name} has other keys than dtype, shape and data_offsets")
    dtype, shape, offsets = said["dtype"], said["shape"], said["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise ValueError(f"the dtype of {name} is not one of {', '.join(_DTYPES)}")
    if not _whole_numbers(shape) or len(shape) > 8:
        raise ValueError(f"the shape of {name} is no list of sizes")
    if not _whole_numbers(offsets) or len(offsets) != 2:
        raise ValueError(f"the offsets of {name} are no pair of numbers")
    if offsets[1] - offsets[0] != math.prod(shape) * _DTYPES[dtype].itemsize:
        raise ValueError(f"{name} has {offsets[1] - offsets[0]} bytes, which its dtype and shape do not give")
    return Entry(_DTYPES[dtype], tuple(shape), offsets[0], offsets[1])


def _whole_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 1 << 48 for n in value)


def json_object(text: bytes | str) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        ValueError: the text is no JSON, no object, too deeply nested, or names a key twice.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a key stands there twice")
        return found

    try:
        content = json.loads(text, object_pairs_hook=unique)
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None
    if not isinstance(content, dict):
        raise ValueError("its JSON is no object")
    return content
