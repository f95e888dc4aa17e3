"""What holds for every test: uninitialised memory is NaN, algorithms are deterministic, skipped GPU tests are named."""

import os

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic cuBLAS wants it before CUDA starts

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # heeded when triton is imported, which msa_ops does

CUDA = pytest.param("cuda", marks=pytest.mark.gpu)


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            # The summary folds skips of equal reason, so the reason carries the name.
            item.add_marker(pytest.mark.skip(reason=f"{item.originalname} [cuda]: no CUDA device"))


@pytest.fixture(scope="session", autouse=True)
def uninitialised_memory_is_nan():
    """With deterministic algorithms on, torch fills what `empty` returns, in Python and in C++: floats with NaN,
    integers with their largest value, bools with True. An element that a kernel forgets to write then shows."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.utils.deterministic.fill_uninitialized_memory = before[1]


@pytest.fixture(scope="session", autouse=True)
def float32_is_float32():
    """No TF32: float32 is compared with float32."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """The tests' tensors are too small for two threads, whose waiting for one another on a busy machine takes minutes;
    the tests about threads ask for two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(params=["reference", "cpu", CUDA], scope="session")
def backend(request):
    """Every backend that has float64: the plain reference and the compiled kernels of both devices."""
    return request.param


@pytest.fixture(scope="session")
def device(backend):
    return "cuda" if backend == "cuda" else "cpu"


@pytest.fixture(params=["cpu", CUDA], scope="session")
def native(request):
    """The compiled kernels only; the name is both the backend's and the device's."""
    return request.param
