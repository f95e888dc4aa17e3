"""What the wheel promises that can be seen without building it, and the command that tests it elsewhere."""

import re
import shutil
import subprocess
import sys
import tarfile

import pytest

from msa_ops import info
from msa_ops.core import native

from . import __main__ as command
from . import environments, numbers

#: The newest versions that manylinux_2_28, the platform of torch's own wheels, has.
NEWEST = {"GLIBC": (2, 28), "GLIBCXX": (3, 4, 24), "CXXABI": (1, 3, 11), "GCC": (7, 0, 0)}


@pytest.mark.skipif(shutil.which("objdump") is None, reason="objdump is not installed")
@pytest.mark.skipif(native.MISSING["cpu"] is not None, reason="the libraries are not built")
@pytest.mark.parametrize("name", ["_cpu", "_cuda"])
def test_the_libraries_load_wherever_torch_does(name):
    library = native.library_folder() / f"{name}.so"
    if not library.exists():
        pytest.skip(f"{name} is not built")
    symbols = subprocess.run(["objdump", "-T", library], capture_output=True, text=True, check=True).stdout
    found = re.findall(r"\*UND\*.*\(([A-Z]+)_([\d.]+)\) *(\S+)", symbols)
    assert found
    assert [entry for entry in found if tuple(map(int, entry[1].split("."))) > NEWEST[entry[0]]] == []


@pytest.mark.skipif(native.MISSING["cpu"] is not None, reason="the libraries are not built")
def test_the_build_is_known_without_a_python_extension():
    facts = native.build_facts()
    assert facts.keys() == {
        "compiler",
        "torch_headers",
        "oldest_torch",
        "cuda_compiler",
        "cuda_arch_list",
        "instruction_set",
    }
    assert facts["oldest_torch"] == ".".join(map(str, native.OLDEST_TORCH))
    assert facts["instruction_set"] in ("AVX-512", "AVX2", "SSE2", "portable")
    assert environments.check_info("\n".join(f"{name}  {value}" for name, value in info.facts().items()))


@pytest.mark.parametrize(
    ("printed", "message"),
    [
        ("built with  GCC\nruns on  torch 2.11\nprocessor  AVX2\n", "backend cpu: missing"),
        (
            "built with  GCC\nruns on  torch\nprocessor  AVX2\nbackend cpu  not available: too old",
            "backend cpu: not available: too old",
        ),
        ("built with  not known: another Python\n", "built with: not known: another Python"),
    ],
)
def test_an_installation_that_does_not_know_itself_fails(printed, message):
    with pytest.raises(environments.StepError, match=f"^msa_ops.info: {message}$"):
        environments.check_info(printed)


def test_a_wrong_number_fails(monkeypatch, capsys):
    assert numbers.main() == 0
    convolution = numbers.LAYERS["partial_conv2d"]

    def off(*arguments, backend):
        return convolution[0](*arguments, backend=backend) * (1 if backend == "reference" else 1 + 1e-5)

    monkeypatch.setitem(numbers.LAYERS, "partial_conv2d", (off, *convolution[1:]))
    assert numbers.main() == 1
    assert '"partial_conv2d float32": 1.0' in capsys.readouterr().out.splitlines()[-1]


def test_a_python_that_is_not_here_is_named(tmp_path, capsys):
    wheel = tmp_path / "a.whl"
    wheel.touch()
    assert command.main([str(wheel), "--pairs", "9.9/2.13"]) == 1  # nothing was tested
    assert "| 9.9 | 2.13 | none | not installed: there is no python9.9 on this machine |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("results", "status"),
    [
        ([("passed", True)], 0),
        ([("passed", True), ("not installed: no such release", False)], 0),
        ([("passed", True), ("failed: 1 failed, 9 passed", True)], 1),
        ([("not installed: no such release", False)], 1),
    ],
)
def test_the_exit_status_says_whether_a_test_failed(results, status, monkeypatch, tmp_path, capsys):
    wheel = tmp_path / "a.whl"
    wheel.touch()
    left = iter(results)

    def check(wheel, python, torch, with_tests):
        result, was_installed = next(left)
        return environments.Outcome(python, torch, result=result, was_installed=was_installed)

    monkeypatch.setattr(environments, "check", check)
    assert command.main([str(wheel), "--pairs", *["3.12/2.13"] * len(results)]) == status
    printed = capsys.readouterr().out
    assert all(f"| {result} |" in printed for result, _ in results)


def test_the_reason_is_one_line():
    pip = "WARNING: x\nERROR: No matching distribution found for torch==2.99.*\nERROR: more\nsomething\n"
    assert environments.reason(pip) == "No matching distribution found for torch==2.99.*"
    assert (
        environments.reason("FAILED tests/a.py\n==== 1 failed, 2 passed in 3 s ====\n") == "1 failed, 2 passed in 3 s"
    )
    with pytest.raises(environments.StepError, match=r"^boom$"):
        environments.run(sys.executable, "-c", "print('boom'); exit(3)", folder=environments.ROOT)
    with pytest.raises(environments.StepError, match="took more than 0 s"):
        environments.run(sys.executable, "-c", "import time; time.sleep(60)", folder=environments.ROOT, seconds=0.1)


def test_the_source_distribution_has_every_source(tmp_path):
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", tmp_path, "sdist", "--dist-dir", tmp_path]
    subprocess.run(command, cwd=environments.ROOT, check=True, capture_output=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        packed = {name.partition("/")[2] for name in file.getnames()}
    folders = {"csrc": ("*",), "tests": ("*",), "msa_ops": ("*.py", "py.typed"), "msa_model": ("*.py", "*.safetensors")}
    sources = {
        str(path.relative_to(environments.ROOT))
        for folder, patterns in folders.items()
        for pattern in patterns
        for path in (environments.ROOT / folder).rglob(pattern)
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert sources | {"setup.py", "pyproject.toml", "Makefile", "LICENSE", "README.md"} <= packed
    assert not [name for name in packed if name.endswith((".so", ".pyc"))]
