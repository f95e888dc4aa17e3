"""What the operators behind partial_conv2d_upcat refuse by themselves: sizes that would lead out of bounds."""

import pytest
import torch

import msa_ops  # noqa: F401  (registers the operators)

from ..support.refusals import C_OUT, N, t

RAW_UPCAT = {
    "low": t(N, 3, 4, 5),
    "low_mask": t(N, 1, 4, 5).bool(),
    "skip": t(N, 2, 8, 10),
    "skip_mask": t(N, 1, 8, 10).bool(),
    "weight": t(C_OUT, 5, 3, 3),
    "bias": t(C_OUT),
    "numerator": 45,
    "low_is_masked": False,
    "skip_is_masked": False,
    "phases": True,
}
RAW_UPCAT_BACKWARD = {k: v for k, v in RAW_UPCAT.items() if k not in ("bias", "numerator")} | {
    "grad_output": t(N, C_OUT, 8, 10),
    "ratio": t(N, 1, 8, 10),
    "needed": [True] * 4,
}

RAW_UPCAT_REFUSED = {
    "skip_too_narrow": {"skip": t(N, 2, 8, 9)},
    "skip_of_other_batch": {"skip": t(1, 2, 8, 10)},
    "low_without_rows": {
        "low": t(N, 3, 0, 5),
        "low_mask": t(N, 1, 0, 5).bool(),
        "skip": t(N, 2, 0, 10),
        "skip_mask": t(N, 1, 0, 10).bool(),
    },
    "skip_of_other_dtype": {"skip": t(N, 2, 8, 10).half()},
    "skip_without_channels": {"skip": t(N, 0, 8, 10), "weight": t(C_OUT, 3, 3, 3)},
    "low_mask_not_bool": {"low_mask": t(N, 1, 4, 5)},
    "low_mask_too_small": {"low_mask": t(N, 1, 4, 4).bool()},
    "skip_mask_too_small": {"skip_mask": t(N, 1, 4, 5).bool()},
    "skip_mask_of_many_planes": {"skip_mask": t(N, 2, 8, 10).bool()},
    "weight_of_other_channels": {"weight": t(C_OUT, 4, 3, 3)},
    "weight_of_other_kernel": {"weight": t(C_OUT, 5, 2, 2)},
}
RAW_UPCAT_REFUSED_BACKWARD = RAW_UPCAT_REFUSED | {
    "grad_output_of_the_size_of_low": {"grad_output": t(N, C_OUT, 4, 5)},
    "ratio_of_the_size_of_low": {"ratio": t(N, 1, 4, 5)},
    "needed_too_short": {"needed": [True] * 3},
}


@pytest.mark.parametrize("changes", RAW_UPCAT_REFUSED.values(), ids=RAW_UPCAT_REFUSED)
def test_raw_upcat_forward_refuses(changes):
    with pytest.raises(RuntimeError, match="msa_ops::partial_conv2d_upcat_forward: "):
        torch.ops.msa_ops.partial_conv2d_upcat_forward(**(RAW_UPCAT | changes))


@pytest.mark.parametrize("changes", RAW_UPCAT_REFUSED_BACKWARD.values(), ids=RAW_UPCAT_REFUSED_BACKWARD)
def test_raw_upcat_backward_refuses(changes):
    with pytest.raises(RuntimeError, match="msa_ops::partial_conv2d_upcat_backward: "):
        torch.ops.msa_ops.partial_conv2d_upcat_backward(**(RAW_UPCAT_BACKWARD | changes))


def test_raw_operators_take_what_the_refusals_start_from():
    torch.ops.msa_ops.partial_conv2d_upcat_forward(**RAW_UPCAT)
    torch.ops.msa_ops.partial_conv2d_upcat_backward(**RAW_UPCAT_BACKWARD)
