"""The command line, ``msa`` or ``python -m msa_model``.

Every command is a file of this package that defines a `Command`; `commands.COMMANDS` lists them.

This file imports next to nothing, so that `main` runs, and answers Ctrl-C, before anything is imported that takes time.
"""

from __future__ import annotations

import signal
import sys
import threading
from typing import TYPE_CHECKING, Any

from .._lazy import lazy_names

if TYPE_CHECKING:
    from .commands import COMMANDS

__all__ = ["COMMANDS", "main"]

__getattr__ = lazy_names(__name__, {"COMMANDS": "commands"})


def main(argv: list[str] | None = None) -> int:
    """Runs a command line.

    Args:
        argv: the arguments; None: those of the process.

    Returns:
        The exit code: 0 all succeeded, 1 some or all failed, 2 wrong usage, 130 interrupted.

    Raises:
        SystemExit: 2 for wrong usage that argparse finds, 0 after ``--help``.
    """
    pressed = False

    def interrupt(number: int, frame: Any) -> None:
        nonlocal pressed
        pressed = True
        raise KeyboardInterrupt

    # Only the main thread may set a handler; a handler that somebody else has set stays.
    ours = threading.current_thread() is threading.main_thread() and (
        signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    try:
        if ours:
            signal.signal(signal.SIGINT, interrupt)
        from .commands import run

        return run(argv, lambda: pressed)
    except KeyboardInterrupt:
        pass
    except Exception:
        if not pressed:
            raise
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
    print("msa: interrupted", file=sys.stderr)
    return 130
