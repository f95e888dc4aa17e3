"""What is said of a name that is not known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def unknown(kind: str, name: str, names: Iterable[str]) -> str:
    """One line with the nearest of the known names, and all of them."""
    names = list(dict.fromkeys(names))
    nearest = difflib.get_close_matches(name, names, 1)
    meant = f" (did you mean {nearest[0]!r}?)" if nearest else ""
    return f"unknown {kind} {name!r}{meant}; known are {', '.join(names)}"
