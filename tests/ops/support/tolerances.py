"""The one table of tolerances, and the one comparison that uses it.

"Exact" is a float64 run; "plain" is plain PyTorch in the dtype under test; "magnitude" is what the same operation makes
of absolute values, in float64: Σ|terms| where the operation is a sum of terms. The error of an element may be the
larger of

* 2 times (gradients: 3 times) the largest error of plain, the criterion of FlashAttention's tests; and
* what any correct order of the same sum may lose, SUM · eps(accumulator) · magnitude, element by element, plus, where
  the dtype is narrower than the accumulator, RESULT · eps(dtype) · max|exact| for values that are rounded to the dtype.

The second bound does not depend on plain, which is lucky on some processors: few terms, or small integers, may add up
without an error. The bound of the textbook for a sum of n terms is (n-1)·u·Σ|terms| with u = eps/2 (Higham, Accuracy
and Stability of Numerical Algorithms, 2nd edition, chapters 3 and 4). It assumes that all roundings point in one
direction and would let a wrong tap of a large kernel pass. Rounding errors behave like independent variables of mean
zero, which gives √n·u (Higham and Mary, A new approach to probabilistic rounding error analysis, SIAM J. Sci. Comput.
41, 2019, Theorem 2.4); for terms of mean zero, which is what the tests draw, partial sums grow like √n themselves, and
a constant number of u remains, whatever n (Higham and Mary, Sharper probabilistic backward error analysis for basic
linear algebra kernels with random data, SIAM J. Sci. Comput. 42, 2020). A recursive sum of normal products has a
standard deviation of 0.2·eps·Σ|terms|; the ratio, the bias and the terms of a gradient add roundings of their own. SUM
= 4 is twice what the noisiest kernel showed. In sums of one sign the √n stays; plain has it too, and the first bound
admits it.

float16 and bfloat16 are summed in float32; RESULT = 1 is one rounding of the result (½) and one of a part that is
rounded before it is added (½: the decoder form's two halves, or ours where plain has a different part rounded).
"""

import torch

PLAIN_FORWARD = 2.0
PLAIN_BACKWARD = 3.0
SUM = 4.0
#: dtype -> the dtype in which sums are accumulated, and RESULT.
DTYPES = {
    torch.float64: (torch.float64, 0.0),
    torch.float32: (torch.float32, 0.0),
    torch.float16: (torch.float32, 1.0),
    torch.bfloat16: (torch.float32, 1.0),
}
#: Where a test does not state the magnitude, as for a chain of sums: roundings of the largest value that may be lost.
#: In float64 there is no plain error, so these must hold all the roundings of sums whose terms are larger than the sum.
UNSTATED = {torch.float64: 64.0, torch.float32: 1.0, torch.float16: 1.0, torch.bfloat16: 1.0}


def any_order_may_lose(dtype, exact, magnitude=None, *, across_pixels=False):
    """The second bound of the criterion: a tensor like `exact`, or one that broadcasts to it.

    `across_pixels` is for minimal filtering (Winograd), which adds and subtracts the pixels of a tile around the terms
    of each output: the largest magnitude of a plane counts for all of it.
    """
    accumulator, result = DTYPES[dtype]
    if exact.numel() == 0:
        return torch.zeros_like(exact)
    largest = exact.detach().abs().max()
    if magnitude is None:
        return UNSTATED[dtype] * torch.finfo(dtype).eps * largest
    if across_pixels and magnitude.dim() == 4:
        magnitude = magnitude.amax((2, 3), keepdim=True)
    return SUM * torch.finfo(accumulator).eps * magnitude + result * torch.finfo(dtype).eps * largest


def assert_accurate(ours, plain, exact, magnitude=None, *, backward=False, across_pixels=False, what="output"):
    """Asserts the criterion of this file's docstring; `plain` is None where `exact` came from float64 as `ours` did."""
    ours, exact = ours.detach(), exact.detach()
    assert exact.dtype == torch.float64
    assert ours.shape == exact.shape
    assert torch.isfinite(exact).all(), f"{what}: the test's own exact value is not finite"
    assert torch.isfinite(ours).all(), f"{what} is not finite"
    if exact.numel() == 0:
        return
    exact = exact.to(ours.device)
    allowed = any_order_may_lose(ours.dtype, exact, magnitude, across_pixels=across_pixels).to(ours.device)
    if plain is not None:
        assert (plain.dtype, plain.shape) == (ours.dtype, ours.shape)
        plain_error = (plain.detach().double() - exact).abs().max()
        allowed = allowed.clamp_min((PLAIN_BACKWARD if backward else PLAIN_FORWARD) * plain_error.item())
    error, allowed = (ours.double() - exact).abs(), allowed.expand_as(exact)
    excess = error - allowed
    if (excess > 0).any():
        worst = excess.argmax()
        where = tuple(int(i) for i in torch.unravel_index(worst, exact.shape))
        others = "" if plain is None else f", the largest of plain PyTorch {plain_error:.3g}"
        raise AssertionError(
            f"{what}{list(where)}: error {error.flatten()[worst]:.3g}, allowed {allowed.flatten()[worst]:.3g}{others}; "
            f"{int((excess > 0).sum())} of {excess.numel()} elements err too much"
        )


def assert_exact(ours, exact, magnitude=None, *, across_pixels=False, what="output"):
    """Asserts that `ours`, computed in float64, is `exact` up to the order of additions."""
    assert ours.dtype == torch.float64
    assert_accurate(ours, None, exact, magnitude, across_pixels=across_pixels, what=what)


def assert_rounded_once(ours, exact, *, what="output"):
    """Asserts that every element is `exact` (float64) rounded once to its dtype: within half a unit in the last place,
    and a hundredth of one for the float32 arithmetic before."""
    exact = exact.to(ours.device)
    unit = torch.finfo(ours.dtype).eps * torch.exp2(exact.abs().clamp_min(2.0**-14).log2().floor())
    worst = ((ours.double() - exact).abs() / unit).max().item()
    assert worst <= 0.51, f"{what}: {worst:.3f} units in the last place from the exact value"
