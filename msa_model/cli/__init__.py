"""The command line, ``msa`` or ``python -m msa_model``.

Every command is a file of this package that defines a `Command`; `COMMANDS` lists them. argparse reads the arguments.
Only the keys of a training configuration (``msa train``, ``msa ablation``) are read by jsonargparse, because the
dataclasses in `msa_model.train.config` define their names and types.
"""

from __future__ import annotations

import argparse
import sys

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


def main(argv: list[str] | None = None) -> int:
    """Runs a command line.

    Args:
        argv: the arguments; None: those of the process.

    Returns:
        The exit code: 0 all succeeded, 1 some or all failed, 2 wrong usage, 130 interrupted.

    Raises:
        SystemExit: 2 for wrong usage that argparse finds, 0 after ``--help``.
    """
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    name = arguments.command
    command = next(command for command in COMMANDS if command.name == name)
    if command.training_keys:
        arguments.training_keys = rest
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        return command.run(arguments)
    except CommandError as error:
        say(name, "error", error)
        return error.code
    except ModuleNotFoundError as error:
        if error.name not in _EXTRAS:
            raise
        say(name, "error", f"{error.name} is missing: pip install 'msa-ops[{_EXTRAS[error.name]}]'")
        return 1
    except OSError as error:
        say(name, "error", error)
        return 1
    except KeyboardInterrupt as error:
        print(f"msa {name}: interrupted{f'; {error}' if str(error) else ''}", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    examples = "\n".join(f"  {command.example}" for command in COMMANDS)
    parser = argparse.ArgumentParser(
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
