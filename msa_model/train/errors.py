"""Errors of training. Each message is one line for the user."""


class TrainingError(Exception):
    """Training cannot start or go on."""


class CheckpointError(Exception):
    """A checkpoint cannot be written or read."""
