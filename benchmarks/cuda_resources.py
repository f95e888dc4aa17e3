"""``python -m benchmarks.cuda_resources FILE.cu …``: compiles CUDA sources for sm_80 and sm_90a, without a GPU.

Prints per file and architecture how many kernels there are, their registers, stack and spills. Spills are an error.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ARCHITECTURES = ("80", "90a")
CSRC = Path(__file__).resolve().parents[1] / "csrc"  # what the sources' #include lines start from
NVCC = "nvcc -std=c++20 -O3 --expt-relaxed-constexpr -Xcompiler=-fPIC -Xptxas=-v -DUSE_CUDA -DTORCH_STABLE_ONLY"
TORCH = "-DTORCH_TARGET_VERSION=0x020b000000000000"
#: What ptxas says of a kernel: name, bytes of stack, of spill stores and of spill loads, registers.
KERNEL = re.compile(
    r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
    r".*?Used (\d+) registers",
    re.DOTALL,
)


def compile_report(job: tuple[str, str]) -> str:
    """Returns ptxas' resource report for every kernel of a file, for one architecture."""
    from torch.utils.cpp_extension import include_paths

    source, architecture = job
    headers = [f"-I{CSRC}", *(f"-isystem={path}" for path in include_paths())]
    target = f"-gencode=arch=compute_{architecture},code=sm_{architecture}"
    with tempfile.TemporaryDirectory() as folder:
        command = [*f"{NVCC} {TORCH}".split(), target, *headers, "-c", source, "-o", f"{folder}/out.o"]
        result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"{source} does not compile for sm_{architecture}:\n{result.stderr}")
    return result.stderr


def summary(report: str) -> tuple[str, list[str]]:
    """Returns the report in a line, and the kernels that spill."""
    kernels = KERNEL.findall(report)
    registers = max((int(kernel[4]) for kernel in kernels), default=0)
    stacks = sum(int(kernel[1]) > 0 for kernel in kernels)
    spilling = [name for name, _, stores, loads, _ in kernels if int(stores) + int(loads)]
    text = f"{len(kernels)} kernels, at most {registers} registers, {stacks} with a stack frame, {len(spilling)} spill"
    return text, spilling


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cuda_resources", description=__doc__.split("\n\n")[0])
    parser.add_argument("sources", nargs="+")
    jobs = list(itertools.product(parser.parse_args(argv).sources, ARCHITECTURES))
    spilling: list[str] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for (source, architecture), report in zip(jobs, pool.map(compile_report, jobs), strict=True):
            text, own = summary(report)
            print(f"{source} sm_{architecture}: {text}", flush=True)
            spilling += own
    for name in spilling:
        print(f"spills: {name}", file=sys.stderr)
    return int(bool(spilling))


if __name__ == "__main__":
    sys.exit(main())
