"""What partial_conv2d refuses: the message names operator, argument, what was wanted and what came."""

import pytest
import torch

from msa_ops import partial_conv2d

from ..support.refusals import C_OUT, C, H, N, W, refused, t

PLAIN = {"input": t(N, C, H, W), "mask": t(N, 1, H, W), "weight": t(C_OUT, C, 3, 3), "bias": t(C_OUT)}
MASK_FORMS = r"mask must have shape \(N, 1, H, W\) or \(N, C, H, W\) with N=2, C=4, H=6, W=5, got "

REFUSED = {
    "input_of_rank_3": ({"input": t(C, H, W)}, r"input must have 4 dimensions \(N, C, H, W\), got shape \(4, 6, 5\)"),
    "input_is_no_tensor": ({"input": [1.0]}, "input must be a tensor, got list"),
    "input_complex": (
        {"input": t(N, C, H, W, dtype=torch.complex64)},
        r"input must have a real floating-point dtype, got torch.complex64",
    ),
    "input_integer": (
        {"input": t(N, C, H, W, dtype=torch.int64)},
        "input must have a real floating-point dtype, got torch.int64",
    ),
    "weight_of_rank_2": ({"weight": t(C_OUT, C)}, r"weight must have 4 dimensions .*, got shape \(8, 4\)"),
    "weight_integer": (
        {"weight": t(C_OUT, C, 3, 3, dtype=torch.int8)},
        "weight must have a real floating-point dtype, got torch.int8",
    ),
    "weight_of_other_dtype": (
        {"weight": t(C_OUT, C, 3, 3).double()},
        "weight must have the dtype of input, torch.float32, got torch.float64",
    ),
    "weight_on_other_device": (
        {"weight": t(C_OUT, C, 3, 3, device="meta")},
        "weight must be on the device of input, cpu, got meta",
    ),
    "weight_of_other_channels": (
        {"weight": t(C_OUT, 3, 3, 3)},
        r"weight must have shape \(C_out, 4, kH, kW\) for 4 input channels and groups=1, got \(8, 3, 3, 3\)",
    ),
    "weight_not_divided_by_groups": (
        {"groups": 2},
        r"weight must have shape \(C_out, 2, kH, kW\) for 4 input channels and groups=2, got \(8, 4, 3, 3\)",
    ),
    "mask_flag_is_a_tensor": (
        {"input_is_masked": t(2)},
        "input_is_masked must be True or False, got Tensor",
    ),
    "stride_beyond_32_bits": ({"stride": 2**70}, f"stride must be at most 2147483647, got {2**70}"),
    "padding_beyond_32_bits": ({"padding": (1, 2**31)}, r"padding must be at most 2147483647, got \(1, 2147483648\)"),
    "bias_of_wrong_length": ({"bias": t(C)}, r"bias must have shape \(8,\), got \(4\)"),
    "bias_of_rank_2": ({"bias": t(C_OUT, 1)}, r"bias must have shape \(8,\), got \(8, 1\)"),
    "bias_of_other_dtype": (
        {"bias": t(C_OUT).half()},
        "bias must have the dtype of weight, torch.float32, got torch.float16",
    ),
    "bias_on_other_device": ({"bias": t(C_OUT, device="meta")}, "bias must be on the device of weight, cpu, got meta"),
    "mask_of_other_size": ({"mask": t(N, 1, H, W + 1)}, MASK_FORMS + r"\(2, 1, 6, 6\)"),
    "mask_of_other_channels": ({"mask": t(N, 3, H, W)}, MASK_FORMS + r"\(2, 3, 6, 5\)"),
    "mask_of_other_batch": ({"mask": t(1, 1, H, W)}, MASK_FORMS + r"\(1, 1, 6, 5\)"),
    "mask_of_rank_3": ({"mask": t(N, H, W)}, MASK_FORMS + r"\(2, 6, 5\)"),
    "mask_integer": (
        {"mask": t(N, 1, H, W, dtype=torch.int32)},
        "mask must be bool, uint8 or floating-point, got torch.int32",
    ),
    "mask_complex": (
        {"mask": t(N, 1, H, W, dtype=torch.complex64)},
        "mask must be bool, uint8 or floating-point, got torch.complex64",
    ),
    "mask_on_other_device": (
        {"mask": t(N, 1, H, W, device="meta")},
        "mask must be on the device of input, cpu, got meta",
    ),
    "mask_missing": ({"mask": None}, "mask must be a tensor or a non-empty list of"),
    "mask_list_empty": ({"mask": []}, "mask must be a tensor or a non-empty list of"),
    "mask_list_of_planes": ({"mask": [t(N, 1, H, W)] * 4}, "mask must be a tensor or a non-empty list of"),
    "grouped_mask_too_narrow": (
        {"mask": [(1, t(N, 1, H, W)), (2, t(N, 1, H, W))]},
        r"the grouped mask's channels must add up to 4, got \[1, 2\]",
    ),
    "grouped_mask_of_no_channels": (
        {"mask": [(0, t(N, 1, H, W)), (4, t(N, 1, H, W))]},
        r"mask\[0\] must cover a positive number of channels, got 0",
    ),
    "grouped_mask_of_other_size": (
        {"mask": [(2, t(N, 1, H, W)), (2, t(N, 1, H, H))]},
        r"mask\[1\] must have shape \(N, 1, H, W\) with N=2, H=6, W=5, got \(2, 1, 6, 6\)",
    ),
    "grouped_mask_of_many_planes": (
        {"mask": [(4, t(N, C, H, W))]},
        r"mask\[0\] must have shape \(N, 1, H, W\) with .*, got \(2, 4, 6, 5\)",
    ),
    "grouped_mask_integer": (
        {"mask": [(4, t(N, 1, H, W, dtype=torch.int64))]},
        r"mask\[0\] must be bool, uint8 or floating-point, got torch.int64",
    ),
    "grouped_mask_on_other_device": (
        {"mask": [(4, t(N, 1, H, W, device="meta"))]},
        r"mask\[0\] must be on the device of input, cpu, got meta",
    ),
    "groups_zero": ({"groups": 0}, "groups must be a positive integer, got 0"),
    "groups_not_dividing_the_channels": (
        {"groups": 3},
        "groups=3 must divide the channels of input and output, got 4 and 8",
    ),
    "stride_zero": ({"stride": 0}, "stride must be at least 1, got 0"),
    "stride_of_three": ({"stride": (1, 1, 1)}, r"stride must be an integer or two of them, got \(1, 1, 1\)"),
    "stride_fractional": ({"stride": 1.5}, "stride must be an integer or two of them, got 1.5"),
    "padding_missing": ({"padding": None}, "padding must be an integer or two of them, got None"),
    "dilation_negative": ({"dilation": (1, -1)}, r"dilation must be at least 1, got \(1, -1\)"),
    "padding_negative": ({"padding": (0, -1)}, r"padding must be at least 0, got \(0, -1\)"),
    "padding_of_unknown_name": ({"padding": "full"}, "padding must be integers, 'valid' or 'same', got 'full'"),
    "padding_same_with_stride": ({"padding": "same", "stride": (1, 2)}, r"padding='same' needs stride 1, got \(1, 2\)"),
    "kernel_higher_than_the_map": (
        {"weight": t(C_OUT, C, 7, 3)},
        "the dilated kernel's height, 7, must not exceed that of the padded input, 6",
    ),
    "kernel_wider_than_the_map": (
        {"dilation": 4, "padding": (2, 1), "stride": 3},
        "the dilated kernel's width, 9, must not exceed that of the padded input, 7",
    ),
    "scale_unknown": ({"scale": "mean"}, "scale must be 'window' or 'sum', got 'mean'"),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED)
def test_partial_conv2d_refuses(changes, message):
    refused("partial_conv2d", partial_conv2d, PLAIN, changes, message)


def test_partial_conv2d_takes_what_the_refusals_start_from():
    assert partial_conv2d(**PLAIN)[0].shape == (N, C_OUT, H - 2, W - 2)
