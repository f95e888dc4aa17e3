"""``msa inpaint``: nothing heavy is imported before it runs."""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from .common import (
    CommandError,
    add_weights_option,
    demo_note,
    device_name,
    file_identity,
    find_device,
    is_out_of_memory,
    load_generator,
    make_writable,
    one_line,
    require_weights,
)

if TYPE_CHECKING:
    from ..generator import Generator

# ---- arguments ----------------------------------------------------------------------------------------

DETAILS = """\
Fills the holes of images. Valid pixels are kept: bit for bit in lossless formats, and up to
recompression in JPEG and lossy WebP.

IMAGE and MASK are files or folders. In a mask, white (above 127 of 255) is the hole. Folders are
searched with all their subfolders; the mask of sub/a.jpg is sub/a.png (or another suffix) in the
mask folder; a single mask file serves every image. A mask of another size is resized (nearest).
JPEG, PNG, WebP, TIFF and BMP; colour, grey (16 bits too), alpha, palette and CMYK. The result has
the mode, size and format of the image, upright if it came with an EXIF orientation.

OUT is a folder, or, for one image, a file with one of the suffixes above. What is there already
is overwritten, but never an image or mask that is being read."""


def declare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", type=Path, metavar="IMAGE", help="image file, or folder of images")
    parser.add_argument("mask", type=Path, metavar="MASK", help="mask file, or folder of masks; white = hole")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="folder, or file for one image")
    add_weights_option(parser)
    parser.add_argument("--invert-mask", action="store_true", help="black = hole")
    parser.add_argument(
        "--compare", action="store_true", help="also write NAME.compare.png: holes in white | result, side by side"
    )
    parser.add_argument("--device", type=device_name, default="auto", metavar="auto|cpu|cuda[:i]", help="default: auto")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="autocast; default: float32"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress bar and no notes; errors only")


# ---- what is to be done -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """One image to fill."""

    image: Path
    mask: Path
    output: Path
    compare: Path | None


@dataclass(frozen=True)
class Plan:
    jobs: list[Job]
    errors: list[str]  # images that are no job: one line each
    folder: Path  # where everything goes, nested or not


def plan_inpaint(image: Path, mask: Path, output: Path, *, compare: bool = False) -> Plan:
    """Pairs images with masks and outputs; looks at names only, no file is opened.

    Raises:
        CommandError: there is nothing to do, or something would be overwritten that is being read.
    """
    from ..images import FORMATS

    for path in (image, mask):
        if not path.exists():
            raise CommandError(f"{path}: no such file or folder")
    many, one_mask = image.is_dir(), not mask.is_dir()
    if many and not one_mask and image.samefile(mask):
        raise CommandError(f"{image}: images and masks must be in different folders")
    if many:
        inputs = list(_files_below(image, [output, mask], FORMATS))
        if not inputs:
            raise CommandError(f"{image}: no image in this folder (looked for {', '.join(FORMATS)})")
    else:
        inputs = [image]
    root = image if many else image.parent
    as_file = _is_output_file(output, many)
    outputs = {path: output if as_file else output / path.relative_to(root) for path in inputs}
    comparisons = _comparison_paths(list(outputs.values())) if compare else {}

    masks = {} if one_mask else _by_stem(mask, output, FORMATS)
    jobs, errors = [], []
    for path in inputs:
        stem = path.relative_to(root).with_suffix("")
        candidates = [mask] if one_mask else masks.get(stem, [])
        # Two masks of one stem: the one with the image's own suffix, if there is one.
        found = [m for m in candidates if m.suffix == path.suffix] or candidates
        if len(found) != 1:
            problem = "no mask" if not found else f"{len(found)} masks"
            errors.append(f"{path}: {problem} named {stem} in {mask} (any of {', '.join(FORMATS)})")
            continue
        jobs.append(Job(path, found[0], outputs[path], comparisons.get(outputs[path])))
    _refuse_overwriting(jobs)
    return Plan(jobs, errors, output.parent if as_file else output)


def _is_output_file(output: Path, many: bool) -> bool:
    """Whether OUT names a file, and not a folder."""
    from PIL import Image

    from ..images import FORMATS

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


def _files_below(folder: Path, left_out: list[Path], suffixes: dict[str, str]) -> Iterator[Path]:
    """Files with these suffixes, in a stable order, without hidden ones and without the files and folders in left_out
    (unless the search starts in one)."""

    def refuse(error: OSError) -> None:
        raise CommandError(f"{error.filename}: cannot be searched: {error.strerror}")

    skipped = {identity for path in left_out if (identity := file_identity(path)) is not None}
    for parent, folders, names in os.walk(folder, onerror=refuse):

        def wanted(name: str, parent: str = parent) -> bool:
            return not name.startswith(".") and file_identity(Path(parent, name)) not in skipped

        folders[:] = sorted(filter(wanted, folders))
        for name in sorted(names):
            if os.path.splitext(name)[1].lower() in suffixes and wanted(name):
                yield Path(parent, name)


def _by_stem(folder: Path, output: Path, suffixes: dict[str, str]) -> dict[Path, list[Path]]:
    found: dict[Path, list[Path]] = {}
    for path in _files_below(folder, [output], suffixes):
        found.setdefault(path.relative_to(folder).with_suffix(""), []).append(path)
    return found


def _comparison_paths(outputs: list[Path]) -> dict[Path, Path]:
    """a.jpg → a.compare.png; a.jpg.compare.png where that name is taken (by a.png's, or by an image of that name)."""
    short = {path: path.with_name(f"{path.stem}.compare.png") for path in outputs}
    uses = Counter([*outputs, *short.values()])
    return {
        path: name if uses[name] == 1 else path.with_name(f"{path.name}.compare.png") for path, name in short.items()
    }


def _refuse_overwriting(jobs: list[Job]) -> None:
    identities = {file_identity(path): path for job in jobs for path in (job.image, job.mask)}
    for job in jobs:
        for path in filter(None, (job.output, job.compare)):
            identity = file_identity(path)
            if identity is not None and identity in identities:
                raise CommandError(f"{path}: would overwrite the input {identities[identity]}")


# ---- doing it -----------------------------------------------------------------------------------------


def run(arguments: argparse.Namespace) -> int:
    require_weights(arguments.weights)
    plan = plan_inpaint(arguments.image, arguments.mask, arguments.output, compare=arguments.compare)
    make_writable(plan.folder)

    import torch
    from tqdm import tqdm

    from ..images import ImageFileError, read

    if arguments.mask.is_file():
        try:
            read(arguments.mask)  # rather one error now than one per image
        except ImageFileError as error:
            raise CommandError(str(error)) from error

    def say(kind: str, line: object) -> None:
        if kind == "error" or not arguments.quiet:
            tqdm.write(f"msa inpaint: {kind}: {one_line(line)}", file=sys.stderr)

    device = find_device(arguments.device)
    generator = load_generator(arguments.weights, device)
    for note in demo_note(arguments.weights):
        say("note", note)
    for error in plan.errors:
        say("error", error)
    failed = len(plan.errors)
    # disable=None: no bar where stderr is no terminal.
    hidden = True if arguments.quiet or len(plan.jobs) < 2 else None
    for job in tqdm(plan.jobs, desc="inpaint", unit="image", file=sys.stderr, disable=hidden):
        try:
            with torch.autocast(device.type, getattr(torch, arguments.dtype), enabled=arguments.dtype != "float32"):
                for note in _inpaint_file(generator, job, arguments.invert_mask):
                    say("note", note)
            continue
        except ImageFileError as error:
            say("error", error)
        except (ValueError, FloatingPointError) as error:
            say("error", f"{job.image}: {error}")
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            say("error", f"{job.image}: not enough memory on {device}; try a smaller image or another --device")
            if device.type == "cuda":
                torch.cuda.empty_cache()
        failed += 1
    total = len(plan.jobs) + len(plan.errors)
    if failed and total > 1:
        say("error", f"{failed} of {total} images failed")
    return 1 if failed else 0


def _inpaint_file(generator: Generator, job: Job, invert_mask: bool) -> list[str]:
    """Does one job; returns the notes for the user."""
    from ..images import hole_pixels, read, read_mask, side_by_side, write
    from ..inpainting import inpaint

    picture = read(job.image)
    mask, mask_notes = read_mask(job.mask, picture.image.size)
    result = replace(picture, image=inpaint(generator, picture.image, mask, invert_mask=invert_mask))
    notes = picture.notes + mask_notes + write(job.output, result)
    hole = hole_pixels(mask, invert_mask)
    if not hole.any():
        notes.append(f"{job.mask}: no hole in this mask, nothing to fill in {job.image}")
    if job.compare:
        notes += write(job.compare, replace(picture, image=side_by_side(picture.image, result.image, hole), exif=None))
    return notes
