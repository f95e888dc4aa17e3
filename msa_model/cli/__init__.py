"""The command line, ``msa`` or ``python -m msa_model``.

A command is a pair of functions, one that declares its arguments and one that runs it, and a line in `COMMANDS`. Torch
and all that needs it is imported by the second kind only, so that help and usage errors do not wait for it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass

from .commands import attention_map, evaluate, inpaint
from .commands.common import CommandError, one_line


def main(argv: list[str] | None = None) -> int:
    """Runs a command line and returns its exit code: 0 all good, 1 some or all failed, 2 wrong usage.

    Wrong usage that argparse finds leaves through its ``SystemExit(2)``, as ``--help`` does through ``SystemExit(0)``.
    """
    argv = sys.argv[1:] if argv is None else argv
    for command in COMMANDS:
        if command.parse_and_run and argv[:1] == [command.name]:
            return command.parse_and_run(argv[1:])
    arguments = _parser().parse_args(argv)
    command = f"msa {arguments.command}"
    try:
        return arguments.run(arguments)
    except CommandError as error:
        print(f"{command}: error: {one_line(error)}", file=sys.stderr)
        return error.code
    except ModuleNotFoundError as error:
        if error.name not in ("PIL", "safetensors", "tqdm"):
            raise
        print(f"{command}: error: {error.name} is missing: pip install 'msa-ops[model]'", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{command}: error: {one_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{command}: interrupted", file=sys.stderr)
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
        )
        if command.parse_and_run is None:
            command.declare(sub)
            sub.set_defaults(run=command.run)
    return parser


# ---- msa info, and the table of commands ---------------------------------------------------------------------------


def _train(argv: list[str]) -> int:
    from .training_run import main as train

    return train(argv)


def _ablation(argv: list[str]) -> int:
    from .ablation import main as ablation

    return ablation(argv)


def _run_info(arguments: argparse.Namespace) -> int:
    from msa_ops import info

    info.main()
    return 0


@dataclass(frozen=True)
class Command:
    name: str
    summary: str
    example: str
    declare: Callable[[argparse.ArgumentParser], None] = lambda parser: None
    run: Callable[[argparse.Namespace], int] | None = None
    details: str = ""
    parse_and_run: Callable[[list[str]], int] | None = None  # instead of both, for arguments that argparse cannot read


COMMANDS = (
    Command(
        "inpaint",
        "fill the holes of images",
        "msa inpaint photo.jpg mask.png -o filled.jpg",
        inpaint.declare,
        inpaint.run,
        inpaint.DETAILS,
    ),
    Command(
        "train",
        "train the network, on one device or, under torchrun, on many",
        "msa train --preset synthetic --out runs/facades",
        parse_and_run=_train,
    ),
    Command(
        "ablation",
        "train variants and compare them (Fig. 10)",
        "msa ablation --preset synthetic --steps 2000 --out runs/ablation",
        parse_and_run=_ablation,
    ),
    Command(
        "evaluate",
        "measure weights and classical fills (Table 4)",
        "msa evaluate --images photos --masks masks --weights weights.safetensors -o evaluation",
        evaluate.declare,
        evaluate.run,
        evaluate.DETAILS,
    ),
    Command(
        "attention-map",
        "show where the holes of an image look (Figs. 8, 9)",
        "msa attention-map photo.jpg mask.png -o map.png",
        attention_map.declare,
        attention_map.run,
        attention_map.DETAILS,
    ),
    Command("info", "what is installed, and what can run here", "msa info", lambda parser: None, _run_info),
)
