"""What the operators behind the public functions refuse by themselves: sizes that would lead out of bounds."""

import subprocess
import sys
import textwrap

import pytest
import torch

import msa_ops  # noqa: F401  (registers the operators)

N, C, H, W, C_OUT = 2, 4, 6, 5, 8


def t(*shape, dtype=torch.float32):
    return torch.ones(shape, dtype=dtype)


RAW = {
    "input": t(N, C, H, W),
    "mask": t(N, 2, H, W).bool(),
    "weight": t(C_OUT, C, 3, 3),
    "bias": t(C_OUT),
    "plane_channels": [1, 3],
    "stride": [1, 1],
    "padding": [1, 1],
    "dilation": [1, 1],
    "groups": 1,
    "numerator": 36,
    "input_is_masked": False,
}
RAW_BACKWARD = {k: v for k, v in RAW.items() if k not in ("bias", "numerator")} | {
    "grad_output": t(N, C_OUT, H, W),
    "ratio": t(N, 1, H, W),
    "needed": [True, True, True],
}

RAW_REFUSED = {
    "input_of_rank_3": {"input": t(C, H, W)},
    "mask_not_bool": {"mask": t(N, 2, H, W)},
    "mask_too_small": {"mask": t(N, 2, H - 1, W).bool()},
    "mask_of_one_image": {"mask": t(1, 2, H, W).bool()},
    "mask_with_fewer_planes_than_plane_channels": {"mask": t(N, 1, H, W).bool()},
    "plane_channels_beyond_the_input": {"plane_channels": [1, 4]},
    "plane_channels_short_of_the_input": {"plane_channels": [1, 2]},
    "plane_channels_negative": {"plane_channels": [-1, 5]},
    "weight_of_other_channels": {"weight": t(C_OUT, 5, 3, 3)},
    "weight_of_other_dtype": {"weight": t(C_OUT, C, 3, 3).double()},
    "weight_of_rank_3": {"weight": t(C_OUT, C, 3)},
    "weight_without_kernel": {"weight": t(C_OUT, C, 0, 3)},
    "groups_zero": {"groups": 0},
    "groups_not_dividing": {"groups": 3},
    "stride_of_one_number": {"stride": [1]},
    "stride_zero": {"stride": [0, 1]},
    "padding_negative": {"padding": [-1, 0]},
    "dilation_zero": {"dilation": [1, 0]},
    "kernel_beyond_the_map": {"dilation": [9, 1]},
    "kernel_beyond_the_map_by_less_than_a_stride": {"padding": [0, 0], "dilation": [3, 2], "stride": [2, 2]},
}
RAW_REFUSED_FORWARD = RAW_REFUSED | {
    "bias_too_short": {"bias": t(C_OUT - 1)},
    "bias_of_other_dtype": {"bias": t(C_OUT).half()},
    "bias_with_gaps": {"bias": t(2 * C_OUT)[::2]},
}
RAW_REFUSED_BACKWARD = RAW_REFUSED | {
    "grad_output_too_small": {"grad_output": t(N, C_OUT, H - 1, W)},
    "grad_output_of_other_channels": {"grad_output": t(N, C, H, W)},
    "grad_output_of_other_dtype": {"grad_output": t(N, C_OUT, H, W).half()},
    "ratio_too_small": {"ratio": t(N, 1, H, W - 1)},
    "ratio_of_other_dtype": {"ratio": t(N, 1, H, W).double()},
    "ratio_expanded": {"ratio": t(N, 1, H, 1).expand(N, 1, H, W)},
    "needed_too_short": {"needed": [True, True]},
}


@pytest.mark.parametrize("changes", RAW_REFUSED_FORWARD.values(), ids=RAW_REFUSED_FORWARD)
def test_raw_forward_refuses(changes):
    with pytest.raises(RuntimeError, match="msa_ops::partial_conv2d_forward: "):
        torch.ops.msa_ops.partial_conv2d_forward(**(RAW | changes))


@pytest.mark.parametrize("changes", RAW_REFUSED_BACKWARD.values(), ids=RAW_REFUSED_BACKWARD)
def test_raw_backward_refuses(changes):
    if "stride" in changes and changes["stride"] == [2, 2]:  # the size that the formula would give
        changes = changes | {"grad_output": t(N, C_OUT, 1, 1), "ratio": t(N, 1, 1, 1)}
    with pytest.raises(RuntimeError, match="msa_ops::partial_conv2d_backward: "):
        torch.ops.msa_ops.partial_conv2d_backward(**(RAW_BACKWARD | changes))


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
    ops = torch.ops.msa_ops
    for operator, arguments in (
        (ops.partial_conv2d_forward, RAW),
        (ops.partial_conv2d_backward, RAW_BACKWARD),
        (ops.partial_conv2d_upcat_forward, RAW_UPCAT),
        (ops.partial_conv2d_upcat_backward, RAW_UPCAT_BACKWARD),
    ):
        operator(**arguments)


WOULD_CORRUPT_MEMORY = {
    # 8-byte elements would be written into maps of 1-byte ones
    "input_of_one_byte_elements": "x = torch.ones(1, 3, 64, 64, dtype=torch.uint8); w = w.byte()",
    "input_of_float8": "x = torch.ones(1, 3, 64, 64).to(torch.float8_e4m3fn); w = w.to(x.dtype)",
    # sums and products beyond 2⁶³ that come out small
    "plane_channels_whose_sum_wraps": "m = m.expand(1, 3, 64, 64); covered = [2**63 - 1, 2**63 - 1, 5]",
    "dilation_whose_reach_wraps": "w = torch.ones(2, 3, 9, 9); dilation = [2**61, 2**61]",
}


@pytest.mark.parametrize("setting", WOULD_CORRUPT_MEMORY.values(), ids=WOULD_CORRUPT_MEMORY)
def test_raw_forward_refuses_what_would_corrupt_memory(setting, tmp_path):
    """In a process of its own, which a missing check takes down."""
    code = f"""
        import torch, msa_ops
        x, w, m = torch.ones(1, 3, 64, 64), torch.ones(2, 3, 3, 3), torch.zeros(1, 1, 64, 64, dtype=torch.bool)
        covered, dilation = [3], [1, 1]
        {setting}
        try:
            torch.ops.msa_ops.partial_conv2d_forward(x, m, w, None, covered, [1, 1], [1, 1], dilation, 1, 27, False)
        except RuntimeError as error:
            print(error)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, f"ended with {result.returncode}: {result.stderr[-300:]}"
    assert "msa_ops::partial_conv2d_forward: " in result.stdout
