"""What partial_conv2d_upcat refuses: the message names operator, argument, what was wanted and what came."""

import pytest
import torch

from msa_ops import partial_conv2d_upcat

from ..support.refusals import C_OUT, N, refused, t
from ..support.upcat import FORMS

UPCAT = {
    "low": t(N, 3, 4, 5),
    "low_mask": t(N, 1, 4, 5),
    "skip": t(N, 2, 8, 10),
    "skip_mask": t(N, 1, 8, 10),
    "weight": t(C_OUT, 5, 3, 3),
    "bias": t(C_OUT),
}
SKIP_SHAPE = r"skip must have shape \(N, C, 2h, 2w\) with N=2, 2h=8, 2w=10, got "

REFUSED_UPCAT = {
    "low_of_rank_3": ({"low": t(3, 4, 5)}, r"low must have 4 dimensions \(N, C, H, W\), got shape \(3, 4, 5\)"),
    "low_integer": (
        {"low": t(N, 3, 4, 5, dtype=torch.uint8)},
        "low must have a real floating-point dtype, got torch.uint8",
    ),
    "skip_complex": (
        {"skip": t(N, 2, 8, 10, dtype=torch.complex128)},
        "skip must have a real floating-point dtype, got torch.complex128",
    ),
    "flag_is_a_word": ({"low_is_masked": "yes"}, "low_is_masked must be True or False, got str"),
    "skip_of_the_size_of_low": ({"skip": t(N, 2, 4, 5)}, SKIP_SHAPE + r"\(2, 2, 4, 5\)"),
    "skip_of_odd_size": ({"skip": t(N, 2, 8, 11)}, SKIP_SHAPE + r"\(2, 2, 8, 11\)"),
    "skip_of_other_batch": ({"skip": t(1, 2, 8, 10)}, SKIP_SHAPE + r"\(1, 2, 8, 10\)"),
    "skip_of_other_dtype": (
        {"skip": t(N, 2, 8, 10).double()},
        "skip must have the dtype of low, torch.float32, got torch.float64",
    ),
    "skip_on_other_device": (
        {"skip": t(N, 2, 8, 10, device="meta")},
        "skip must be on the device of low, cpu, got meta",
    ),
    "weight_of_other_channels": (
        {"weight": t(C_OUT, 3, 3, 3)},
        r"weight must have shape \(C_out, 5, 3, 3\), got \(8, 3, 3, 3\)",
    ),
    "weight_of_other_kernel": (
        {"weight": t(C_OUT, 5, 5, 5)},
        r"weight must have shape \(C_out, 5, 3, 3\), got \(8, 5, 5, 5\)",
    ),
    "weight_of_other_dtype": (
        {"weight": t(C_OUT, 5, 3, 3).half()},
        "weight must have the dtype of low, torch.float32, got torch.float16",
    ),
    "bias_of_wrong_length": ({"bias": t(5)}, r"bias must have shape \(8,\), got \(5\)"),
    "low_mask_of_the_size_of_skip": (
        {"low_mask": t(N, 1, 8, 10)},
        r"low_mask must have shape \(N, 1, H, W\) with N=2, H=4, W=5, got \(2, 1, 8, 10\)",
    ),
    "low_mask_of_many_planes": (
        {"low_mask": t(N, 3, 4, 5)},
        r"low_mask must have shape \(N, 1, H, W\) with .*, got \(2, 3, 4, 5\)",
    ),
    "skip_mask_of_other_batch": (
        {"skip_mask": t(1, 1, 8, 10)},
        r"skip_mask must have shape \(N, 1, H, W\) with N=2, H=8, W=10, got \(1, 1, 8, 10\)",
    ),
    "skip_mask_integer": (
        {"skip_mask": t(N, 1, 8, 10, dtype=torch.int64)},
        "skip_mask must be bool, uint8 or floating-point, got torch.int64",
    ),
    "skip_mask_missing": ({"skip_mask": None}, "skip_mask must be a tensor, got NoneType"),
    "low_mask_on_other_device": (
        {"low_mask": t(N, 1, 4, 5, device="meta")},
        "low_mask must be on the device of low, cpu, got meta",
    ),
    "scale_unknown": ({"scale": None}, "scale must be 'window' or 'sum', got None"),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED_UPCAT.values(), ids=REFUSED_UPCAT)
def test_partial_conv2d_upcat_refuses(changes, message):
    refused("partial_conv2d_upcat", partial_conv2d_upcat, UPCAT, changes, message)


def test_partial_conv2d_upcat_takes_what_the_refusals_start_from():
    assert partial_conv2d_upcat(**UPCAT)[0].shape == (N, C_OUT, 8, 10)


@pytest.mark.parametrize("form", ["x", "Phases", "", None, True])
def test_an_unknown_form_is_refused(form):
    message = rf"form must be 'auto', 'phases' or 'concatenation', got {form!r}$"
    refused("partial_conv2d_upcat", partial_conv2d_upcat, UPCAT, {"form": form}, message)


@pytest.mark.parametrize("form", ["auto", *FORMS])
def test_every_form_is_taken(form):
    assert partial_conv2d_upcat(**UPCAT, form=form)[0].shape == (N, C_OUT, 8, 10)
