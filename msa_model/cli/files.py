"""Pairs image files with mask files by name, decides where results go, and protects inputs from being overwritten."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from ..data.folders import file_identity, files_below
from .command import CommandError


@dataclass(frozen=True)
class Job:
    """One image to fill."""

    image: Path
    mask: Path
    output: Path
    compare: Path | None


@dataclass(frozen=True)
class Plan:
    """The images to fill.

    Args:
        jobs: the images that have a mask.
        errors: one line for each image that has no mask, or more than one.
        folder: the folder of all outputs; they may lie in subfolders of it.
    """

    jobs: list[Job]
    errors: list[str]
    folder: Path


def pair_files(image: Path, mask: Path, output: Path, *, compare: bool = False) -> Plan:
    """Pairs images with masks and outputs. Looks at names only and opens no file.

    The mask of ``sub/a.jpg`` is ``sub/a.png`` (or another suffix) in the mask folder.

    Args:
        image: a file or a folder.
        mask: a file for all images, or a folder.
        output: a folder or, for one image, a file.
        compare: whether there are comparison pictures too.

    Raises:
        CommandError: there is nothing to do, or an input would be overwritten.
    """
    from ..data.image_files import FORMATS

    for path in (image, mask):
        if not path.exists():
            raise CommandError(f"{path}: no such file or folder")
    many, one_mask = image.is_dir(), not mask.is_dir()
    if many and not one_mask and image.samefile(mask):
        raise CommandError(f"{image}: images and masks must be in different folders")
    if many:
        inputs = _files_below(image, [output, mask], FORMATS)
        if not inputs:
            raise CommandError(f"{image}: no image in this folder (looked for {', '.join(FORMATS)})")
    else:
        inputs = [image]
    root = image if many else image.parent
    as_file = _is_output_file(output, many)
    outputs = {path: output if as_file else output / path.relative_to(root) for path in inputs}
    comparisons = _comparison_paths(list(outputs.values())) if compare else {}

    masks: dict[Path, list[Path]] = {}  # path without suffix, relative to the folder -> masks
    for path in [] if one_mask else _files_below(mask, [output], FORMATS):
        masks.setdefault(path.relative_to(mask).with_suffix(""), []).append(path)
    jobs, errors = [], []
    for path in inputs:
        stem = path.relative_to(root).with_suffix("")
        candidates = [mask] if one_mask else masks.get(stem, [])
        # Of several masks the one with the image's own suffix is meant, if there is one.
        found = [m for m in candidates if m.suffix == path.suffix] or candidates
        if len(found) != 1:
            problem = "no mask" if not found else f"{len(found)} masks"
            errors.append(f"{path}: {problem} named {stem} in {mask} (any of {', '.join(FORMATS)})")
            continue
        jobs.append(Job(path, found[0], outputs[path], comparisons.get(outputs[path])))
    overwritten = overwritten_input(
        [path for job in jobs for path in (job.output, job.compare) if path is not None],
        [path for job in jobs for path in (job.image, job.mask)],
    )
    if overwritten is not None:
        raise CommandError(f"{overwritten[0]}: would overwrite the input {overwritten[1]}")
    return Plan(jobs, errors, output.parent if as_file else output)


def overwritten_input(outputs: Iterable[Path], inputs: Iterable[Path]) -> tuple[Path, Path] | None:
    """Finds an output that is the same file as an input, whatever their names; returns both."""
    identities = {identity: path for path in inputs if (identity := file_identity(path)) is not None}
    for path in outputs:
        identity = file_identity(path)
        if identity is not None and identity in identities:
            return path, identities[identity]
    return None


def make_writable(folder: Path) -> None:
    """Makes a folder and tries to write into it.

    Raises:
        CommandError: that fails.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise CommandError(f"{folder}: cannot write there: {error.strerror or error}") from error


def _is_output_file(output: Path, many: bool) -> bool:
    """Whether OUT names a file, and not a folder."""
    from PIL import Image

    from ..data.image_files import FORMATS

    if output.is_dir():
        return False
    suffix = output.suffix.lower()
    known = suffix in FORMATS
    if many and (known or output.exists()):
        raise CommandError(f"{output}: OUT must be a folder for a folder of images")
    if not known and suffix in Image.registered_extensions():
        raise CommandError(f"{output}: cannot write this format, only {', '.join(FORMATS)}")
    if not known and output.exists():
        raise CommandError(f"{output}: is neither a folder nor a file named {', '.join(FORMATS)}")
    return known


def _files_below(folder: Path, skip: list[Path], suffixes: Collection[str]) -> list[Path]:
    try:
        return files_below(folder, suffixes, skip=skip).paths
    except OSError as error:
        raise CommandError(f"{error.filename}: cannot be searched: {error.strerror}") from error


def _comparison_paths(outputs: list[Path]) -> dict[Path, Path]:
    """a.jpg → a.compare.png; a.jpg.compare.png if another output has that name."""
    short = {path: path.with_name(f"{path.stem}.compare.png") for path in outputs}
    uses = Counter([*outputs, *short.values()])
    return {
        path: name if uses[name] == 1 else path.with_name(f"{path.name}.compare.png") for path, name in short.items()
    }
