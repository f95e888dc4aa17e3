"""``msa inpaint``: fills the holes of images."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from .. import user_files
from ..memory import is_out_of_memory
from .command import Command, CommandError, say
from .files import Job, make_writable, pair_files
from .options import (
    add_device,
    add_invert_mask,
    add_output,
    add_quiet,
    add_weights,
    demo_note,
    file_path,
    find_device,
    load_generator,
    require_weights,
)

if TYPE_CHECKING:
    from ..nn.generator import Generator

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
    """Declares the arguments."""
    parser.add_argument("image", type=file_path, metavar="IMAGE", help="image file, or folder of images")
    parser.add_argument("mask", type=file_path, metavar="MASK", help="mask file, or folder of masks; white = hole")
    add_output(parser, "folder, or file for one image")
    add_weights(parser)
    add_invert_mask(parser)
    parser.add_argument(
        "--compare", action="store_true", help="also write NAME.compare.png: holes in white | result, side by side"
    )
    add_device(parser)
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="autocast; default: float32"
    )
    add_quiet(parser, "no progress bar and no notes; errors only")


def run(arguments: argparse.Namespace) -> int:
    """Fills the images one after another; a bad file does not stop the rest."""
    require_weights(arguments.weights)
    plan = pair_files(arguments.image, arguments.mask, arguments.output, compare=arguments.compare)
    make_writable(plan.folder)

    import torch
    from tqdm import tqdm

    from ..data.image_files import ImageFileError, read

    if not arguments.mask.is_dir() and not user_files.is_own_pipe(arguments.mask):  # a pipe is read only once
        try:
            read(arguments.mask)  # an error now is better than one per image
        except ImageFileError as error:
            raise CommandError(error) from error

    def note(line: str) -> None:
        if not arguments.quiet:
            say("inpaint", "note", line)

    def report(line: object) -> None:
        say("inpaint", "error", line)

    device = find_device(arguments.device)
    generator = load_generator(arguments.weights, device)
    for line in demo_note(arguments.weights):
        note(line)
    for line in plan.errors:
        report(line)
    failed = len(plan.errors)
    # None: no bar if stderr is no terminal.
    hidden = True if arguments.quiet or len(plan.jobs) < 2 else None
    for job in tqdm(plan.jobs, desc="inpaint", unit="image", file=sys.stderr, disable=hidden):
        try:
            with torch.autocast(device.type, getattr(torch, arguments.dtype), enabled=arguments.dtype != "float32"):
                for line in _inpaint_file(generator, job, arguments.invert_mask):
                    note(line)
            continue
        except ImageFileError as error:
            report(error)
        except (ValueError, FloatingPointError) as error:
            report(f"{job.image}: {error}")
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            report(f"{job.image}: not enough memory on {device}; try a smaller image or another --device")
            if device.type == "cuda":
                torch.cuda.empty_cache()
        failed += 1
    total = len(plan.jobs) + len(plan.errors)
    if failed and total > 1:
        report(f"{failed} of {total} images failed")
    return 1 if failed else 0


def _inpaint_file(generator: Generator, job: Job, invert_mask: bool) -> list[str]:
    """Does one job; returns the notes for the user."""
    from PIL import Image

    from ..data.image_files import read, read_hole, write
    from ..data.image_modes import side_by_side
    from ..inpainting import inpaint

    picture = read(job.image)
    hole, mask_notes = read_hole(job.mask, picture.image.size, invert=invert_mask)
    result = replace(picture, image=inpaint(generator, picture.image, Image.fromarray(hole)))
    notes = picture.notes + mask_notes + write(job.output, result)
    if not hole.any():
        notes.append(f"{job.mask}: no hole in this mask, nothing to fill in {job.image}")
    if job.compare:
        notes += write(job.compare, replace(picture, image=side_by_side(picture.image, result.image, hole), exif=None))
    return notes


COMMAND = Command(
    "inpaint",
    "fill the holes of images",
    "msa inpaint photo.jpg mask.png -o filled.jpg",
    run,
    declare,
    DETAILS,
)
