"""What the tests of refusals share."""

import pytest
import torch

N, C, H, W, C_OUT = 2, 4, 6, 5, 8


def t(*shape, dtype=torch.float32, device="cpu"):
    return torch.ones(shape, dtype=dtype, device=device)


def refused(operator, function, arguments, changes, message):
    with pytest.raises(ValueError, match=rf"^msa_ops::{operator}: {message}"):
        function(**(arguments | changes))
