"""Registers the operators with torch: fakes, gradients, FLOP formulas, and the operators that Triton implements.

Every function given here must name the parameters of the operator's schema in their order. That is checked when it is
registered, and for Triton's functions, which are imported when they are first called, at that moment.
"""

from __future__ import annotations

import functools
import inspect
import pkgutil
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from . import eager, native

_CALLS: dict[str, eager.Call] = {}

#: Operator -> loader of the function of ours that implements it; a loader imports Triton.
TRITON_FUNCTIONS: dict[str, Callable[[], Callable[..., Any]]] = {}


def register(
    name: str,
    *,
    fake: Callable[..., Any],
    flops: Callable[..., int] | None = None,
    setup_context: Callable[[Any, tuple, Any], None] | None = None,
    backward: Callable[..., Any] | None = None,
    gradient_of: str | None = None,
    triton: str | None = None,
    like: str | None = None,
    schema: str | None = None,
) -> None:
    """Tells torch what it needs to know of the operator msa_ops::name; does nothing where the compiled part is missing.

    Args:
        name: of an operator that csrc/library.cpp defines, or of a new one that Triton implements.
        fake: returns results of the right shapes, dtypes and strides without computing them.
        flops: counts the operator's FLOPs; takes the operator's arguments, and the result as `out_val`.
        setup_context, backward: the gradient, as :func:`torch.library.register_autograd` takes it.
        gradient_of: the public operator whose gradient this one computes; asking for its gradient again is then refused
            in the name of that operator.
        triton: ``"module:function"`` for an operator that Triton implements.
        like: the compiled operator whose schema that one has, or
        schema: its own.
    """
    if native.MISSING["cpu"] is not None:
        return
    if triton is not None:
        _define_triton(name, triton, schema or _schema_text(like or name))
    check_parameters(fake, name)
    torch.library.register_fake(f"msa_ops::{name}", fake)
    if flops is not None:
        check_parameters(flops, name, extra=("out_val",))
        register_flop_formula(getattr(torch.ops.msa_ops, name), get_raw=True)(flops)
    if backward is not None:
        torch.library.register_autograd(f"msa_ops::{name}", backward, setup_context=setup_context)
    elif gradient_of is not None:
        torch.library.register_autograd(f"msa_ops::{name}", _refusal_of_second_order(gradient_of))
    overload = getattr(torch.ops.msa_ops, name).default
    _CALLS[name] = eager.Call(overload, setup_context, backward, TRITON_FUNCTIONS.get(name))


def operator(name: str) -> eager.Call:
    """Returns the function that calls msa_ops::name, from eager Python by the shortest way."""
    return _CALLS[name]


def check_parameters(function: Callable[..., Any], name: str, extra: tuple[str, ...] = ()) -> None:
    """Raises TypeError unless the function's parameters are the arguments of msa_ops::name, and then `extra`."""
    wanted = (*(argument.name for argument in _schema(name).arguments), *extra)
    found = tuple(inspect.signature(function).parameters)
    if found != wanted:
        raise TypeError(
            f"msa_ops::{name}: {function.__module__}.{function.__qualname__} must have the parameters "
            f"({', '.join(wanted)}), got ({', '.join(found)})"
        )


def _define_triton(name: str, path: str, schema: str) -> None:
    torch.library.define(f"msa_ops::{name}", schema)

    @functools.cache
    def load() -> Callable[..., Any]:
        function = pkgutil.resolve_name(path)
        check_parameters(function, name)
        return function

    def run(*arguments: Any) -> Any:
        return load()(*arguments)

    TRITON_FUNCTIONS[name] = load
    # On the CPU Triton's interpreter runs the kernels, for tests.
    torch.library.impl(f"msa_ops::{name}", ("cpu", "cuda"), run)


def _schema(name: str) -> torch.FunctionSchema:
    return getattr(torch.ops.msa_ops, name).default._schema


def _schema_text(name: str) -> str:
    """The arguments and results of msa_ops::name, as a definition writes them."""
    return "(" + str(_schema(name)).split("(", 1)[1]


def _refusal_of_second_order(op: str) -> Callable[..., None]:
    def refuse(ctx: Any, *grads: Any) -> None:
        raise RuntimeError(f"msa_ops::{op}: second-order gradients are not supported")

    return refuse
