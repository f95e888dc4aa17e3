"""Which backend runs, and why another cannot."""

import pytest
import torch

from msa_ops import not_supported_reasons, partial_conv2d, partial_conv2d_upcat

from ..support.internals import backends
from ..support.internals import native as loader
from ..support.profiling import Operators

OPERATORS = pytest.mark.parametrize("operator", ["partial_conv2d", "partial_conv2d_upcat"])


def make(device="cpu", dtype=torch.float32):
    x, weight = torch.ones(1, 2, 16, 16, device=device), torch.ones(3, 2, 3, 3, device=device)
    return x.to(dtype), torch.ones(1, 1, 16, 16, device=device), weight.to(dtype)


def call(operator, device="cpu", dtype=torch.float32, **options):
    x, mask, weight = make(device, dtype)
    if operator == "partial_conv2d":
        return partial_conv2d(x, mask, weight, **options)
    return partial_conv2d_upcat(x[:, :1, ::2, ::2], mask[..., ::2, ::2], x[:, 1:], mask, weight, **options)


# ---- the choice ----------------------------------------------------------------------------------------------------


def test_the_compiled_part_is_there():
    """Without it the tests below would compare the reference with itself."""
    assert loader.MISSING["cpu"] is None


@OPERATORS
def test_auto_runs_the_kernels_of_the_device(native, operator):
    with Operators() as ran:
        call(operator, native)
    assert ran.names == [f"{operator}_forward"]


@OPERATORS
def test_reference_runs_no_kernel(native, operator):
    with Operators() as ran:
        call(operator, native, backend="reference")
    assert ran.names == []


@OPERATORS
def test_auto_takes_the_reference_on_other_devices(operator):
    with Operators() as ran:
        output, new_mask = call(operator, "meta")
    assert ran.names == []
    assert output.device == new_mask.device == torch.device("meta")


@OPERATORS
def test_auto_takes_the_reference_where_the_kernels_are_missing(operator, monkeypatch):
    monkeypatch.setitem(loader.MISSING, "cpu", "it was left at home")
    with Operators() as ran:
        call(operator)
    assert ran.names == []
    with pytest.raises(RuntimeError, match=f"msa_ops::{operator}: backend 'cpu' cannot run: it was left at home"):
        call(operator, backend="cpu")


@OPERATORS
@pytest.mark.parametrize(
    ("backend", "reason"),
    [
        ("cuda", "it runs on cuda tensors, got one on cpu"),
        ("triton", "it reads and writes maps in channels_last only"),
    ],
)
def test_a_named_backend_that_cannot_raises_and_never_falls_back(operator, backend, reason):
    with (
        Operators() as ran,
        pytest.raises(RuntimeError, match=f"msa_ops::{operator}: backend '{backend}' cannot run: .*{reason}"),
    ):
        call(operator, backend=backend)
    assert ran.names == []


@OPERATORS
def test_cpu_kernels_refuse_other_devices(operator):
    with pytest.raises(
        RuntimeError, match=f"msa_ops::{operator}: backend 'cpu' cannot run: it runs on cpu tensors, got one on meta"
    ):
        call(operator, "meta", backend="cpu")


@OPERATORS
@pytest.mark.parametrize("backend", ["gpu", "CPU", None])
def test_an_unknown_backend_is_refused_with_the_known_ones(operator, backend):
    with pytest.raises(ValueError, match=f"unknown backend {backend!r}; known are auto, reference, cpu, cuda, triton"):
        call(operator, backend=backend)


# ---- not_supported_reasons -----------------------------------------------------------------------------------------


@OPERATORS
@pytest.mark.parametrize("backend", ["auto", "reference", "cpu"])
def test_no_reasons_where_it_can(operator, backend):
    assert not_supported_reasons(operator, backend, *make()) == []


def test_all_reasons_are_given_at_once(monkeypatch):
    monkeypatch.setitem(loader.MISSING, "cuda", "no such library")
    reasons = not_supported_reasons("partial_conv2d", "cuda", *make(dtype=torch.float8_e5m2))
    assert reasons == [
        "no such library",
        "it runs on cuda tensors, got one on cpu",
        "it has no kernel for torch.float8_e5m2",
    ]


def test_arguments_that_are_no_tensors_do_not_count():
    assert not_supported_reasons("partial_conv2d", "cpu", *make(), None, 2, "same") == []


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"unknown operator 'conv'; known are partial_conv2d, "):
        not_supported_reasons("conv", "cpu")
    with pytest.raises(ValueError, match=r"unknown backend 'tpu'; known are auto, "):
        not_supported_reasons("partial_conv2d", "tpu")


def test_every_operator_with_kernels_is_known():
    assert set().union(*(kernels.operators for kernels in backends.KERNELS.values())) <= set(backends.operators())
    assert set(backends.KERNELS) <= set(backends.BACKENDS)


def test_what_auto_prefers_on_cuda():
    class Tensor:
        device = torch.device("cuda")

        def __init__(self, dtype):
            self.dtype = dtype

    for operator in backends.operators():
        assert backends.preferred(operator, Tensor(torch.float64)) == ("cuda",)
        for dtype in (torch.float16, torch.bfloat16):
            assert backends.preferred(operator, Tensor(dtype)) == ("triton", "cuda")
    assert backends.preferred("partial_conv2d", Tensor(torch.float32)) == ("cuda",)
    assert backends.preferred("shift_attention", Tensor(torch.float32)) == ("triton", "cuda")
    assert backends.preferred("shift_attention", torch.empty(0, device="meta")) == ()


def test_why_triton_is_missing(monkeypatch):
    assert loader._find_triton("no compiled part") == "no compiled part"
    monkeypatch.setattr(loader.importlib.util, "find_spec", lambda name: "found")
    monkeypatch.setattr(loader.shutil, "which", lambda name: None)
    assert "needs a C compiler" in loader._find_triton(None)
    monkeypatch.setattr(loader.importlib.util, "find_spec", lambda name: None)
    assert loader._find_triton(None) == "triton is not installed"


@pytest.mark.parametrize("version", ["2.10.1+cpu", "1.13.0"])
def test_an_older_torch_is_named_as_the_reason(version, monkeypatch):
    monkeypatch.setattr(torch, "__version__", version)
    assert loader._load_cpu() == f"torch {version} is older than 2.11"


def test_a_missing_cuda_part_is_named_as_the_reason(monkeypatch, tmp_path):
    assert loader._load_cuda("the CPU part does not load") == "the CPU part does not load"
    monkeypatch.setattr(torch.version, "cuda", None)
    assert loader._load_cuda(None) == "this torch is built without CUDA"
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setenv("MSA_OPS_LIBRARY_DIR", str(tmp_path))
    assert loader._load_cuda(None) == "msa_ops was built without CUDA (msa_ops/_cuda.so is missing)"
    (tmp_path / "_cuda.so").write_text("not a library")
    assert loader._load_cuda(None).startswith("msa_ops/_cuda.so does not load (")
