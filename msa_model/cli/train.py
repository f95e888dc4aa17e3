"""``msa train``: trains the network."""

from __future__ import annotations

import argparse
from pathlib import Path

from .command import Command, CommandError
from .training import read_configuration, training_errors


def run(arguments: argparse.Namespace) -> int:
    """Trains, and prints where the weights are."""
    config = read_configuration(arguments)
    from ..train import checkpoints
    from ..train.run import run as train

    try:
        with training_errors():
            trainer = train(config)
    except KeyboardInterrupt:
        some = checkpoints.steps_in(Path(config.out))
        raise KeyboardInterrupt(f"checkpoints are in {config.out}" if some else "there is no checkpoint yet") from None
    if trainer.processes.rank == 0:
        weights = checkpoints.path_of(Path(config.out), trainer.step_number)
        if not weights.is_dir():
            raise CommandError(f"trained {trainer.step_number} steps, but {weights} has been removed")
        print(f"trained {trainer.step_number} steps; weights: {weights}")
    return 0


COMMAND = Command(
    "train",
    "train the network, on one device or, under torchrun, on many",
    "msa train --preset synthetic --out runs/facades",
    run,
    training_keys=True,
    own_help=True,  # jsonargparse lists the keys
)
