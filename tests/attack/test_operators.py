"""The operator attack finds planted faults, its formulas are the definitions, and a crash names its case."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import msa_ops
from tests.ops.support import attention, definition

from . import campaign, operators, operators_attention, operators_convolution, operators_formula, operators_refused

ROOT = Path(__file__).parents[2]


def some(case, count, seed=0):
    """The messages of the cases that fail."""
    errors = []
    for number in range(count):
        try:
            case(np.random.default_rng([seed, number]))
        except AssertionError as error:
            errors.append(str(error))
    return errors


def test_a_few_seconds_find_nothing():
    result = campaign.run("operators", operators.case, seed=1, seconds=4)
    assert not result.failures, str(result)


@pytest.mark.parametrize("scale", ["window", "sum"])
def test_the_formula_of_the_convolution_is_the_definition(scale):
    x, weight, bias = torch.randn(2, 6, 7, 8), torch.randn(4, 3, 3, 2), torch.randn(4)
    known = torch.rand(2, 6, 7, 8) < 0.3
    geometry = (2, 1), (1, 2), (1, 3), 2
    output, new_mask, _ = operators_formula.partial_conv2d(
        x.double(), known, weight.double(), bias.double(), *geometry, scale
    )
    wanted = definition.partial_conv2d(x, known, weight, bias, *geometry, scale=scale)
    torch.testing.assert_close(output, wanted.output, rtol=1e-12, atol=1e-12)
    assert torch.equal(new_mask, wanted.new_mask)


@pytest.mark.parametrize("renormalize", [False, True])
def test_the_formula_of_the_attention_is_the_definition(renormalize):
    x, known = torch.randn(2, 3, 5, 4, dtype=torch.float64), torch.rand(2, 1, 5, 4) < 0.5
    options = dict(scale=3.0, radius=1, renormalize=renormalize)
    torch.testing.assert_close(
        operators_formula.hole_attention(x, known, **options), attention.hole_attention(x, known, **options)
    )


def test_it_finds_a_value_that_leaks_from_a_hole(monkeypatch):
    def leaking(input, mask, weight, *args, **options):
        output, new_mask = msa_ops.partial_conv2d(input, mask, weight, *args, **options)
        return output + 0 * input.sum(), new_mask

    monkeypatch.setattr(operators_convolution, "partial_conv2d", leaking)
    assert any("output" in error for error in some(operators_convolution.convolution, 25))


def test_it_finds_masks_read_as_their_bytes(monkeypatch):
    def counting(input, mask, weight, *args, **options):
        output, new_mask = msa_ops.partial_conv2d(input, mask, weight, *args, **options)
        if isinstance(mask, torch.Tensor) and mask.dtype == torch.bool and mask.numel():
            output = output / mask.view(torch.uint8).max().clamp_min(1)
        return output, new_mask

    monkeypatch.setattr(operators_convolution, "partial_conv2d", counting)
    assert some(operators_convolution.convolution, 25)


def test_it_finds_a_wrong_gradient_and_a_changed_argument(monkeypatch):
    def wrong(query, key, value, *args, **options):
        return msa_ops.shift_attention(query, 0.999 * key + 0.001 * key.detach(), value, *args, **options)

    monkeypatch.setattr(operators_attention, "shift_attention", wrong)
    assert any("gradient of key" in error for error in some(operators_attention.shift, 15))

    def writing(query, key, value, *args, **options):
        output = msa_ops.shift_attention(query, key, value, *args, **options)
        value.data.mul_(2)
        return output

    monkeypatch.setattr(operators_attention, "shift_attention", writing)
    assert any("changed its argument value" in error for error in some(operators_attention.shift, 15))


def test_it_finds_what_is_not_refused(monkeypatch):
    monkeypatch.setattr(operators_refused.msa_ops, "hole_attention", lambda *args, **options: None)
    errors = some(operators_refused.public, 40)
    assert errors
    assert all("must be refused" in error for error in errors)


def test_a_crash_names_its_case():
    code = "import ctypes, numpy as np; from tests.attack import operators as o; "
    code += "o.KINDS = {lambda rng: ctypes.string_at(0): 1.0}; o.case(np.random.default_rng([7, 41]), None)"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.returncode < 0
    assert "case_41_of_seed_7" in result.stderr
