"""Launches of Triton kernels name every argument, and Python implementations have the parameters of their schema."""

import re
from pathlib import Path

import pytest
import torch

import msa_ops
from msa_ops.core import native, registration

if native.MISSING["triton"] is not None:
    pytest.skip(f"no Triton: {native.MISSING['triton']}", allow_module_level=True)

import triton
import triton.language as tl

from msa_ops.core.triton.launch import launch

DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
PACKAGE = Path(msa_ops.__file__).parent


@triton.jit
def add_kernel(x, amount, size, BLOCK: tl.constexpr, TWICE: tl.constexpr = False):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + i, mask=i < size, other=0.0)
    tl.store(x + i, value + (2 * amount if TWICE else amount), mask=i < size)


def arguments(**changes):
    x = torch.zeros(5, device=DEVICE)
    return {"x": x, "amount": 3, "size": 4, "BLOCK": 4} | changes


def test_a_launch_with_all_arguments_runs():
    given = arguments()
    launch(add_kernel, (2,), DEVICE, **given, num_warps=1, num_stages=1)
    assert given["x"].tolist() == [3.0, 3.0, 3.0, 3.0, 0.0]


def test_a_default_may_be_left_out_or_given():
    given = arguments(TWICE=True)
    launch(add_kernel, (1,), DEVICE, **given)
    assert given["x"].tolist() == [6.0, 6.0, 6.0, 6.0, 0.0]


@pytest.mark.parametrize("grid", [(2,), (0,)], ids=["programs", "no_programs"])
@pytest.mark.parametrize(
    ("removed", "added", "message"),
    [
        (None, "amonut", "unknown amonut"),
        ("amount", None, "missing amount"),
        ("BLOCK", "BLOCKS", "unknown BLOCKS; missing BLOCK"),
        (None, "num_ctas_", "unknown num_ctas_"),
    ],
)
def test_wrong_names_are_refused_every_time(removed, added, message, grid):
    """Triton's interpreter ignores unknown names."""
    given = {name: value for name, value in arguments().items() if name != removed}
    if added:
        given[added] = 3
    for _ in range(2):
        with pytest.raises(TypeError, match=f"^arguments of the Triton kernel add_kernel: {message}$"):
            launch(add_kernel, grid, DEVICE, **given)
    assert not given["x"].any()


def test_a_checked_launch_does_not_excuse_another_one():
    launch(add_kernel, (1,), DEVICE, **arguments())
    with pytest.raises(TypeError, match="unknown TWO"):
        launch(add_kernel, (1,), DEVICE, **arguments(TWO=2))


def test_an_empty_grid_launches_nothing():
    given = arguments()
    launch(add_kernel, (1, 0), DEVICE, **given)
    assert not given["x"].any()


def test_every_kernel_of_the_package_is_launched_through_the_check():
    sources = [path for path in PACKAGE.glob("**/triton/*.py") if path.name != "launch.py"]
    assert len(sources) > 10
    for path in sources:
        assert not re.search(r"\w\[.*\]\s*\(", re.sub(r'""".*?"""', "", path.read_text(), flags=re.S)), path


# ---- operators that Triton implements ------------------------------------------------------------------------------


def test_triton_implements_these_operators():
    assert sorted(registration.TRITON_FUNCTIONS) == [
        "hole_attention_triton_backward",
        "hole_attention_triton_forward",
        "partial_conv2d_triton_forward",
        "partial_conv2d_upcat_triton_backward",
        "partial_conv2d_upcat_triton_forward",
        "shift_attention_triton_argmax",
        "shift_attention_triton_backward",
        "shift_attention_triton_forward",
    ]


@pytest.mark.parametrize("name", sorted(registration.TRITON_FUNCTIONS))
def test_implementations_have_the_parameters_of_their_schema(name):
    """Loading one checks it."""
    assert callable(registration.TRITON_FUNCTIONS[name]())


def test_other_parameters_are_refused():
    def backward(grad_output, query, key):
        raise AssertionError("called")

    with pytest.raises(
        TypeError, match=r"^msa_ops::shift_attention_argmax: .*backward must have the parameters \(query"
    ):
        registration.check_parameters(backward, "shift_attention_argmax")


def test_an_implementation_is_checked_before_its_first_call():
    path = "msa_ops.shift_attention.triton.operators:forward"
    registration._define_triton("wrong_implementation", path, "(Tensor query) -> Tensor")
    for _ in range(2):
        with pytest.raises(
            TypeError, match=r"operators.forward must have the parameters \(query\), got \(query, key, "
        ):
            torch.ops.msa_ops.wrong_implementation(torch.ones(1))
    del registration.TRITON_FUNCTIONS["wrong_implementation"]
