"""What the commands' options have in common: devices, and names that are not known."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

import torch


def unknown(kind: str, name: str, names: Iterable[str]) -> str:
    """Returns the message for a name that is not known: the nearest known name, and all of them."""
    names = list(dict.fromkeys(names))
    nearest = difflib.get_close_matches(name, names, 1)
    meant = f" (did you mean {nearest[0]!r}?)" if nearest else ""
    return f"unknown {kind} {name!r}{meant}; known are {', '.join(names)}"


def check_device(text: str) -> torch.device:
    """Returns the device of an option.

    Raises:
        ValueError: the text names no device that can be measured.
    """
    if not re.fullmatch(r"cpu|cuda(:\d+)?", text):
        raise ValueError(f"--device must be cpu, cuda or cuda:i, got {text!r}")
    return torch.device(text)
