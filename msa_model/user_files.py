"""Opens the files that a user names. This is the only way in which the package opens them for reading.

Only regular files are opened. Anything else may wait for ever (a pipe without a writer), never end (a device), or act
when it is opened (a tape rewinds). The exception are pipes that the shell has opened for this process: /dev/stdin, and
/dev/fd/N for ``<(command)``.
"""

from __future__ import annotations

import errno
import io
import os
import re
import secrets
import stat
from pathlib import Path
from typing import BinaryIO

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_OWN_PIPE = re.compile(r"/dev/stdin|/dev/fd/[0-9]+|/proc/self/fd/[0-9]+")


class NotAFileError(OSError):
    """A path of something else than a regular file. `strerror` says what it is."""


def check(path: str | os.PathLike) -> None:
    """Refuses what `open_file` would refuse, without opening anything.

    Raises:
        OSError: there is nothing at the path, or no regular file. `strerror` says in a few words what is wrong.
    """
    _check(path, _stat(path).st_mode)


def open_file(path: str | os.PathLike) -> BinaryIO:
    """Opens a file for reading, from its start; never waits for another process to open it too.

    Args:
        path: a regular file; or a pipe that the shell opened for this process, which is read to its end.

    Raises:
        OSError: as `check`, or the file cannot be opened.
    """
    # Asks before it opens, because some devices act when they are opened. Asks again after that, because another file
    # may have taken the name; the flag keeps the opening from waiting if that file is a pipe.
    check(path)
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags)
    try:
        mode = os.fstat(descriptor).st_mode
        _check(path, mode)
        if hasattr(os, "set_blocking"):
            os.set_blocking(descriptor, True)
        file = os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise
    if stat.S_ISREG(mode):
        return file
    with file:
        return io.BytesIO(file.read())


def replace(path: Path, content: bytes) -> None:
    """Writes a file so that its path never holds half of the content. What is at the path already is not opened.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    temporary = path.with_name(f".msa-{secrets.token_hex(8)}.part")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def is_own_pipe(path: str | os.PathLike) -> bool:
    """Whether a path names a pipe that the shell opened for this process, which can be read only once."""
    try:
        return _may_be_piped(path, _stat(path).st_mode)
    except OSError:
        return False


def _may_be_piped(path: str | os.PathLike, mode: int) -> bool:
    return stat.S_ISFIFO(mode) and _OWN_PIPE.fullmatch(os.fsdecode(path)) is not None


def _stat(path: str | os.PathLike) -> os.stat_result:
    try:
        return os.stat(path)
    except ValueError:  # a path that no file system can hold
        raise NotAFileError(errno.EINVAL, "the path holds a NUL character", _text(path)) from None


def _check(path: str | os.PathLike, mode: int) -> None:
    if stat.S_ISREG(mode) or _may_be_piped(path, mode):
        return
    what = next((name for is_kind, name in _KINDS if is_kind(mode)), "something else")
    raise NotAFileError(errno.EINVAL, f"is {what}, not a file", _text(path))


def _text(path: str | os.PathLike) -> str:
    return str(Path(path)) if isinstance(path, os.PathLike) else os.fsdecode(path)
