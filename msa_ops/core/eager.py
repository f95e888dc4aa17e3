"""Calls of the operators from eager Python.

An operator whose gradient is registered with `torch.library.register_autograd` costs three more rounds through Python:
torch's dispatcher calls a Python kernel for its autograd key, that one an `autograd.Function`, and that one the
dispatcher again. Where nothing but autograd itself watches the call, an `autograd.Function` around the operator does
the same at a third of the time. Where something else does (a compiler, a transform, a mode), the operator is called as
registered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

_below_autograd = torch._C._AutoDispatchBelowAutograd
_transforms_active = torch._C._are_functorch_transforms_active
_function_modes = torch._C._len_torch_function_stack
_dispatch_modes = torch._C._len_torch_dispatch_stack
_tracing_state = torch._C._get_tracing_state


def is_plain() -> bool:
    """Tells whether nothing but autograd watches a call: no compiler, tracer, functorch transform, forward-mode
    derivative, nor mode of torch (fake tensors, FLOP counting)."""
    return not (
        torch.compiler.is_compiling()
        or _transforms_active()
        or _dispatch_modes()
        or _function_modes()
        or forward_ad._current_level >= 0
        or _tracing_state() is not None
    )


class Call:
    """The function that calls an operator.

    Attributes:
        plain: the same for a caller that knows that `is_plain` holds.
    """

    def __init__(
        self,
        operator: Any,
        setup_context: Callable[[Any, tuple, Any], None] | None,
        backward: Callable[..., Any] | None,
        load: Callable[[], Callable[..., Any]] | None,
    ) -> None:
        """Makes the function.

        Args:
            operator: the registered overload.
            setup_context, backward: its gradient, as `torch.library.register_autograd` takes it; None: it has none.
            load: returns the Python function behind an operator of Triton's, which is then called without torch's
                dispatcher; None for a compiled one.
        """
        self._operator = operator
        direct = operator._op if load is None else lambda *arguments: load()(*arguments)
        tensors = [i for i, argument in enumerate(operator._schema.arguments) if "Tensor" in str(argument.type)]
        recorded = operator if backward is None or setup_context is None else _function(direct, setup_context, backward)

        def plain(*arguments: Any) -> Any:
            if torch.is_grad_enabled():
                for i in tensors:
                    if (tensor := arguments[i]) is not None and tensor.requires_grad:
                        return recorded(*arguments)
            with _below_autograd():
                return direct(*arguments)

        self.plain = plain

    def __call__(self, *arguments: Any) -> Any:
        return self.plain(*arguments) if is_plain() else self._operator(*arguments)


def _function(
    direct: Callable[..., Any], setup_context: Callable[[Any, tuple, Any], None], backward: Callable[..., Any]
) -> Callable[..., Any]:
    """Returns the operator as a function that autograd records."""

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            with _below_autograd():
                output = direct(*inputs)
            setup_context(ctx, inputs, output)
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            return backward(ctx, *grads)

    return Function.apply


def is_tensor(value: object) -> bool:
    """Tells whether the value is a tensor and no subclass with a behaviour of its own."""
    return type(value) is Tensor or type(value) is torch.nn.Parameter
