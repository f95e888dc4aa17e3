"""``python -m benchmarks.cuda_resources``: compiles the CUDA kernels without a GPU and reads what they need of one.

The build is that of setup.py, for the same architectures (TORCH_CUDA_ARCH_LIST), and leaves its object files for the
next build. Prints per source and architecture how many kernels there are, their registers, stack and spills. Spills are
an error.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys

from .measure import ROOT

#: What ninja prints when it has compiled a source; the compiler's own lines follow.
SOURCE = re.compile(r"\] compile .*\b(csrc\S+\.cu)\.o$", re.MULTILINE)
#: What ptxas says of a kernel: name, architecture, bytes of stack, of spill stores and of spill loads, registers.
KERNEL = re.compile(
    r"Compiling entry function '(\w+)' for '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
    r"(\d+) bytes spill loads.*?Used (\d+) registers",
    re.DOTALL,
)


def build_log() -> str:
    """Compiles every CUDA source anew; returns what the compilers print."""
    for file in (ROOT / "build" / "native").glob("*.cu.o"):
        file.unlink()
    environment = {**os.environ, "MSA_OPS_FORCE_CUDA": "1", "NVCC_APPEND_FLAGS": "-Xptxas=-v"}
    command = [sys.executable, "setup.py", "build_ext"]
    result = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if result.returncode:
        sys.exit(result.stdout)
    return result.stdout


def summaries(log: str) -> tuple[list[str], list[str]]:
    """Returns a line per source and architecture, and the kernels that spill."""
    lines, spilling = [], []
    _, *parts = SOURCE.split(log)
    for source, report in zip(parts[::2], parts[1::2], strict=True):
        kernels = KERNEL.findall(report)
        for architecture in sorted({kernel[1] for kernel in kernels}):
            own = [kernel for kernel in kernels if kernel[1] == architecture]
            registers = max(int(kernel[5]) for kernel in own)
            stacks = sum(int(kernel[2]) > 0 for kernel in own)
            spilled = [name for name, _, _, stores, loads, _ in own if int(stores) + int(loads)]
            lines.append(
                f"{source} {architecture}: {len(own)} kernels, at most {registers} registers, {stacks} with a stack "
                f"frame, {len(spilled)} spill"
            )
            spilling += spilled
    return lines, spilling


def main() -> int:
    lines, spilling = summaries(build_log())
    print(*lines, sep="\n")
    if not lines:
        sys.exit("the build compiled no CUDA source")
    for name in spilling:
        print(f"spills: {name}", file=sys.stderr)
    return int(bool(spilling))


if __name__ == "__main__":
    sys.exit(main())
