"""``python -m msa_ops.info`` prints what is installed, what can run here, and why the rest cannot."""

from __future__ import annotations

import platform

import torch

from . import __version__
from .core import backends, native


def facts() -> dict[str, str]:
    """Returns versions, build facts and the state of every backend, in the order in which they are printed."""
    rows = {
        "msa_ops": __version__,
        "python": platform.python_version(),
        "torch": f"{torch.__version__} (CUDA {torch.version.cuda or 'none'})",
    }
    if native.MISSING["cpu"] is None:
        rows |= build_rows()
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        rows["GPU"] = f"{torch.cuda.get_device_name()} (sm_{major}{minor})"
    for backend, kernels in backends.KERNELS.items():
        missing = native.MISSING[backend]
        served = ", ".join(sorted(kernels.operators)) or "no operator yet"
        rows[f"backend {backend}"] = f"not available: {missing}" if missing else served
    rows["backend reference"] = "every operator (plain PyTorch)"
    return rows


def build_rows() -> dict[str, str]:
    """Returns how the native code was built."""
    build = native.build_facts()
    archs = build["cuda_arch_list"]
    return {
        "built with": f"{build['compiler']}; torch {build['torch_headers']} headers",
        "runs on": f"torch {build['oldest_torch']} and later",
        "CUDA build": f"{build['cuda_compiler']}, arch {archs}" if archs else "none",
        "processor": f"{build['instruction_set']}, {torch.get_num_threads()} threads",
    }


def main() -> None:
    """Prints the facts."""
    rows = facts()
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:<{width}}  {value}")


if __name__ == "__main__":
    main()
