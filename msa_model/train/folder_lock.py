"""Keeps a second training out of the folder of a run."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from .errors import TrainingError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment] # checked before use

NAME = ".training.lock"

_held: set[int] = set()


def _let_go_in_child() -> None:
    """Closes the lock files in a forked process, which would otherwise hold the locks after its parent's death."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_in_child)


class FolderLock:
    """A lock on a folder, from its creation to `release` or to the end of the process, however that ends.

    The operating system locks the file .training.lock in the folder (flock). The file says which process holds the
    lock; a file that nobody locks, as a killed process leaves it, means nothing.

    Args:
        folder: the folder; it is made if it does not exist.

    Attributes:
        problem: why there is no lock, in a sentence for the user; "" if there is one.

    Raises:
        TrainingError: another process holds the lock, or the folder cannot be written; the message names both.
    """

    def __init__(self, folder: Path) -> None:
        self.path, self.problem = Path(folder) / NAME, ""
        self._descriptor: int | None = None
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            while self._descriptor is None and not self.problem:
                self._try()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise TrainingError(f"{folder}: cannot be used as the folder of a run: {reason}") from error

    def _try(self) -> None:
        """Opens and locks the file, unless its holder removes it meanwhile."""
        if fcntl is None:
            self.problem = self._without_lock("this operating system has no flock")
            return
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            current = self.path.stat().st_ino == os.fstat(descriptor).st_ino
        except BlockingIOError as error:
            holder = " ".join(os.pread(descriptor, 200, 0).decode(errors="replace").split()) or "another process"
            os.close(descriptor)
            raise TrainingError(
                f"{self.path.parent}: {holder} is training in this folder; wait until it has ended, or name another "
                "folder (--out)"
            ) from error
        except FileNotFoundError:
            current = False
        except OSError as error:
            self.problem = self._without_lock(f"its file system has no locks ({error.strerror})")
            current = False
        if not current:
            os.close(descriptor)
            return
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        self._descriptor = descriptor
        _held.add(descriptor)

    def _without_lock(self, why: str) -> str:
        return f"{self.path.parent} is not locked, as {why}: make sure that no other training uses it"

    def release(self) -> None:
        """Removes the file and ends the lock."""
        if self._descriptor in _held:
            self.path.unlink(missing_ok=True)
            _held.discard(self._descriptor)
            os.close(self._descriptor)
        self._descriptor = None
