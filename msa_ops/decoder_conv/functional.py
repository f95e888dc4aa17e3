"""The public function of the partial convolution in its decoder form; `form` describes the two ways to compute it."""

from __future__ import annotations

from torch import Tensor

from ..core import backends, checks, registration
from . import form as forms
from . import reference
from .autograd import OP


def partial_conv2d_upcat(
    low: Tensor,
    low_mask: Tensor,
    skip: Tensor,
    skip_mask: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    scale: str = "window",
    low_is_masked: bool = False,
    skip_is_masked: bool = False,
    form: str = "auto",
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Computes the partial convolution of ``cat(nearest_up2(low), skip)``, kernel 3, stride 1, padding 1, in most cases
    without building the upsampled map or the concatenation.

    The result is that of ``partial_conv2d(cat(nearest_up2(low), skip), grouped mask, weight, bias, padding=1)``.
    Gradients, determinism and autocast are as in :func:`partial_conv2d`. The taps of the phases are summed in float32
    and rounded to the weight's dtype.

    Extra memory: the form ``"concatenation"`` builds it, and again in the backward; ``"auto"`` takes that form where it
    is small. The form ``"phases"`` takes one map of the output's size, and the products low ⊙ mask and skip ⊙ mask
    where they are needed; where the CPU's own convolutions run (docs/operators/decoder_conv.md) none of these, but the
    transformed weight, up to 1.8 times its size (in the backward twice), and a block of tiles, 4 MiB or a row of tiles.

    Args:
        low: (N, C1, h, w), the decoder's map before upsampling; dtypes and strides as for :func:`partial_conv2d`.
        low_mask: (N, 1, h, w), 1 = valid, 0 = hole; bool, uint8 or floating-point.
        skip: (N, C2, 2h, 2w), the encoder's map.
        skip_mask: (N, 1, 2h, 2w).
        weight: (C_out, C1 + C2, 3, 3); the channels of low come first.
        bias: (C_out,) or None.
        scale: ``"window"`` or ``"sum"``, as for :func:`partial_conv2d` with a mask of C1 + C2 channels.
        low_is_masked: the caller knows that low is already 0 under its holes.
        skip_is_masked: the caller knows that skip is already 0 under its holes.
        form: ``"phases"`` computes the four output phases as 2×2 convolutions of the small map, ``"concatenation"`` one
            3×3 convolution; both give the same result up to rounding. ``"auto"`` takes the faster one for the backend
            and the number of small pixels (see :mod:`msa_ops.decoder_conv.form`). The gradient takes the same form,
            except with Triton, whose gradient always goes by the rule. The reference has one form and ignores this.
        backend: ``"auto"``, ``"reference"``, ``"cpu"``, ``"cuda"`` or ``"triton"``.

    Returns:
        ``(output, new_mask)``: (N, C_out, 2h, 2w), and (N, 1, 2h, 2w) in the dtype of skip_mask.

    Raises:
        ValueError: if shapes, dtypes, devices or options do not fit; before any work is done.
        RuntimeError: if a named backend cannot take the inputs.
    """
    for name, value in (("low", low), ("skip", skip), ("weight", weight)):
        checks.check_features(OP, name, value)
    low, skip, weight, bias = checks.autocast(low, skip, weight, bias)
    checks.check_like(OP, "skip", skip, "low", low)
    checks.check_like(OP, "weight", weight, "low", low)
    bias = checks.check_bias(OP, bias, weight)
    checks.check_scale(OP, scale)
    checks.check_flag(OP, "low_is_masked", low_is_masked)
    checks.check_flag(OP, "skip_is_masked", skip_is_masked)
    forms.check(OP, form)
    n, c1, h, w = low.shape
    if skip.shape[0] != n or skip.shape[2] != 2 * h or skip.shape[3] != 2 * w:
        checks.fail(
            OP, f"skip must have shape (N, C, 2h, 2w) with N={n}, 2h={2 * h}, 2w={2 * w}, got {checks.shape(skip)}"
        )
    if tuple(weight.shape[1:]) != (c1 + skip.shape[1], 3, 3):
        checks.fail(OP, f"weight must have shape (C_out, {c1 + skip.shape[1]}, 3, 3), got {checks.shape(weight)}")
    checks.check_mask(OP, "low_mask", low_mask, "low", low, (1,))
    checks.check_mask(OP, "skip_mask", skip_mask, "skip", skip, (1,))
    low_valid = checks.as_bool(low_mask)
    skip_valid = checks.as_bool(skip_mask)

    chosen = backends.choose(OP, backend, low, low_valid, skip, skip_valid, weight, bias)
    if chosen == "reference":
        output, new_mask = reference.partial_conv2d_upcat(
            low, low_valid, skip, skip_valid, weight, bias, scale == "sum", low_is_masked, skip_is_masked
        )
    else:
        numerator = 1 if scale == "sum" else 9 * weight.shape[1]
        forward = registration.operator(f"{OP}_triton_forward" if chosen == "triton" else f"{OP}_forward")
        phases = forms.pick(form, low, chosen) == "phases"
        output, new_mask, _ = forward(
            low, low_valid, skip, skip_valid, weight, bias, numerator, low_is_masked, skip_is_masked, phases
        )
    return output, new_mask.to(skip_mask.dtype)
