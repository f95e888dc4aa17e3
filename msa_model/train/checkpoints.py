"""Writes and reads the checkpoints of a training run, a folder per step:

    OUT/step-00001000/generator.safetensors      Generator.load reads it, so every checkpoint can inpaint
                      ema.safetensors            if the run keeps an average
                      discriminator.safetensors
                      state.pt                   optimisers, loss scaling, random number generators, the step
                      checksums.json             SHA-256 of the files above; older versions wrote none

A checkpoint is written under a temporary name, flushed to the disk, and renamed. So a crash or a full disk leaves the
earlier checkpoints untouched. It is renamed before it is removed, too: a folder named step-N is always whole.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ..nn import state_dicts
from . import checksums
from .errors import CheckpointError

_NAME = re.compile(r"step-(\d{8,})")
_LEFT_OVER = re.compile(r"\.step-\d{8,}\.(part|old)")

#: The files that a checkpoint can have.
_FILES = ("generator.safetensors", "ema.safetensors", "discriminator.safetensors", "state.pt")


def path_of(out: Path, step: int) -> Path:
    """The folder of a step's checkpoint."""
    return Path(out) / f"step-{step:08d}"


def steps_in(out: Path) -> list[int]:
    """Lists the steps of the complete checkpoints in a folder, oldest first."""
    if not Path(out).is_dir():
        return []
    matches = (_NAME.fullmatch(entry.name) for entry in Path(out).iterdir())
    return sorted(int(match[1]) for match in matches if match)


def clean(out: Path) -> None:
    """Removes what a killed process left of checkpoints that it was writing or removing."""
    if Path(out).is_dir():
        for entry in list(Path(out).iterdir()):
            if _LEFT_OVER.fullmatch(entry.name):
                shutil.rmtree(entry, ignore_errors=True)


def save(out: Path, step: int, write: Callable[[Path], None], keep: int) -> Path:
    """Writes the checkpoint of a step; of this and earlier steps it keeps the newest `keep`.

    Args:
        out: folder of the run.
        step: steps done.
        write: writes the files into the folder that it is given.
        keep: how many checkpoints stay, besides those of later steps.

    Returns:
        The checkpoint's folder.

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
        checksums.write(temporary, step)
        for file in temporary.iterdir():
            _flush(file)
        _flush(temporary)
        _remove(target)  # from before the run was continued from an earlier step
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
    for old in [s for s in steps_in(out) if s <= step][:-keep]:
        with contextlib.suppress(OSError):
            _remove(path_of(out, old))
    return target


def _remove(folder: Path) -> None:
    """Removes a checkpoint, if it exists. From its first moment on no half of it has the name of a checkpoint."""
    aside = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        os.replace(folder, aside)
        shutil.rmtree(aside, ignore_errors=True)


def _first_sentence(error: Exception) -> str:
    """Drops the rest of the message; torch's messages continue with advice that does not apply here."""
    return str(error).split("\n")[0].split(". ")[0]


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check(folder: Path) -> bool:
    """Compares a checkpoint with its checksums.

    Returns:
        Whether it has checksums. Older versions wrote none; then nothing is known.

    Raises:
        CheckpointError: it is damaged; the message names what is wrong and the newest intact checkpoint before it.
    """
    if problem := _damage(folder):
        raise CheckpointError(f"{folder} is damaged: {problem}; {_advice(folder)}")
    return checksums.are_in(folder)


def _damage(folder: Path) -> str:
    """What is wrong with a checkpoint, as far as its checksums tell; "" if nothing is."""
    return checksums.difference(folder, _step_of(folder), _FILES) if checksums.are_in(folder) else ""


def load_state(folder: Path) -> dict:
    """Reads state.pt of a checkpoint: tensors and plain values only, so no code in it is run.

    Raises:
        CheckpointError: it cannot be read, or is of another step, or the checkpoint has lost its checksums; the
            message names the newest intact checkpoint before it.
    """
    state = _read(folder, "state.pt", _load)
    if problem := _contradiction(state, folder):
        raise CheckpointError(f"{folder} is damaged: {problem}; {_advice(folder)}")
    return state


def _load(path: Path) -> dict:
    return torch.load(path, map_location="cpu", weights_only=True)


def _contradiction(state: object, folder: Path) -> str:
    """What shows that a state.pt is not that of its folder; "" if nothing does."""
    if not isinstance(state, dict):
        return "state.pt is not the state of a training run"
    if state.get("checksums") and not checksums.are_in(folder):
        return f"{checksums.NAME} is missing"
    if (step := state.get("step")) != _step_of(folder):
        return f"state.pt is of step {step}"
    return ""


def load_weights(folder: Path, name: str) -> dict[str, Tensor]:
    """Reads NAME.safetensors of a checkpoint.

    Raises:
        CheckpointError: it cannot be read; the message names the newest intact checkpoint before it.
    """
    from safetensors.torch import load_file

    return _read(folder, f"{name}.safetensors", load_file)


def _read(folder: Path, name: str, read: Callable[[Path], dict]) -> dict:
    path = folder / name
    try:
        if path.exists() and not path.is_file():
            raise OSError("not a regular file")  # to open a pipe could wait for ever
        return read(path)
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read ({_first_sentence(error)}); {_advice(folder)}") from error


def unusable(folder: Path, error: Exception) -> CheckpointError:
    """Makes the error for a checkpoint whose state.pt can be read but does not fit the run."""
    what = f"{type(error).__name__}: {_first_sentence(error)}"
    return CheckpointError(f"{folder / 'state.pt'} is not the state of such a run ({what}); {_advice(folder)}")


def _advice(folder: Path) -> str:
    """How to continue without a checkpoint: from the newest intact one before it."""
    removed = [folder.name]
    for step in reversed([s for s in steps_in(folder.parent) if s < _step_of(folder)]):
        before = path_of(folder.parent, step)
        if not _damage(before) and (checksums.are_in(before) or _is_whole(before)):
            return f"remove {' and '.join(removed) if removed[1:] else 'it'} to continue from {before}"
        removed.append(before.name)
    return "there is no intact one before it" if removed[1:] else "there is none before it"


def _is_whole(folder: Path) -> bool:
    """Whether a checkpoint without checksums seems usable."""
    try:
        return (folder / "state.pt").is_file() and not _contradiction(_load(folder / "state.pt"), folder)
    except Exception:
        return False


def _step_of(folder: Path) -> int:
    match = _NAME.fullmatch(folder.name)
    return int(match[1]) if match else 0


def fit(module: torch.nn.Module, weights: dict[str, Tensor], what: str) -> None:
    """Loads weights into a module.

    Raises:
        CheckpointError: keys are missing, unknown or of another shape; the message names them.
    """
    if problems := state_dicts.differences(weights, module.state_dict()):
        raise CheckpointError(f"{what} is of another architecture: {problems}")
    module.load_state_dict(weights)
