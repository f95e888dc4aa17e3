"""Finds image files in folders."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Found:
    """Files below a folder.

    Args:
        paths: the files with one of the wanted suffixes, sorted.
        others: how many files have another suffix.
    """

    paths: list[Path]
    others: int


def files_below(
    folder: Path, suffixes: Collection[str], *, follow_links: bool = False, skip: Collection[Path] = ()
) -> Found:
    """Searches a folder and all its subfolders.

    Hidden files and folders (".name") are left out.

    Args:
        folder: where the search starts.
        suffixes: the wanted endings of names, in lower case; names may have either case.
        follow_links: whether to search linked folders, each folder once.
        skip: files and folders to leave out, whatever the name that leads to them.

    Raises:
        OSError: a folder cannot be listed; ``error.filename`` names it.
    """

    def refuse(error: OSError) -> None:
        raise error

    skipped = {identity for path in skip if (identity := file_identity(path)) is not None}

    def wanted(parent: str, name: str) -> bool:
        return not name.startswith(".") and not (skipped and file_identity(Path(parent, name)) in skipped)

    found: list[Path] = []
    others, seen = 0, set()
    for parent, folders, names in os.walk(folder, onerror=refuse, followlinks=follow_links):
        real = os.path.realpath(parent)
        if real in seen:  # a link that leads back up
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if wanted(parent, name)]
        for name in names:
            if not wanted(parent, name):
                continue
            if os.path.splitext(name)[1].lower() in suffixes:
                found.append(Path(parent, name))
            else:
                others += 1
    return Found(sorted(found), others)


def file_identity(path: Path) -> tuple[int, int] | None:
    """Device and inode of a file, the same for all its names (links, capitals); None where there is no file."""
    try:
        status = path.stat()
    except (OSError, ValueError):  # ValueError: a NUL character
        return None
    return status.st_dev, status.st_ino
