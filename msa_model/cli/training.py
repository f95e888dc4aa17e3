"""What ``msa train`` and ``msa ablation`` share: a training configuration, and the errors of training."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from .command import CommandError

if TYPE_CHECKING:
    from ..train.config import TrainConfig


def read_configuration(arguments: argparse.Namespace) -> TrainConfig:
    """Reads the keys of a training configuration.

    Raises:
        CommandError: they are wrong.
    """
    from ..train.config import parse

    try:
        return parse(arguments.training_keys, f"msa {arguments.command}")
    except ValueError as error:
        raise CommandError(str(error).removeprefix("msa train: "), 2) from error


@contextlib.contextmanager
def training_errors() -> Iterator[None]:
    """Turns the errors of training and of its data into `CommandError`."""
    from ..train.errors import CheckpointError, TrainingError

    try:
        yield
    except (TrainingError, CheckpointError, ValueError, OSError, FloatingPointError) as error:
        raise CommandError(error) from error
