"""``msa info``: prints what is installed and what can run here."""

from __future__ import annotations

import argparse

from .command import Command


def run(arguments: argparse.Namespace) -> int:
    """Prints what ``python -m msa_ops.info`` prints."""
    from msa_ops import info

    info.main()
    return 0


COMMAND = Command("info", "what is installed, and what can run here", "msa info", run)
