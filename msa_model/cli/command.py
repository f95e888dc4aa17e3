"""What all commands share: how a command is described, and how it reports errors."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass

from ..lines import one_line


class CommandError(Exception):
    """Stops a command.

    Args:
        message: what is wrong, in one line.
        code: the exit code: 1 for a failure, 2 for wrong usage.
    """

    def __init__(self, message: object, code: int = 1) -> None:
        super().__init__(one_line(message))
        self.code = code


def _no_arguments(parser: argparse.ArgumentParser) -> None:
    pass


@dataclass(frozen=True)
class Command:
    """One command of ``msa``.

    Args:
        name: the word after ``msa``.
        summary: what it does, for the list of commands.
        example: a whole command line.
        run: runs the command and returns the exit code. It imports torch and all that needs torch, so that help and
            usage errors need not wait for them.
        declare: declares the arguments.
        details: a longer description for the command's own help; default: the summary.
        training_keys: whether further arguments are keys of a training configuration. These arrive unread, as
            ``arguments.training_keys``, and `training.read_configuration` reads them.
        own_help: whether `run` answers ``--help`` itself.
    """

    name: str
    summary: str
    example: str
    run: Callable[[argparse.Namespace], int]
    declare: Callable[[argparse.ArgumentParser], None] = _no_arguments
    details: str = ""
    training_keys: bool = False
    own_help: bool = False


def say(command: str, kind: str, message: object) -> None:
    """Prints ``msa COMMAND: KIND: MESSAGE`` to stderr, in one printable line of limited length."""
    line = f"msa {command}: {kind}: {one_line(message)}"
    if (tqdm := sys.modules.get("tqdm")) is not None:
        tqdm.tqdm.write(line, file=sys.stderr)  # does not break a progress bar
    else:
        print(line, file=sys.stderr)
