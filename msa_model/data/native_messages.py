"""Keeps what libraries in C write to stderr from the terminal.

Of the libraries with which Pillow reads and writes the package's formats, only libtiff writes there.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from collections.abc import Iterator

from ..lines import one_line

_LONGEST = 300  # characters of what is passed on
_LOCK = threading.Lock()  # stderr is that of the whole process


@contextlib.contextmanager
def caught() -> Iterator[list[str]]:
    """Sends what is written to the process's stderr, below Python, into a list: at the end it holds one line, or none.

    One thread at a time.
    """
    said: list[str] = []
    with _LOCK, tempfile.TemporaryFile() as sink:
        try:
            terminal = os.dup(2)
        except OSError:  # this process has no stderr
            yield said
            return
        os.dup2(sink.fileno(), 2)
        try:
            yield said
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
            sink.seek(0)
            line = one_line(sink.read(16 * _LONGEST).decode(errors="replace"), _LONGEST)
            if line:
                said.append(line)
