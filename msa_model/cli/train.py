"""``msa train``: trains the network."""

from __future__ import annotations

import argparse

from .command import Command
from .training import read_configuration, training_errors


def run(arguments: argparse.Namespace) -> int:
    """Trains, and prints where the weights are."""
    config = read_configuration(arguments)
    from ..train.run import run as train

    try:
        with training_errors():
            trainer = train(config)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"checkpoints are in {config.out}") from None
    if trainer.processes.rank == 0:
        print(f"trained {trainer.step_number} steps; weights: {config.out}/step-{trainer.step_number:08d}")
    return 0


COMMAND = Command(
    "train",
    "train the network, on one device or, under torchrun, on many",
    "msa train --preset synthetic --out runs/facades",
    run,
    training_keys=True,
    own_help=True,  # jsonargparse lists the keys
)
