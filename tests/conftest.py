"""What holds for every test: uninitialised memory is NaN, algorithms are deterministic, GPU tests are skipped in one
line where there is no GPU, and hypothesis draws the same examples in every run."""

import os

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic cuBLAS wants it before CUDA starts

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # heeded when triton is imported, which msa_ops does

try:
    from hypothesis import settings
except ImportError:  # a bare GPU machine may lack it
    settings = None

CUDA = pytest.param("cuda", marks=pytest.mark.gpu)
NO_GPU = "needs a CUDA device"
#: The category of the tests that are skipped for want of a GPU, as the last line of a run counts them.
SKIPPED_GPU = "GPU tests skipped"

if settings is not None:
    # No database: the workers of pytest-xdist would share it. `--hypothesis-profile search` draws other examples in
    # every run; a failure then prints the @reproduce_failure line that repeats it.
    settings.register_profile("repeatable", deadline=None, database=None, derandomize=True, print_blob=True)
    settings.register_profile("search", deadline=None, database=None, max_examples=1000, print_blob=True)
    settings.load_profile("repeatable")


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason=NO_GPU))


@pytest.hookimpl(tryfirst=True)
def pytest_report_teststatus(report):
    """Keeps these skips apart from the others, which the summary lists one by one."""
    if report.skipped and isinstance(report.longrepr, tuple) and NO_GPU in report.longrepr[2]:
        return SKIPPED_GPU, "", "GPU"
    return None


def pytest_terminal_summary(terminalreporter):
    skipped = terminalreporter.stats.get(SKIPPED_GPU, [])
    if skipped:
        names = dict.fromkeys(report.nodeid.rsplit("::", 1)[1].split("[")[0] for report in skipped)
        first = ", ".join(list(names)[:3]) + (", …" if len(names) > 3 else "")
        terminalreporter.write_line(f"{len(skipped)} GPU tests skipped: no CUDA device ({len(names)} names: {first})")


@pytest.fixture(scope="session", autouse=True)
def uninitialised_memory_is_nan():
    """With deterministic algorithms on, torch fills what `empty` returns, in Python and in C++: floats with NaN,
    integers with their largest value, bools with True. An element that a kernel forgets to write then shows."""
    before = torch.get_deterministic_debug_mode(), torch.utils.deterministic.fill_uninitialized_memory
    torch.set_deterministic_debug_mode("error")  # use_deterministic_algorithms(True), but imports no compiler
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.set_deterministic_debug_mode(before[0])
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
