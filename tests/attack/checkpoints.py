"""Damages a checkpoint and continues the run: the damage must be refused by name, and the way on must be right.

The damages are flipped bits, cut, longer and emptied files, removed and swapped files, files from another checkpoint,
swapped folders, links and pipes.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import tempfile
from pathlib import Path

import numpy as np

from . import kills, warm_training

#: The run has checkpoints of these steps, and is continued to one more.
STEPS = (1, 2, 3)

_KINDS = [*["bits"] * 6, "cut", "longer", "other bytes", "removed", "swapped files", "files of the one before"]
_KINDS += ["swapped folders", "empty folder", "pipe", "folder", "dangling link"]


@functools.cache
def run_folder() -> Path:
    """A finished run with three checkpoints; it stays until this Python process ends."""
    folder = Path(_kept().name)
    command = _command(folder / "run", STEPS[-1])
    code, lines = warm_training.shared().run(command, folder / "log")
    assert code == 0, lines
    return folder / "run"


@functools.cache
def _kept() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="msa-attack-")


def _command(out: Path, steps: int) -> list[str]:
    return [*kills.arguments(out, "0.9", save_every=1, keep=3), "--steps", str(steps)]


def case(rng: np.random.Generator, folder: Path) -> str:
    """Draws one damage of the newest checkpoint, and sometimes of the one before it."""
    run = folder / "run"
    shutil.copytree(run_folder(), run)
    newest, before, oldest = (run / f"step-{step:08d}" for step in reversed(STEPS))
    kind = _damage(rng, newest, before)
    expected = before
    if kind == "swapped folders":
        expected = oldest  # the one before has the other's files
    elif kind == "files of the one before" or rng.random() < 0.3:
        flip(rng, before)
        expected = oldest
    contents = _contents(run)
    code, lines = warm_training.shared().run(_command(run, STEPS[-1] + 1), folder / "log")
    assert code == 1, f"{kind}: exit code {code}: {lines}"
    assert len(lines) == 1, f"{kind}: {lines}"
    assert lines[0].startswith(f"msa train: error: {newest}"), f"{kind}: does not name the checkpoint: {lines}"
    found = re.search(r"remove (.*) to continue from (\S+)$", lines[0])
    assert found, f"{kind}: no way on: {lines}"
    assert found[2] == str(expected), f"{kind}: {expected.name} is the newest intact one: {lines}"
    assert _contents(run) == contents, f"{kind}: files have changed"
    if rng.random() < 0.25:  # what the line advises, works
        for path in (newest, before) if expected == oldest else (newest,):
            shutil.rmtree(path)
        code, lines = warm_training.shared().run(_command(run, STEPS[-1]), folder / "log")
        assert code == 0, f"{kind}: what was advised: exit code {code}: {lines}"
        digests = [kills.digest(out, STEPS[-1]) for out in (run, run_folder())]
        assert digests[0] == digests[1], f"{kind}: other numbers after {expected.name}"
    return kind


def _contents(run: Path) -> dict[str, bytes]:
    """The files of a run's checkpoints."""
    files = (path for path in run.rglob("*") if path.is_file() and "events" not in path.parts)
    return {str(path.relative_to(run)): path.read_bytes() for path in files}


def flip(rng: np.random.Generator, checkpoint: Path) -> None:
    """Flips one to three bits of a file."""
    path = _file(rng, checkpoint)
    content = bytearray(path.read_bytes())
    for place in rng.choice(len(content), size=int(rng.integers(1, 4)), replace=False):
        content[place] ^= 1 << int(rng.integers(8))
    path.write_bytes(content)


def _file(rng: np.random.Generator, checkpoint: Path) -> Path:
    files = sorted(path for path in checkpoint.iterdir() if path.is_file())
    return files[rng.integers(len(files))]


def _damage(rng: np.random.Generator, newest: Path, before: Path) -> str:
    """Damages the newest checkpoint; returns the kind of the damage."""
    path = _file(rng, newest)
    size = path.stat().st_size
    kind = str(rng.choice(_KINDS))
    match kind:
        case "bits":
            flip(rng, newest)
        case "cut":
            os.truncate(path, int(rng.integers(size)))
        case "longer":
            path.write_bytes(path.read_bytes() + rng.bytes(int(rng.integers(1, 100))))
        case "other bytes":
            content = bytearray(path.read_bytes())
            start = int(rng.integers(size))
            content[start : start + 512] = bytes(b ^ 0xFF for b in content[start : start + 512])
            path.write_bytes(content)
        case "removed":
            path.unlink()
        case "swapped files":
            first, second = (newest / f"{name}.safetensors" for name in ("generator", "ema"))
            kept = first.read_bytes()
            first.write_bytes(second.read_bytes())
            second.write_bytes(kept)
        case "files of the one before":
            # Without the checksums, the numbers of both files are plausible.
            name = str(rng.choice(["generator.safetensors", "ema.safetensors", "state.pt", "checksums.json"]))
            shutil.copyfile(before / name, newest / name)
        case "swapped folders":
            aside = newest.with_name("aside")
            newest.rename(aside)
            before.rename(newest)
            aside.rename(before)
        case "empty folder":
            for file in newest.iterdir():
                file.unlink()
        case "pipe":
            path.unlink()
            os.mkfifo(path)
        case "folder":
            path.unlink()
            path.mkdir()
        case "dangling link":
            path.unlink()
            path.symlink_to("nowhere")
    return kind
