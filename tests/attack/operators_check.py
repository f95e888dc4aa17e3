"""Holds what an operator returned against float64, by the table of tolerances of the operator tests."""

import torch

from tests.ops.support.tolerances import PLAIN_BACKWARD, PLAIN_FORWARD, any_order_may_lose

HALVES = (torch.float16, torch.bfloat16)


def everything(function, upstream, leaves, wanted):
    """The output of function(*leaves) with the gradients of the wanted leaves, and all that the function returned. The
    leaves keep their memory, so also their strides."""
    leaves = [t.detach().requires_grad_(i in wanted) for i, t in enumerate(leaves)]
    result = function(*leaves)
    output = result[0] if isinstance(result, tuple) else result
    assert output.requires_grad == bool(wanted), f"the output requires a gradient: {output.requires_grad}"
    grads = []
    if wanted:
        grads = torch.autograd.grad(output, [leaves[i] for i in wanted], upstream.to(output.dtype), allow_unused=True)
        assert all(grad is not None for grad in grads), "an argument that requires a gradient has none"
    return [output.detach(), *grads], result


def compare(ours, exact, plain, magnitude, *, what, across_pixels=False, slack=1.0):
    """Raises AssertionError where `ours` differs from `exact` (float64) by more than the criterion of
    tests/ops/support/tolerances.py allows.

    Args:
        plain: of plain PyTorch in the dtype under test, or None. Where it is not finite, as where a sum leaves the
            dtype's range on the way, nothing is compared.
        magnitude: Σ|terms|, in float64.
        across_pixels: see `any_order_may_lose`.
        slack: factor of what the order of a sum may lose, for sums of one sign (√n, see that file).
    """
    assert ours.shape == exact.shape, f"{what}: wanted shape {tuple(exact.shape)}, got {tuple(ours.shape)}"
    if exact.numel() == 0:
        return
    assert torch.isfinite(exact).all(), f"{what}: the exact value is not finite, a mistake of the attack"
    compared = exact.abs() + magnitude.mul(2.0**-4) < torch.finfo(ours.dtype).max / 2
    allowed = slack * any_order_may_lose(ours.dtype, exact, magnitude, across_pixels=across_pixels)
    if ours.dtype in HALVES and what != "output":  # torch's convolution may sum the taps of a gradient in the half type
        allowed = allowed + 2 * torch.finfo(ours.dtype).eps * exact.abs().max()
    factor = PLAIN_FORWARD if what == "output" else PLAIN_BACKWARD
    if plain is not None:
        is_finite = torch.isfinite(plain)
        compared &= is_finite
        plain_error = torch.where(is_finite, plain.double() - exact, 0.0).abs().max()
        allowed = allowed.clamp_min(factor * plain_error.item())
    error = (ours.double() - exact).abs()
    wrong = compared & ~(error <= allowed)  # also where it is not finite
    if wrong.any():
        at = tuple(int(i) for i in wrong.nonzero()[0])
        raise AssertionError(
            f"{what}{list(at)}: wanted {exact[at]:.9g}, got {ours[at].item():.9g}: the error, {error[at]:.3g}, may be "
            f"{allowed.expand_as(exact)[at]:.3g}; {int(wrong.sum())} of {wrong.numel()} elements are wrong"
        )


def unchanged(tensors):
    """Returns a function that raises AssertionError where a tensor's bytes are no longer what they are now."""

    def raw(t):
        return torch.cat([t.detach().flatten(), t.new_zeros(1)]).view(torch.uint8)

    before = {name: raw(t) for name, t in tensors.items() if t is not None}

    def check():
        for name, t in before.items():
            assert torch.equal(raw(tensors[name]), t), f"the call changed its argument {name}"

    return check
