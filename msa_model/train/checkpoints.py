"""Checkpoints of a training run: a folder per step, written whole or not at all.

    OUT/step-00001000/generator.safetensors      loads with Generator.load, so every checkpoint can inpaint
                      ema.safetensors            where the run keeps one
                      discriminator.safetensors
                      state.pt                   optimisers, loss scaling, random number generators, the step

A checkpoint is written beside its place, flushed to the disk, and renamed; so a crash or a full disk leaves the ones
before untouched.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from . import torch_files

_NAME = re.compile(r"step-(\d{8,})")


class CheckpointError(Exception):
    """A checkpoint that cannot be written or read, in one line."""


def path_of(out: Path, step: int) -> Path:
    return Path(out) / f"step-{step:08d}"


def steps_in(out: Path) -> list[int]:
    """Steps of the complete checkpoints in a folder, oldest first."""
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
        CheckpointError: it could not be written; the ones before are untouched.
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
        if target.exists():  # of a run that was continued from before it
            shutil.rmtree(target)
        os.replace(temporary, target)
        _flush(out)
    # safetensors and torch.save report a full disk as errors of their own.
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
    """Torch's messages go on with advice that does not apply here."""
    return str(error).split("\n")[0].split(". ")[0]


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def load_state(folder: Path) -> dict:
    """state.pt of a checkpoint, tensors and plain values only.

    Raises:
        CheckpointError: unreadable; the message names the checkpoint before it.
    """
    return _read(folder, "state.pt", lambda path: torch.load(path, map_location="cpu", weights_only=True))


def load_weights(folder: Path, name: str) -> dict[str, Tensor]:
    """NAME.safetensors of a checkpoint.

    Raises:
        CheckpointError: unreadable; the message names the checkpoint before it.
    """
    from safetensors.torch import load_file

    return _read(folder, f"{name}.safetensors", load_file)


def _read(folder: Path, name: str, read: Callable[[Path], dict]) -> dict:
    try:
        return read(folder / name)
    except Exception as error:
        step = int(_NAME.fullmatch(folder.name)[1]) if _NAME.fullmatch(folder.name) else 0
        before = [s for s in steps_in(folder.parent) if s < step]
        advice = (
            f"remove it to continue from {path_of(folder.parent, before[-1])}" if before else "there is none before it"
        )
        raise CheckpointError(f"{folder / name} cannot be read ({_first_sentence(error)}); {advice}") from error


def fit(module: torch.nn.Module, weights: dict[str, Tensor], what: str) -> None:
    """Loads weights into a module.

    Raises:
        CheckpointError: names the keys that are missing, unknown, or of another shape.
    """
    if problems := torch_files.differences(weights, module.state_dict()):
        raise CheckpointError(f"{what} is of another architecture: {problems}")
    module.load_state_dict(weights)
