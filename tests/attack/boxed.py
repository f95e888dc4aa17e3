"""Runs a function in a child process that can neither hang nor take all memory, and checks what it prints."""

import contextlib
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from msa_model import lines

#: Far more than any case needs on a slow machine: only a case that hangs reaches it.
SECONDS = 120
MEMORY = 4 << 30  # bytes beyond what the parent has mapped
_BUG = 70  # exit code of a child that ends with a traceback


@dataclass(frozen=True)
class Outcome:
    """How a child ended: its exit code and what it printed."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.err.splitlines()


def run(function: Callable[[], int | None], seconds: float = SECONDS, memory: int = MEMORY) -> Outcome:
    """Runs a function in a forked child; its result is the exit code.

    Raises:
        AssertionError: it hangs, crashes, or ends with a traceback.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if not child:
            _in_child(function, out.fileno(), err.fileno(), memory)
        status = _wait(child, seconds)
        out.seek(0)
        err.seek(0)
        outcome = Outcome(os.waitstatus_to_exitcode(status), out.read().decode(), err.read().decode())
    assert outcome.code >= 0, f"killed by signal {-outcome.code}: {outcome.err[-500:]!r}"
    assert outcome.code != _BUG, f"wanted a line, got a traceback: {outcome.err[-2000:]}"
    return outcome


def _wait(child: int, seconds: float) -> int:
    end = time.monotonic() + seconds
    pause = 0.001
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        time.sleep(pause)
        pause = min(0.05, 1.2 * pause)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise AssertionError(f"wanted an end, got none after {seconds:.0f} s")


def _in_child(function: Callable[[], int | None], out: int, err: int, memory: int) -> None:
    code: object = _BUG
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(err, 2)
        sys.stdin = os.fdopen(0, closefd=False)
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
        with contextlib.suppress(OSError), open("/proc/self/statm") as statm:
            mapped = int(statm.read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (mapped + memory, mapped + memory))
        code = function()
    except SystemExit as error:
        code = error.code
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 0)


def check_lines(outcome: Outcome, command: str) -> None:
    """Checks that a command printed lines of its own, of limited length, that no terminal obeys.

    Raises:
        AssertionError: it did not.
    """
    for line in outcome.err.removesuffix("\n").split("\n") if outcome.err else []:
        assert line.startswith(f"msa {command}: "), f"wanted a line of msa {command}, got {line[:500]!r}"
        assert line.isprintable(), f"wanted a printable line, got {line[:500]!r}"
        longest = lines.LONGEST + len(f"msa {command}: error: ")
        assert len(line) <= longest, f"wanted at most {longest} characters, got {len(line)}: {line[:200]!r}"
