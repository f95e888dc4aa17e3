"""The two forms of the decoder's convolution, and the rule that picks one.

- ``"phases"``: a 3×3 convolution of a nearest-upsampled map reads every small pixel up to four times. Its four output
  phases (even or odd row, even or odd column) are 2×2 convolutions of the small map whose taps are sums of the 3×3
  taps: 16 instead of 36 multiplications per small pixel and pair of channels. On the CPU minimal filtering needs 9.
- ``"concatenation"``: the convolution of the concatenation, which the compiled kernels build. Triton's kernel builds it
  in neither form.

The phases save 20 multiplications per small pixel and pair of channels (27 with minimal filtering), and cost the sums
of the taps, which is memory traffic that does not depend on the map's size. So they are faster from some number of
small pixels N·h·w on, which depends on the backend.
"""

from __future__ import annotations

from torch import Tensor

from ..core import checks

#: The values of the argument ``form``.
FORMS = ("auto", "phases", "concatenation")

#: Backend -> the number of small pixels N·h·w from which on ``"auto"`` picks the phases. The CPU's was measured by
#: `python -m benchmarks.operators --suite upcat-rule` on 2 cores, the others on the network's layers on an H100.
MIN_SMALL_PIXELS = {"cpu": 32, "cuda": 4096, "triton": 1536}


def check(op: str, form: object) -> None:
    """Refuses a form that is not known."""
    if form not in FORMS:
        checks.fail(op, f"form must be 'auto', 'phases' or 'concatenation', got {form!r}")


def pick(form: str, low: Tensor, backend: str) -> str:
    """Returns the form in which a backend computes the output: the one that is asked for, or the faster one for
    ``"auto"``.

    Args:
        form: one of `FORMS`.
        low: the small map (N, C, h, w); only its shape matters.
        backend: ``"cpu"``, ``"cuda"`` or ``"triton"``.
    """
    if form != "auto":
        return form
    small_pixels = low.shape[0] * low.shape[2] * low.shape[3]
    return "phases" if small_pixels >= MIN_SMALL_PIXELS[backend] else "concatenation"


def gradient_uses_phases(forward_used_phases: bool, low: Tensor, backend: str) -> bool:
    """Tells which form the gradient takes. The compiled kernels' is that of the forward. Triton leaves most gradients
    to the compiled kernels of the device, and these follow their own rule, since Triton's threshold is not theirs."""
    if backend == "triton":
        return pick("auto", low, low.device.type) == "phases"
    return forward_used_phases
