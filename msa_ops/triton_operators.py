"""Operators whose kernels are Triton's, with the schemas of the compiled ones beside them."""

from __future__ import annotations

import importlib

import torch


def define(name: str, like: str, module: str, function: str) -> None:
    """Defines msa_ops::name with the schema of msa_ops::like; it runs msa_ops.triton.module.function, which is imported
    when it is first called."""
    arguments = str(getattr(torch.ops.msa_ops, like).default._schema).split("(", 1)[1]
    torch.library.define(f"msa_ops::{name}", f"({arguments}")

    def run(*args):
        return getattr(importlib.import_module(f".triton.{module}", __package__), function)(*args)

    # On the CPU Triton's interpreter runs them, for tests.
    torch.library.impl(f"msa_ops::{name}", ("cpu", "cuda"), run)
