"""Trainings that start within milliseconds: a process that has imported everything forks itself for each:

    training = shared().start([*SMALL, "--steps", "3", "--out", "run"], Path("log"))
    code = training.wait()

Run as a program, this file is that process. It reads one JSON object a line and answers each with a number.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from . import file_events

ROOT = Path(__file__).parents[2]

#: A run that is as small as possible, without the folder and the length.
SMALL = [
    *("train", "--preset", "synthetic", "--data.size", "32", "--generator.base_width", "2", "--generator.depth", "2"),
    *("--generator.attention_levels", "[2]", "--batch", "2", "--data.workers", "0", "--device", "cpu"),
    *("--log_every", "1", "--images_every", "0"),
]


@dataclass
class Training:
    """A training that has been started.

    Attributes:
        pid: its process.
        log: the file of what it prints.
    """

    pid: int
    log: Path
    warm: WarmTraining

    def wait(self) -> int:
        """Waits for its end; returns the exit code, or minus the number of the signal that killed it."""
        return self.warm.ask(wait=self.pid)

    def kill(self) -> None:
        """Kills it; it must not have been waited for."""
        os.kill(self.pid, signal.SIGKILL)

    def lines(self) -> list[str]:
        """What it printed, without the progress bar and the notes."""
        printed = self.log.read_text(errors="replace").replace("\r", "\n").splitlines()
        return [line for line in printed if line.strip() and not line.startswith(("training: ", "msa train: note: "))]


class WarmTraining:
    """The process that starts trainings, and asks it. `close` ends it.

    Attributes:
        plant: Python code that every training runs first; tests plant faults with it.
    """

    def __init__(self) -> None:
        self.plant = ""
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.attack.warm_training"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def ask(self, **request: object) -> int:
        """Sends a request and returns the answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        if not (answer := self.process.stdout.readline()):
            raise RuntimeError("the process that starts trainings has ended")
        return int(answer)

    def start(self, arguments: list[str], log: Path, death: file_events.Death | None = None) -> Training:
        """Starts ``msa`` with these arguments; with `death`, the process kills itself at a file event."""
        pid = self.ask(
            start=arguments, log=str(log), plant=self.plant, death=None if death is None else death.as_dict()
        )
        return Training(pid, log, self)

    def run(self, arguments: list[str], log: Path, death: file_events.Death | None = None) -> tuple[int, list[str]]:
        """Runs ``msa``; returns the exit code and what it printed."""
        training = self.start(arguments, log, death)
        code = training.wait()
        return code, training.lines()

    def close(self) -> None:
        """Ends the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


@functools.cache
def shared() -> WarmTraining:
    """The process of this Python process; it ends with its standard input, so with this process."""
    return WarmTraining()


def _train(request: dict) -> None:
    """Runs a training in this forked process, and ends the process."""
    from msa_model import cli

    code = 70
    try:
        os.setpgid(0, 0)
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        signal.alarm(120)  # a training that hangs is a failure with a code of its own
        exec(request["plant"], {})
        if request["death"]:
            file_events.Death(**request["death"]).arrange()
        try:
            code = cli.main(request["start"])
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        except BaseException:
            import traceback

            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _import_all() -> None:
    """Imports what a training imports, without training in this process: torch's autograd must not be forked.

    A forked process trains once, and tells the names of its modules.
    """
    from msa_model.train import run, trainer  # noqa: F401

    reading, writing = os.pipe()
    if (pid := os.fork()) == 0:
        with tempfile.TemporaryDirectory() as folder, contextlib.suppress(BaseException):
            from msa_model import cli

            cli.main([*SMALL, "--steps", "1", "--out", folder])
            names = [name for name, module in sys.modules.items() if getattr(module, "__spec__", None)]
            os.write(writing, "\n".join(names).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as names:
        for name in names.read().splitlines():
            if name not in sys.modules:
                with contextlib.suppress(Exception):
                    importlib.import_module(name)
    os.waitpid(pid, 0)


def _serve() -> None:
    """Answers requests until standard input ends."""
    import torch
    from tqdm import tqdm

    from msa_model import Discriminator
    from msa_model.train import trainer

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not be taken for an answer
    torch.set_num_threads(1)
    tqdm.monitor_interval = 0
    trainer.Discriminator = functools.partial(Discriminator, base_width=2)
    _import_all()
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            answer = os.waitstatus_to_exitcode(status)
        else:
            answer = os.fork()
            if answer == 0:
                _train(request)
        print(answer, file=answers, flush=True)


if __name__ == "__main__":
    _serve()
