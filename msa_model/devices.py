"""Reads names of devices: "auto", "cpu", "cuda", "cuda:i". No command takes another name or an absent device."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def device_name(text: str) -> str:
    """Returns the name of a device, without asking torch for it.

    Raises:
        ValueError: it is none of "auto", "cpu", "cuda" and "cuda:i".
    """
    if not re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,3})?", text):
        raise ValueError(f"must be auto, cpu, cuda or cuda:i, got {text!r}")
    return text


def find_device(name: str) -> torch.device:
    """Returns the device of a name; "auto" is CUDA where torch finds a GPU, else the CPU.

    Raises:
        ValueError: the name is none of those above, or this machine has no such device.
    """
    import torch

    if device_name(name) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError("torch finds no GPU" if torch.version.cuda else "this torch is built without CUDA")
        if (device.index or 0) >= torch.cuda.device_count():
            raise ValueError(f"there are only {torch.cuda.device_count()} GPUs, counted from 0")
    return device
