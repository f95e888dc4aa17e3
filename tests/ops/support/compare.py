"""A call of an operator against plain PyTorch and float64, output and gradients, by the one criterion."""

import torch

from .tolerances import assert_accurate


def gradients(function, grad, *leaves):
    """The output of function(*leaves) and the gradients of the leaves for the upstream gradient `grad`. The leaves keep
    their memory, so also the strides of views."""
    leaves = [t.detach().requires_grad_() for t in leaves]
    output = function(*leaves)
    return output.detach(), torch.autograd.grad(output, leaves, grad.to(output.dtype))


def everything(function, grad, *leaves):
    """The same as one list."""
    output, grads = gradients(function, grad, *leaves)
    return [output, *grads]


def of_absolute_values(function, grad, leaves):
    """The magnitudes of a multilinear operation and its gradients: Σ|terms| is the operation on absolute values."""
    return everything(function, grad.double().abs(), *(t.detach().double().abs() for t in leaves))


def assert_call_accurate(run, upstream, leaves, names, backend, *, magnitudes=None, across_pixels=False):
    """Asserts the criterion for the output and the gradients of one call.

    Args:
        run: takes a backend and returns the call as a function of the leaves.
        upstream: the gradient of the output.
        leaves: the differentiable arguments, in the dtype under test.
        names: theirs, for messages.
        backend: the one under test; "reference" is plain PyTorch, and in float64 the exact value.
        magnitudes: of output and gradients; by default those of an operation that is linear in each leaf.
        across_pixels: see tolerances.any_order_may_lose.

    Returns:
        Our output and gradients.
    """
    upstream = upstream.to(leaves[0].dtype)
    ours = everything(run(backend), upstream, *leaves)
    wide = leaves[0].dtype == torch.float64
    plain = [None] * len(ours) if wide else everything(run("reference"), upstream, *leaves)
    exact = everything(run("reference"), upstream.double(), *(t.double() for t in leaves))
    if magnitudes is None:
        magnitudes = of_absolute_values(run("reference"), upstream, leaves)
    labels = ["output", *(f"gradient of {name}" for name in names)]
    for i, (label, *values) in enumerate(zip(labels, ours, plain, exact, magnitudes, strict=True)):
        assert_accurate(*values, backward=i > 0, across_pixels=across_pixels, what=label)
    return ours
