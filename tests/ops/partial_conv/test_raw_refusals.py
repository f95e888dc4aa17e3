"""What the operators behind partial_conv2d refuse by themselves: sizes that would lead out of bounds."""

import subprocess
import sys
import textwrap

import pytest
import torch

import msa_ops  # noqa: F401  (registers the operators)

from ..support.refusals import C_OUT, C, H, N, W, t

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
    "mask_of_integers": {"mask": t(N, 2, H, W).long()},
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


def test_raw_operators_take_what_the_refusals_start_from():
    torch.ops.msa_ops.partial_conv2d_forward(**RAW)
    torch.ops.msa_ops.partial_conv2d_backward(**RAW_BACKWARD)


WOULD_CORRUPT_MEMORY = {
    # 8-byte elements would be written into maps of 1-byte ones
    "input_of_one_byte_elements": "x = torch.ones(1, 3, 64, 64, dtype=torch.uint8); w = w.byte()",
    "input_of_float8": "x = torch.ones(1, 3, 64, 64).to(torch.float8_e4m3fn); w = w.to(x.dtype)",
    # sums and products beyond 2⁶³ that come out small
    "plane_channels_whose_sum_wraps": "m = m.expand(1, 3, 64, 64); covered = [2**63 - 1, 2**63 - 1, 5]",
    "dilation_whose_reach_wraps": "w = torch.ones(2, 3, 9, 9); dilation = [2**61, 2**61]",
}


def test_raw_forward_refuses_what_would_corrupt_memory(tmp_path):
    """In a process of its own, which a missing check takes down; its last line then names the case."""
    code = f"""
        import torch, msa_ops
        for name, setting in {WOULD_CORRUPT_MEMORY!r}.items():
            print(name, flush=True)
            x, w, m = torch.ones(1, 3, 64, 64), torch.ones(2, 3, 3, 3), torch.zeros(1, 1, 64, 64, dtype=torch.bool)
            given = dict(x=x, w=w, m=m, covered=[3], dilation=[1, 1], torch=torch)
            exec(setting, given)
            x, w, m, covered, dilation = (given[name] for name in ("x", "w", "m", "covered", "dilation"))
            try:
                torch.ops.msa_ops.partial_conv2d_forward(x, m, w, None, covered, [1, 1], [1, 1], dilation, 1, 27, False)
            except RuntimeError as error:
                print(error)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False)
    assert result.returncode == 0, f"ended with {result.returncode}: {result.stdout[-300:]} {result.stderr[-300:]}"
    assert result.stdout.count("msa_ops::partial_conv2d_forward: ") == len(WOULD_CORRUPT_MEMORY), result.stdout
