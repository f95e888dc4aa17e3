"""Kills small trainings and continues them: their last checkpoint must equal, bit for bit, that of a run without kills.

The kills come at random moments, and before, within and after the operations that change files. Other cases start two
trainings in one folder, or start one afresh in a folder that holds checkpoints.
"""

from __future__ import annotations

import functools
import hashlib
import signal
import tempfile
import time
from pathlib import Path

import numpy as np

from . import warm_training
from .file_events import Death

STEPS = 5
_KILLED = -signal.SIGKILL


@functools.cache
def whole(ema: str) -> tuple[str, float]:
    """A run without kills: the digest of its last checkpoint, and the seconds that it took."""
    with tempfile.TemporaryDirectory(prefix="msa-attack-") as folder:
        begin = time.monotonic()
        code, lines = warm_training.shared().run(arguments(Path(folder) / "run", ema), Path(folder) / "log")
        seconds = time.monotonic() - begin
        assert code == 0, lines
        return digest(Path(folder) / "run"), seconds


def arguments(out: Path, ema: str, save_every: int = 2, keep: int = 2, *more: str) -> list[str]:
    """The command line of the run."""
    length = ["--steps", str(STEPS), "--save_every", str(save_every), "--keep", str(keep), "--ema", ema]
    return [*warm_training.SMALL, "--out", str(out), *length, *more]


def digest(out: Path, step: int = STEPS) -> str:
    """A digest of the numbers in the checkpoint of a step: weights, average, optimisers."""
    from safetensors.torch import load_file

    from msa_model.train import checkpoints

    folder = checkpoints.path_of(out, step)
    checkpoints.check(folder)
    sha = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        for name, tensor in sorted(load_file(file).items()):
            sha.update(f"{file.name} {name} {tuple(tensor.shape)}".encode() + tensor.numpy().tobytes())
    state = checkpoints.load_state(folder)
    for network, optimizer in sorted(state["optimizers"].items()):
        for number, moments in sorted(optimizer["state"].items()):
            for name, tensor in sorted(moments.items()):
                sha.update(f"{network} {number} {name}".encode() + tensor.numpy().tobytes())
    return sha.hexdigest()


def all_intact(out: Path) -> None:
    """Asserts that every folder that has the name of a checkpoint is whole."""
    from msa_model.train import checkpoints

    for step in checkpoints.steps_in(out):
        folder = checkpoints.path_of(out, step)
        assert checkpoints.check(folder), (
            f"{folder.name} has no checksums, only {sorted(p.name for p in folder.iterdir())}"
        )


def case(rng: np.random.Generator, folder: Path) -> str:
    """Draws one case."""
    kinds = (at_a_moment, at_a_file_event, at_a_file_event, at_a_file_event, two_in_one_folder, afresh)
    return kinds[rng.integers(len(kinds))](rng, folder)


def _draw(rng: np.random.Generator, folder: Path) -> tuple[str, list[str]]:
    """Draws an average and a run's command line."""
    ema = str(rng.choice(["0", "0.9"]))
    workers = str(rng.choice([0, 0, 0, 1]))
    more = ["--data.workers", workers]
    return ema, arguments(folder / "run", ema, int(rng.integers(1, 4)), int(rng.integers(1, 4)), *more)


def at_a_moment(rng: np.random.Generator, folder: Path) -> str:
    """Kills up to three times at a random moment."""
    ema, command = _draw(rng, folder)
    expected, seconds = whole(ema)
    for attempt in range(int(rng.integers(1, 4))):
        training = warm_training.shared().start(command, folder / f"log-{attempt}")
        time.sleep(rng.random() * seconds)
        training.kill()
        assert (code := training.wait()) in (_KILLED, 0), f"exit code {code}: {training.lines()}"
        all_intact(folder / "run")
    _finish(command, folder, expected)
    return "kill at a moment"


def at_a_file_event(rng: np.random.Generator, folder: Path) -> str:
    """Kills up to three times at a file operation, with what is not flushed lost or not."""
    ema, command = _draw(rng, folder)
    kind = "a file operation"
    for attempt in range(int(rng.integers(1, 4))):
        after, lost = bool(rng.random() < 0.4), float(rng.choice([1.0, rng.random()]))
        at = int(rng.integers(30 if after else 80))
        death = Death(str(folder / "run"), at, after, lost)
        code, lines = warm_training.shared().run(command, folder / f"log-{attempt}", death)
        assert code in (_KILLED, 0), f"exit code {code}: {lines}"
        if code == _KILLED:
            kind = "kill at a file operation"
        all_intact(folder / "run")
    _finish(command, folder, whole(ema)[0])
    return kind if kind.startswith("kill") else "kill after the end"


def two_in_one_folder(rng: np.random.Generator, folder: Path) -> str:
    """Starts a second training beside the first, or right after the first was killed."""
    ema, command = _draw(rng, folder)
    expected, seconds = whole(ema)
    warm = warm_training.shared()
    first = warm.start(command, folder / "log-1")
    time.sleep(rng.random() * 0.7 * seconds)
    killed = bool(rng.random() < 0.4)
    if killed:
        first.kill()
        assert first.wait() in (_KILLED, 0), first.lines()
    second = warm.start(command, folder / "log-2")
    codes = [0 if killed else first.wait(), second.wait()]
    for code, training, other in zip(codes, (first, second), (second, first), strict=True):
        if code != 0:
            assert not killed, f"refused because of a dead process: {training.lines()}"
            assert code == 1, f"exit code {code}: {training.lines()}"
            (line,) = training.lines()
            assert str(folder / "run") in line, line
            # Between the lock and the line that says whose it is, the holder has no name.
            assert f"process {other.pid} on " in line or "another process is training" in line, line
    assert 0 in codes, f"both were refused: {first.lines()} {second.lines()}"
    _finish(command, folder, expected)
    return "second after a kill" if killed else f"two at once, {codes.count(1)} refused"


def afresh(rng: np.random.Generator, folder: Path) -> str:
    """Starts with ``--resume false`` where checkpoints are: it must refuse, and change nothing."""
    from msa_model.train import checkpoints

    ema, command = _draw(rng, folder)
    code, lines = warm_training.shared().run(command, folder / "log-1")
    assert code == 0, lines
    before = {p: p.read_bytes() for p in (folder / "run").rglob("*") if p.is_file()}
    steps = str(rng.integers(1, 2 * STEPS))
    code, lines = warm_training.shared().run([*command, "--resume", "false", "--steps", steps], folder / "log-2")
    assert code == 1, f"exit code {code}: {lines}"
    assert len(lines) == 1, lines
    assert str(folder / "run") in lines[0], lines
    assert before == {p: p.read_bytes() for p in (folder / "run").rglob("*") if p.is_file()}, "files have changed"
    assert checkpoints.steps_in(folder / "run")[-1] == STEPS
    assert digest(folder / "run") == whole(ema)[0], "other numbers"
    return "afresh in a used folder"


def _finish(command: list[str], folder: Path, expected: str) -> None:
    """Runs to the end, and compares."""
    code, lines = warm_training.shared().run(command, folder / "log")
    assert code == 0, f"the last run: exit code {code}: {lines}"
    path = lines[-1].split("weights: ")[-1]
    assert Path(path).is_dir(), f"printed {path}, which does not exist"
    assert digest(folder / "run") == expected, f"other numbers than without kills; {lines}"
    left = sorted(p.name for p in (folder / "run").iterdir() if not p.name.startswith("step-") and p.name != "events")
    assert not left, f"left behind: {left}"
    all_intact(folder / "run")
