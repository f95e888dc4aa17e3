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


def compile_report(source: str, architecture: str, nvcc: str) -> str:
    """Returns ptxas' resource report for every kernel of the file."""
    from torch.utils.cpp_extension import include_paths

    with tempfile.TemporaryDirectory() as folder:
        flags = "-std=c++20 -O3 --expt-relaxed-constexpr -Xcompiler=-fPIC -Xptxas=-v -DUSE_CUDA -DTORCH_STABLE_ONLY"
        flags += (
            f" -DTORCH_TARGET_VERSION=0x020b000000000000 -gencode=arch=compute_{architecture},code=sm_{architecture}"
        )
        headers = [f"-I{CSRC}", *(f"-isystem={path}" for path in include_paths())]
        command = [nvcc, *flags.split(), *headers, "-c", source, "-o", os.path.join(folder, "out.o")]
        result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"{source} does not compile for sm_{architecture}:\n{result.stderr}")
    return result.stderr


def kernels(report: str) -> list[dict[str, int | str]]:
    """Returns one entry per kernel: name, registers, stack and spill bytes."""
    found: list[dict[str, int | str]] = []
    for line in report.splitlines():
        if match := re.search(r"Compiling entry function '(\w+)'", line):
            found.append({"name": match[1], "registers": 0, "stack": 0, "spill": 0})
        elif match := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            found[-1] |= {"stack": int(match[1]), "spill": int(match[2]) + int(match[3])}
        elif match := re.search(r"Used (\d+) registers", line):
            found[-1]["registers"] = int(match[1])
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cuda_resources", description=__doc__.split("\n\n")[0])
    parser.add_argument("sources", nargs="+")
    parser.add_argument("--nvcc", default="nvcc")
    arguments = parser.parse_args(argv)
    spilling = []
    jobs = list(itertools.product(arguments.sources, ARCHITECTURES))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        reports = pool.map(lambda job: compile_report(*job, arguments.nvcc), jobs)
        for (source, architecture), report in zip(jobs, reports, strict=True):
            entries = kernels(report)
            registers = [entry["registers"] for entry in entries]
            spilling += [entry["name"] for entry in entries if entry["spill"]]
            stacks, spills = (sum(bool(entry[name]) for entry in entries) for name in ("stack", "spill"))
            print(
                f"{source} sm_{architecture}: {len(entries)} kernels, at most {max(registers, default=0)} registers, "
                f"{stacks} with a stack frame, {spills} spill",
                flush=True,
            )
    for name in spilling:
        print(f"spills: {name}", file=sys.stderr)
    return 1 if spilling else 0


if __name__ == "__main__":
    sys.exit(main())
