"""The precisions that benchmarks run in, by name."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

import torch


@dataclasses.dataclass(frozen=True)
class Precision:
    """dtype: that of the tensors; tf32: what CUDA does with convolutions and products of float32."""

    dtype: torch.dtype
    tf32: bool = False

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Torch's switches for TF32 set accordingly; one of them is on by default."""
        switches = (torch.backends.cuda.matmul, torch.backends.cudnn)
        before = [switch.allow_tf32 for switch in switches]
        try:
            for switch in switches:
                switch.allow_tf32 = self.tf32
            yield
        finally:
            for switch, value in zip(switches, before, strict=True):
                switch.allow_tf32 = value


PRECISIONS = {
    "float32": Precision(torch.float32),
    "tf32": Precision(torch.float32, tf32=True),
    "bfloat16": Precision(torch.bfloat16),
    "float16": Precision(torch.float16),
}
