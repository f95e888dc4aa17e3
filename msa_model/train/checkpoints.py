"""Writes and reads the checkpoints of a training run, a folder per step:

    OUT/step-00001000/generator.safetensors      Generator.load reads it, so every checkpoint can inpaint
                      ema.safetensors            if the run keeps an average
                      discriminator.safetensors
                      state.pt                   optimisers, loss scaling, random number generators, the step

A checkpoint is written under a temporary name, flushed to the disk, and renamed. So a crash or a full disk leaves the
earlier checkpoints untouched.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ..nn import state_dicts
from .errors import CheckpointError

_NAME = re.compile(r"step-(\d{8,})")


def path_of(out: Path, step: int) -> Path:
    """The folder of a step's checkpoint."""
    return Path(out) / f"step-{step:08d}"


def steps_in(out: Path) -> list[int]:
    """Lists the steps of the complete checkpoints in a folder, oldest first."""
    if not Path(out).is_dir():
        return []
    matches = (_NAME.fullmatch(entry.name) for entry in Path(out).iterdir())
    return sorted(int(match[1]) for match in matches if match)


def save(out: Path, step: int, write: Callable[[Path], None], keep: int) -> Path:
    """Writes the checkpoint of a step and removes all but the newest `keep`.

    Args:
        out: folder of the run.
        step: steps done.
        write: writes the files into the folder that it is given.
        keep: how many checkpoints stay.

    Raises:
        CheckpointError: it could not be written; the earlier checkpoints are untouched.
    """
    out, target = Path(out), path_of(out, step)
    temporary = out / f".{target.name}.part"
    try:
        out.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        write(temporary)
        for file in temporary.iterdir():
            _flush(file)
        _flush(temporary)
        if target.exists():  # from before the run was continued from an earlier step
            shutil.rmtree(target)
        os.replace(temporary, target)
        _flush(out)
    # safetensors and torch.save report a full disk with error types of their own.
    except Exception as error:
        shutil.rmtree(temporary, ignore_errors=True)
        before = steps_in(out)
        rest = f"the last good checkpoint is {path_of(out, before[-1])}" if before else "there is none before it"
        raise CheckpointError(
            f"the checkpoint of step {step} could not be written ({_first_sentence(error)}); {rest}"
        ) from error
    for old in steps_in(out)[:-keep]:
        shutil.rmtree(path_of(out, old), ignore_errors=True)
    return target


def _first_sentence(error: Exception) -> str:
    """Drops the rest of the message; torch's messages continue with advice that does not apply here."""
    return str(error).split("\n")[0].split(". ")[0]


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def load_state(folder: Path) -> dict:
    """Reads state.pt of a checkpoint: tensors and plain values only, so no code in it is run.

    Raises:
        CheckpointError: it cannot be read; the message names the checkpoint before it.
    """
    return _read(folder, "state.pt", lambda path: torch.load(path, map_location="cpu", weights_only=True))


def load_weights(folder: Path, name: str) -> dict[str, Tensor]:
    """Reads NAME.safetensors of a checkpoint.

    Raises:
        CheckpointError: it cannot be read; the message names the checkpoint before it.
    """
    from safetensors.torch import load_file

    return _read(folder, f"{name}.safetensors", load_file)


def _read(folder: Path, name: str, read: Callable[[Path], dict]) -> dict:
    try:
        return read(folder / name)
    except Exception as error:
        match = _NAME.fullmatch(folder.name)
        step = int(match[1]) if match else 0
        before = [s for s in steps_in(folder.parent) if s < step]
        advice = (
            f"remove it to continue from {path_of(folder.parent, before[-1])}" if before else "there is none before it"
        )
        raise CheckpointError(f"{folder / name} cannot be read ({_first_sentence(error)}); {advice}") from error


def fit(module: torch.nn.Module, weights: dict[str, Tensor], what: str) -> None:
    """Loads weights into a module.

    Raises:
        CheckpointError: keys are missing, unknown or of another shape; the message names them.
    """
    if problems := state_dicts.differences(weights, module.state_dict()):
        raise CheckpointError(f"{what} is of another architecture: {problems}")
    module.load_state_dict(weights)
