"""Tells errors for want of memory from other errors."""

from __future__ import annotations

#: The last one is what a loader says when the operating system killed one of its processes, as it does for memory.
_MESSAGES = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "std::bad_alloc",
    "is killed by signal: Killed",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory, of the CPU or of a device, ran out.

    The CPU's allocator and, on any device, the compiled operators raise a `RuntimeError`; only its text says why.
    """
    import torch

    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(text in str(error) for text in _MESSAGES)
