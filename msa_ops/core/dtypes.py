"""Rules about dtypes that all operators share."""

from __future__ import annotations

import torch

#: The half-precision dtypes.
HALVES = (torch.float16, torch.bfloat16)


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """Returns the dtype of sums and statistics over values of `dtype`: float64 for float64, float32 for all others."""
    return torch.float64 if dtype == torch.float64 else torch.float32
