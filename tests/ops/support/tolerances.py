"""The one table of tolerances, and the one comparison that uses it.

The criterion is FlashAttention's. "Exact" is a float64 run; "plain" is plain PyTorch in the dtype under test. Ours may
err at most twice (gradients: three times) as much as plain does, plus a few roundings of the largest value.

The absolute term is there because plain may, by luck, hit the exact value (small integers, few taps), while an equally
good order of the same sum rounds once more. It is counted in units of eps(dtype) · max|exact|:

* float16, bfloat16, float32: 1. The last rounding to the dtype is worth at most ½; the other ½ is for the decoder form,
  which rounds its two halves before it adds them.
* float64: 64. The yardstick is itself float64, plain's error is therefore about 0, and the term alone must hold all the
  roundings of sums of up to a few hundred products, whose terms are larger than the sum.
"""

import torch

FACTOR_FORWARD = 2.0
FACTOR_BACKWARD = 3.0
ROUNDINGS = {torch.float64: 64.0, torch.float32: 1.0, torch.float16: 1.0, torch.bfloat16: 1.0}


def max_error(value, exact):
    return (value.detach().double().cpu() - exact.detach().double().cpu()).abs().max().item() if exact.numel() else 0.0


def absolute_term(dtype, exact):
    largest = exact.detach().abs().max().item() if exact.numel() else 0.0
    return ROUNDINGS[dtype] * torch.finfo(dtype).eps * largest


def assert_accurate(ours, plain, exact, *, backward=False, what="output"):
    """Our error against `exact` (float64) is at most 2× (backward 3×) that of `plain`, plus the absolute term."""
    assert exact.dtype == torch.float64
    assert ours.dtype == plain.dtype
    assert ours.shape == plain.shape == exact.shape
    assert torch.isfinite(exact).all(), f"{what}: the test's own exact value is not finite"
    assert torch.isfinite(ours).all(), f"{what} is not finite"
    error, plain_error = max_error(ours, exact), max_error(plain, exact)
    factor = FACTOR_BACKWARD if backward else FACTOR_FORWARD
    allowed = factor * plain_error + absolute_term(ours.dtype, exact)
    assert error <= allowed, f"{what}: error {error:.3g}, plain PyTorch's {plain_error:.3g}, allowed {allowed:.3g}"


def assert_rounded_once(ours, exact, *, what="output"):
    """Every element is `exact` (float64) rounded once to its dtype: within half a unit in the last place, and the
    hundredth part of one for the float32 arithmetic before."""
    exact = exact.to(ours.device)
    unit = torch.finfo(ours.dtype).eps * torch.exp2(exact.abs().clamp_min(2.0**-14).log2().floor())
    worst = ((ours.double() - exact).abs() / unit).max().item()
    assert worst <= 0.51, f"{what}: {worst:.3f} units in the last place from the exact value"


def assert_exact(ours, exact, *, what="output"):
    """`ours`, computed in float64, is `exact` up to the order of additions: the criterion with a plain error of 0."""
    assert ours.dtype == torch.float64
    assert_accurate(ours, exact.to(ours.device), exact, what=what)
