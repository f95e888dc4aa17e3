"""Operators whose kernels are Triton's."""

from __future__ import annotations

import importlib

import torch


def define(name: str, like: str, module: str, function: str) -> None:
    """Defines msa_ops::name with the schema of the compiled msa_ops::like."""
    arguments = str(getattr(torch.ops.msa_ops, like).default._schema).split("(", 1)[1]
    define_new(name, f"({arguments}", module, function)


def define_new(name: str, schema: str, module: str, function: str) -> None:
    """Defines msa_ops::name, which no compiled operator is like; it runs msa_ops.triton.module.function, which is
    imported when it is first called."""
    torch.library.define(f"msa_ops::{name}", schema)

    def run(*args):
        return getattr(importlib.import_module(f".triton.{module}", __package__), function)(*args)

    # On the CPU Triton's interpreter runs them, for tests.
    torch.library.impl(f"msa_ops::{name}", ("cpu", "cuda"), run)
