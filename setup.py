"""Builds the native code with ninja: two libraries of operators, which ``torch.ops.load_library`` loads.

- ``msa_ops/_cpu.so``: the operators' schemas and CPU kernels, and what the build was made with.
- ``msa_ops/_cuda.so``: the CUDA kernels, in builds that have nvcc.

Neither has a Python API, so one wheel serves every Python. `csrc/common/glibc.h` says why it also serves older systems
than the one that built it.

`torch.utils.cpp_extension` refuses CUDA sources wherever the installed torch is a CPU build. Ours are written against
torch's stable ABI and need only its headers, so one wheel built on a machine without a GPU serves both kinds of torch;
this file therefore drives ninja itself.

Environment:
    MSA_OPS_NO_CUDA=1      leaves the CUDA part out.
    MSA_OPS_FORCE_CUDA=1   fails where the CUDA part cannot be built.
    MSA_OPS_PORTABLE=1     builds the CPU kernels without their AVX2 versions, so that tests can run what a processor
                           without AVX2 would. To have such a build beside the ordinary one:

                               MSA_OPS_PORTABLE=1 MSA_OPS_NO_CUDA=1 python setup.py build_ext \\
                                   --build-temp build/portable --build-lib build/portable
                               MSA_OPS_LIBRARY_DIR=build/portable/msa_ops python -m pytest tests/ops

    MSA_OPS_SANITIZE=address  builds the CPU kernels with AddressSanitizer and UndefinedBehaviorSanitizer,
    MSA_OPS_SANITIZE=thread   with ThreadSanitizer, and without their AVX2 versions. Either needs the sanitizer's
                           library loaded before Python (LD_PRELOAD); `make sanitize` and `make sanitize-threads` build
                           and run them beside the ordinary build, as above.
    TORCH_CUDA_ARCH_LIST   picks architectures ("8.0;9.0+PTX").
    MAX_JOBS               limits parallel compilers.
    CXX                    is the C++ compiler.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
OLDEST_TORCH = "2.11"  # the stable ABI target: binaries run on this torch and every later one
DEFAULT_ARCH_LIST = "8.0;9.0+PTX"
#: MSA_OPS_SANITIZE -> flags of the compiler and the linker. Every finding ends the process. More than -O1 takes many
#: times as long to compile and finds no more: with the checks between its steps no loop is vectorised.
SANITIZERS = {
    "address": [
        "-fsanitize=address,undefined,float-cast-overflow",
        "-fno-sanitize-recover=all",
        "-D_GLIBCXX_ASSERTIONS",  # bounds of std::vector and std::array
    ],
    "thread": ["-fsanitize=thread"],
}
SLOW_TO_CHECK = "winograd_tiles.cpp"
GIB_PER_JOB = 2  # what one compiler of a torch header needs at most

CPU, CUDA = "msa_ops._cpu", "msa_ops._cuda"
FACTS_SOURCE = "csrc/facts.cpp"


def sources(suffix: str) -> list[str]:
    """The operators' sources: every file with this suffix under csrc, so that a new operator changes nothing here."""
    return sorted(str(file.relative_to(ROOT)) for file in (ROOT / "csrc").rglob(f"*{suffix}"))


def parallel_jobs() -> int:
    if os.environ.get("MAX_JOBS"):
        return max(1, int(os.environ["MAX_JOBS"]))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return max(1, min(cores, int(memory / GIB_PER_JOB)))


def find_nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME")
    for candidate in ([f"{home}/bin/nvcc"] if home else []) + ["nvcc", "/usr/local/cuda/bin/nvcc"]:
        if found := shutil.which(candidate):
            return found
    return None


def choose_nvcc() -> tuple[str | None, str]:
    """The CUDA compiler to use, and the reason in words."""
    nvcc = find_nvcc()
    if os.environ.get("MSA_OPS_FORCE_CUDA") == "1":
        if nvcc is None:
            sys.exit("MSA_OPS_FORCE_CUDA=1, but no nvcc was found; set CUDA_HOME or PATH")
        return nvcc, "MSA_OPS_FORCE_CUDA=1"
    if os.environ.get("MSA_OPS_NO_CUDA") == "1":
        return None, "MSA_OPS_NO_CUDA=1"
    return nvcc, "nvcc found" if nvcc else "no nvcc found"


def arch_list() -> str:
    chosen = os.environ.get("TORCH_CUDA_ARCH_LIST")
    if chosen:
        return chosen.replace(" ", ";")
    import torch

    if torch.cuda.is_available():
        found = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
        return ";".join(f"{major}.{minor}" for major, minor in sorted(found))
    return DEFAULT_ARCH_LIST


def arch_flags(archs: str) -> list[str]:
    flags = []
    for entry in filter(None, archs.split(";")):
        match = re.fullmatch(r"(\d+)\.(\d+)([af]?)(\+PTX)?", entry)
        if not match:
            sys.exit(f"TORCH_CUDA_ARCH_LIST: {entry!r} is not of the form 8.0, 9.0a or 9.0+PTX")
        number = match[1] + match[2] + match[3]
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if match[4]:
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def quote(text: str) -> str:
    """A word of a shell command in a ninja file."""
    return shlex.quote(text).replace("$", "$$")


def join(words: list[str]) -> str:
    return " ".join(map(quote, words))


def path(p: Path) -> str:
    """A path in a ninja build line."""
    return str(p).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def system_includes(folders: list[str]) -> list[str]:
    return [word for folder in folders for word in ("-isystem", folder)]


def rule(name: str, command: str, depfile: bool = False) -> list[str]:
    lines = [f"rule {name}", f"  command = {command}", f"  description = {name.split('_')[0]} $out"]
    return [*lines, *(["  depfile = $out.d", "  deps = gcc"] if depfile else [])]


def sanitizer_flags(source: str = "") -> list[str]:
    chosen = os.environ.get("MSA_OPS_SANITIZE")
    if not chosen:
        return []
    if chosen not in SANITIZERS:
        sys.exit(f"MSA_OPS_SANITIZE must be one of {', '.join(SANITIZERS)}, got {chosen!r}")
    flags = ["-O1", "-g1", "-fno-omit-frame-pointer", *SANITIZERS[chosen]]
    if chosen == "address" and source.endswith(SLOW_TO_CHECK):
        # Its steps are unrolled into so much code that checks in place take the compiler tens of minutes: the addresses
        # are checked by calls, and undefined behaviour is not.
        flags += ["-fno-sanitize=undefined", "--param=asan-instrumentation-with-call-threshold=0"]
    return flags


def first_line(command: list[str], pattern: str) -> str:
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return next(line.strip() for line in text.splitlines() if re.search(pattern, line))


class NinjaBuild(build_ext):
    """Builds every extension of the list below in one ninja run."""

    def finalize_options(self):
        given = self.build_temp
        super().finalize_options()
        # An editable installation and a wheel have other folders by default. Object files in one place serve both.
        self.build_temp = given or str(ROOT / "build" / "native")

    def build_extensions(self):
        import torch
        from torch.utils.cpp_extension import include_paths, library_paths

        cxx = os.environ.get("CXX", "c++")
        nvcc, reason = choose_nvcc()
        archs = arch_list() if nvcc else ""
        sanitizers = sanitizer_flags()
        # The functions that choose between clones run before the thread sanitizer's own are bound, which they call.
        is_portable = os.environ.get("MSA_OPS_PORTABLE") == "1" or os.environ.get("MSA_OPS_SANITIZE") == "thread"
        facts = {
            "MSA_COMPILER": first_line([cxx, "--version"], "."),
            "MSA_TORCH_HEADERS": torch.__version__,
            "MSA_OLDEST_TORCH": OLDEST_TORCH,
            "MSA_CUDA_COMPILER": first_line([nvcc, "--version"], "release") if nvcc else "none",
            "MSA_CUDA_ARCH_LIST": archs,
        }
        target = "0x{:02x}{:02x}000000000000".format(*map(int, OLDEST_TORCH.split(".")))
        common = ["-std=c++20", "-O3", f"-I{ROOT.resolve() / 'csrc'}"]
        on_torch = [f"-DTORCH_TARGET_VERSION={target}", "-DTORCH_STABLE_ONLY", *system_includes(include_paths())]
        cxx_flags = [*common, "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
        cxx_flags += ["-DMSA_OPS_PORTABLE"] if is_portable else []
        facts_flags = [f'-D{name}="{value}"' for name, value in facts.items()]
        nvcc_flags = [*common, *on_torch, "-DUSE_CUDA", "--expt-relaxed-constexpr"]
        nvcc_flags += ["-Xcompiler=-fPIC,-fvisibility=hidden", *arch_flags(archs)]
        # libtorch_cuda is reached through libtorch, so that the same link line serves every torch.
        libraries = [*(f"-L{path}" for path in library_paths()), "-ltorch_cpu", "-ltorch", "-lc10"]
        old_glibc = [f"-Xlinker=-l:{name}" for name in ("libpthread.so.0", "libdl.so.2", "librt.so.1")]
        compile_cxx = f"{quote(cxx)} -MD -MF $out.d {join(cxx_flags)}"
        lines = [
            "ninja_required_version = 1.8",
            f"libraries = {join(libraries)}",
            *rule("compile_cpu", f"{compile_cxx} {join(on_torch)} $sanitizers -c $in -o $out", depfile=True),
            *rule("compile_facts", f"{compile_cxx} {join(facts_flags)} -c $in -o $out", depfile=True),
            *rule(
                "compile_cuda", f"{quote(nvcc or '')} -MD -MF $out.d {join(nvcc_flags)} -c $in -o $out", depfile=True
            ),
            *rule("link_cpu", f"{quote(cxx)} {join(sanitizers)} -shared $in -Wl,--no-as-needed $libraries -o $out"),
            # The static CUDA runtime keeps the binary independent of the machine's CUDA libraries. It calls functions
            # that are in these three libraries before glibc 2.34.
            *rule(
                "link_cuda",
                f"{quote(nvcc or '')} -shared -cudart=static $in -Xlinker=--no-as-needed $libraries "
                f"{join(old_glibc)} -o $out",
            ),
        ]
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        self.extensions = [e for e in self.extensions if nvcc or e.name != CUDA]
        for extension in self.extensions:
            kind = extension.name.rpartition("_")[2]
            objects = []
            for source in extension.sources:
                objects.append(path(build / (source.replace("/", ".") + ".o")))
                compiler = "facts" if source == FACTS_SOURCE else kind
                lines.append(f"build {objects[-1]}: compile_{compiler} {path((ROOT / source).resolve())}")
                lines.append(f"  sanitizers = {join(sanitizer_flags(source))}")
            output = Path(self.get_ext_fullpath(extension.name)).resolve()
            output.parent.mkdir(parents=True, exist_ok=True)
            lines.append(f"build {path(output)}: link_{kind} {' '.join(objects)}")
        (build / "build.ninja").write_text("\n".join(lines) + "\n")

        jobs = parallel_jobs()
        where = f"CUDA for {archs}" if nvcc else "no CUDA"
        kernels = "portable CPU kernels" if is_portable else "CPU kernels"
        kernels += f" with {os.environ['MSA_OPS_SANITIZE']} sanitizer" if sanitizers else ""
        print(
            f"msa_ops: building {kernels} with {cxx}, {where} ({reason}), torch {torch.__version__}, {jobs} jobs",
            flush=True,
        )
        command = [sys.executable, "-m", "ninja", "-C", str(build), "-j", str(jobs)]
        if subprocess.run(command).returncode:
            sys.exit("msa_ops: the build failed; the compiler's message is above")

    def get_ext_filename(self, name):
        # The libraries have no Python API, hence no interpreter tag.
        return str(Path(*name.split("."))) + ".so"


class WheelForEveryPython(bdist_wheel):
    """Tags the wheel for every Python 3 of this platform (pyproject.toml says from which version on)."""

    def get_tag(self):
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[
        Extension(CPU, sources(".cpp")),
        Extension(CUDA, sources(".cu")),
    ],
    cmdclass={"build_ext": NinjaBuild, "bdist_wheel": WheelForEveryPython},
)
