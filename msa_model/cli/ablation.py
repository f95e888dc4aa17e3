"""``msa ablation``: trains variants of a configuration and compares them."""

from __future__ import annotations

import argparse

from ..train.variants import VARIANTS, differs, variant
from .command import Command, CommandError, say
from .training import read_configuration, training_errors

DETAILS = """\
Trains variants of a configuration, each of which differs from it in one thing (Section 5.3.2 of the
paper, Fig. 10). Afterwards all of them fill the same holes of images that none has been trained on,
for a table and a picture.

Everything else is an option of 'msa train', for all variants."""


def declare(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument(
        "--only",
        type=_names,
        default=list(VARIANTS),
        metavar="NAMES",
        help=f"variants, separated by commas; default: all, {', '.join(VARIANTS)}",
    )
    parser.add_argument(
        "--held_out", metavar="FOLDER", help="images to measure on; default: facades training never draws"
    )
    parser.add_argument("--count", type=int, default=20, help="how many of them")
    parser.add_argument("--shown", type=int, default=4, help="rows of the picture")


def _names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in VARIANTS]:
        raise argparse.ArgumentTypeError(f"unknown variant {unknown[0]!r}; known are {', '.join(VARIANTS)}")
    return names


def run(arguments: argparse.Namespace) -> int:
    """Trains and compares the variants, and prints the table."""
    config = read_configuration(arguments)
    from ..train.ablation import compare, held_out
    from ..train.run import run as train

    names = []
    for name in arguments.only:
        if name == "ours" or differs(config, name):
            names.append(name)
        else:
            say("ablation", "note", f"{name} is the same as ours with this configuration, and left out")
    with training_errors():
        pairs = held_out(config, arguments.held_out, arguments.count)
        for name in names:
            say("ablation", "training", name)
            trainer = train(variant(config, name))
            if trainer.step_number != config.steps:
                raise CommandError(
                    f"{trainer.config.out} has {trainer.step_number} steps of training already, and {config.steps} are "
                    f"wanted: name another folder (--out), or --steps {trainer.step_number}"
                )
        print(compare(config, names, pairs, arguments.shown))
    print(f"picture: {config.out}/ablation.png   figures: {config.out}/ablation.json")
    return 0


COMMAND = Command(
    "ablation",
    "train variants and compare them (Fig. 10)",
    "msa ablation --preset synthetic --steps 2000 --out runs/ablation",
    run,
    declare,
    DETAILS,
    training_keys=True,
)
