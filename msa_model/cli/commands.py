"""The table of commands, and how a command line is read and run.

argparse reads the arguments. Only the keys of a training configuration (``msa train``, ``msa ablation``) are read by
jsonargparse, because the dataclasses in `msa_model.train.config` define their names and types.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable
from typing import NoReturn

from ..lines import one_line
from . import ablation, attention_map, demo, evaluate, info, inpaint, train
from .command import Command, CommandError, say

COMMANDS: tuple[Command, ...] = (
    inpaint.COMMAND,
    train.COMMAND,
    ablation.COMMAND,
    evaluate.COMMAND,
    attention_map.COMMAND,
    demo.COMMAND,
    info.COMMAND,
)

#: Module -> the extra of the package ``msa-ops`` that installs it.
_EXTRAS = {
    **dict.fromkeys(("PIL", "safetensors", "tqdm"), "model"),
    **dict.fromkeys(("jsonargparse", "yaml", "tensorboard"), "train"),
    **dict.fromkeys(("torchmetrics", "cv2", "skimage", "matplotlib"), "evaluate"),
}


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are printable and of limited length, whatever the arguments are."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(2, f"{self.prog}: error: {one_line(message)}\n")


class _Notes(logging.Handler):
    """Prints what the package logs as notes of a command."""

    def __init__(self, command: str, quiet: bool) -> None:
        super().__init__(logging.ERROR if quiet else logging.WARNING)
        self.command = command

    def emit(self, record: logging.LogRecord) -> None:
        say(self.command, "note", record.getMessage())


def run(argv: list[str] | None, interrupted: Callable[[], bool]) -> int:
    """Runs a command line, as `msa_model.cli.main` says.

    Args:
        argv: the arguments; None: those of the process.
        interrupted: tells whether Ctrl-C was pressed. Code that is interrupted while it imports may turn the
            interruption into an error of its own.
    """
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    name = arguments.command
    command = next(command for command in COMMANDS if command.name == name)
    if command.training_keys:
        arguments.training_keys = rest
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    log, notes = logging.getLogger("msa_model"), _Notes(name, getattr(arguments, "quiet", False))
    log.addHandler(notes)
    try:
        return command.run(arguments)
    except KeyboardInterrupt as error:
        return _interrupted(name, str(error))
    except Exception as error:
        return _interrupted(name) if interrupted() else _failed(name, error)
    finally:
        log.removeHandler(notes)


def _interrupted(name: str, more: str = "") -> int:
    print(one_line(f"msa {name}: interrupted{f'; {more}' if more else ''}"), file=sys.stderr)
    return 130


def _failed(name: str, error: Exception) -> int:
    """Reports an error that a command may raise; raises any other, which is a bug."""
    if isinstance(error, CommandError):
        say(name, "error", error)
        return error.code
    if isinstance(error, ModuleNotFoundError) and error.name in _EXTRAS:
        say(name, "error", f"{error.name} is missing: pip install 'msa-ops[{_EXTRAS[error.name]}]'")
    elif isinstance(error, OSError):
        say(name, "error", error)
    else:
        raise error
    return 1


def _parser() -> argparse.ArgumentParser:
    examples = "\n".join(f"  {command.example}" for command in COMMANDS)
    parser = _Parser(
        prog="msa",
        description="Image inpainting with the multistage attention network.",
        epilog=f"examples:\n{examples}\n\n'msa COMMAND --help' tells more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands", required=True)
    for command in COMMANDS:
        sub = commands.add_parser(
            command.name,
            help=command.summary,
            description=command.details or command.summary,
            epilog=f"example: {command.example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            add_help=not command.own_help,
        )
        command.declare(sub)
    return parser
