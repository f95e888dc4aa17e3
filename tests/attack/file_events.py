"""Kills a process at one of its own file operations: opening, renaming, removing, flushing and the like."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import asdict, dataclass

#: Python's names of the operations, of which the first argument is a path.
_AUDITED = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.scandir", "os.listdir", "os.truncate"}


@dataclass
class Death:
    """Where a process kills itself.

    Attributes:
        folder: only operations on files under this folder count.
        at: the number of the operation before which it kills itself, from 0.
        after: whether it is after the operation; then renaming, removing, making a folder and flushing count.
        lost: the share of the file that stays where the operation is a flush: as a power failure would have it, bytes
            that were not flushed are gone. 1 keeps all.
    """

    folder: str
    at: int
    after: bool = False
    lost: float = 1.0

    def as_dict(self) -> dict:
        """The arguments, for JSON."""
        return asdict(self)

    def arrange(self) -> None:
        """Watches this process's operations from now on."""
        self._number = 0
        folder = os.path.abspath(self.folder)

        def counts(path: object, descriptor: int | None = None) -> bool:
            if not isinstance(path, str | os.PathLike):
                return False
            if descriptor is not None and descriptor >= 0:  # shutil.rmtree names files relative to an open folder
                path = os.path.join(os.readlink(f"/proc/self/fd/{descriptor}"), path)
            return os.path.abspath(os.fspath(path)).startswith(folder)

        if not self.after:

            def hook(event: str, arguments: tuple) -> None:
                relative = event in ("os.remove", "os.rmdir")
                if event in _AUDITED and arguments and counts(arguments[0], arguments[1] if relative else None):
                    self._step()

            sys.addaudithook(hook)
        else:
            for name in ("replace", "unlink", "rmdir", "mkdir"):
                setattr(os, name, self._dying_after(getattr(os, name), counts))
        flush = os.fsync

        def fsync(descriptor: int) -> None:
            path = os.readlink(f"/proc/self/fd/{descriptor}")
            if counts(path):
                self._step(path)
            flush(descriptor)

        os.fsync = fsync

    def _dying_after(self, operation, counts):
        def wrapped(path, *arguments, **options):
            result = operation(path, *arguments, **options)
            if counts(path, options.get("dir_fd")):
                self._step()
            return result

        return wrapped

    def _step(self, path: str | None = None) -> None:
        number, self._number = self._number, self._number + 1
        if number == self.at:
            if path is not None and self.lost < 1 and os.path.isfile(path):
                os.truncate(path, int(os.path.getsize(path) * self.lost))
            os.kill(os.getpid(), signal.SIGKILL)
