"""Writes and compares the checksums of a checkpoint's files: the file checksums.json in the checkpoint's folder."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

NAME = "checksums.json"


def write(folder: Path, step: int) -> None:
    """Writes the step and the SHA-256 of every file of a folder into its checksums.json."""
    files = sorted(entry.name for entry in folder.iterdir() if entry.name != NAME)
    (folder / NAME).write_text(_text({"step": step, "sha256": {name: _digest(folder / name) for name in files}}))


def are_in(folder: Path) -> bool:
    """Whether a folder has checksums. Older versions wrote none."""
    return os.path.lexists(folder / NAME)


def difference(folder: Path, step: int, names: tuple[str, ...]) -> str:
    """Compares the files of a folder with its checksums.json.

    Args:
        folder: the folder; `are_in` is true.
        step: the step that its checksums must be of.
        names: the files that must have a checksum if they exist.

    Returns:
        What is wrong, such as "state.pt is missing"; "" if nothing is.
    """
    try:
        text = _regular(folder / NAME).read_text()
        noted = json.loads(text)
        files, noted_step = dict(noted["sha256"]), noted["step"]
        # Any other text has been changed, even where it means the same.
        if text != _text({"step": noted_step, "sha256": files}):
            return f"{NAME} is not what was written"
    except OSError as error:
        return f"{NAME} cannot be read ({error.strerror or error})"
    except (ValueError, KeyError, TypeError, RecursionError):
        return f"{NAME} is not what was written"
    if noted_step != step:
        return f"it was written as the checkpoint of step {noted_step}"
    for name, digest in files.items():
        try:
            if _digest(folder / name) != digest:
                return f"{name} is not what was written"
        except FileNotFoundError:
            return f"{name} is missing"
        except (OSError, ValueError) as error:
            return f"{name} cannot be read ({getattr(error, 'strerror', None) or error})"
    if added := [name for name in names if name not in files and os.path.lexists(folder / name)]:
        return f"{added[0]} was added later"
    return ""


def _text(noted: dict) -> str:
    return json.dumps(noted, indent=1, sort_keys=True) + "\n"


def _digest(path: Path) -> str:
    with open(_regular(path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _regular(path: Path) -> Path:
    """Returns the path of a regular file; to open another kind, such as a pipe, could wait for ever."""
    path.stat()
    if not path.is_file():
        raise OSError(f"{path.name} is not a regular file")
    return path
