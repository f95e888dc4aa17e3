"""``msa attention-map``: shows where the holes of an image look."""

from __future__ import annotations

import argparse
import io
import json
from typing import TYPE_CHECKING, Any

from .. import user_files
from ..lines import tell
from ..memory import is_out_of_memory
from .command import Command, CommandError, say
from .files import make_writable, overwritten_input
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
    from ..evaluate.attention_maps import StageMap

DETAILS = """\
Shows where the holes of an image look: for each attention stage of the network, every hole cell is
painted in the colour of the place of the background cell that it takes most from (Figs. 8 and 9 of
the paper). Green is the top left of the image, pink the bottom right, yellow the top right and blue
the bottom left; the legend is drawn beside the maps.

In a mask, white (above 127 of 255) is the hole. OUT is a PNG file. --json and --npz write the
maps themselves: per stage the flat index y * width + x of the cell looked at, -1 in the background."""


def declare(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("image", type=file_path, metavar="IMAGE", help="image file")
    parser.add_argument("mask", type=file_path, metavar="MASK", help="mask file; white = hole")
    add_output(parser, "PNG file to write")
    add_weights(parser)
    add_invert_mask(parser)
    parser.add_argument("--overlay", action="store_true", help="maps over the result, not over a faint input")
    parser.add_argument("--json", type=file_path, metavar="FILE", help="also write the maps as JSON")
    parser.add_argument("--npz", type=file_path, metavar="FILE", help="also write the maps as NumPy arrays")
    add_device(parser)
    add_quiet(parser, "errors only")


def run(arguments: argparse.Namespace) -> int:
    """Inpaints the image and writes its maps."""
    for path, suffix in ((arguments.output, ".png"), (arguments.json, ".json"), (arguments.npz, ".npz")):
        if path is not None and path.suffix.lower() != suffix:
            raise CommandError(f"{path}: must be a {suffix} file", 2)
    require_weights(arguments.weights)
    outputs = [path for path in (arguments.output, arguments.json, arguments.npz) if path is not None]
    if overwritten := overwritten_input(outputs, (arguments.image, arguments.mask, arguments.weights)):
        raise CommandError(f"{overwritten[0]}: would overwrite an input")
    for path in outputs:
        make_writable(path.parent)

    import numpy as np
    import torch

    from ..data import image_files
    from ..data.image_modes import to_rgb

    try:
        picture = image_files.read(arguments.image)
        hole, notes = image_files.read_hole(arguments.mask, picture.image.size, invert=arguments.invert_mask)
        colours = to_rgb(picture.image, hole)
    except image_files.ImageFileError as error:
        raise CommandError(error) from error
    except ValueError as error:
        raise CommandError(f"{arguments.image}: {error}") from error
    if not hole.any():
        raise CommandError(f"{arguments.mask}: no hole in this mask, so nothing looks anywhere")
    if hole.all():
        raise CommandError(f"{arguments.mask}: all of this mask is hole, so there is nothing to look at")

    device = find_device(arguments.device)
    generator = load_generator(arguments.weights, device)
    from ..evaluate.attention_maps import attention_maps, sheet

    tensor = torch.from_numpy(np.ascontiguousarray(colours.transpose(2, 0, 1)))[None]
    try:
        filled, stages = attention_maps(generator, tensor, torch.from_numpy(~hole)[None, None])
    except ValueError as error:
        raise CommandError(f"{arguments.weights}: {error}") from error
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise CommandError(f"{arguments.image}: not enough memory on {device}; try a smaller image") from error
    result = filled[0].permute(1, 2, 0).numpy()
    if not np.isfinite(result).all():
        raise CommandError(f"{arguments.weights}: the prediction is not finite")

    shown, result = (np.rint(255 * pixels).astype(np.uint8) for pixels in (colours, result))
    canvas = sheet(shown, hole, result, stages, overlay=arguments.overlay)
    try:
        image_files.write(arguments.output, image_files.Picture(canvas, "PNG"))
        if arguments.json:
            content = json.dumps(_as_json(arguments, hole.shape, stages)) + "\n"
            user_files.replace(arguments.json, content.encode())
        if arguments.npz:
            arrays = {f"level_{s.level}_{name}": getattr(s, name) for s in stages for name in ("index", "hole")}
            packed = io.BytesIO()
            np.savez_compressed(packed, **arrays)
            user_files.replace(arguments.npz, packed.getvalue())
    except image_files.ImageFileError as error:
        raise CommandError(error) from error
    if not arguments.quiet:
        for note in notes + demo_note(arguments.weights):
            say("attention-map", "note", note)
        for stage in stages:
            looks = stage.index >= 0
            print(
                f"level {stage.level}: {stage.index.shape[1]} x {stage.index.shape[0]} cells of {stage.factor} x "
                f"{stage.factor} pixels, {int(stage.hole.sum())} of them hole, which look at "
                f"{len(np.unique(stage.index[looks]))} background cells, on average {_mean_distance(stage):.1f} away"
            )
        tell("written:", ", ".join(map(str, outputs)))
    return 0


def _mean_distance(stage: StageMap) -> float:
    """The mean distance from a hole cell to the cell that it looks at, in cells; NaN if no cell looks anywhere."""
    import numpy as np

    y, x = np.nonzero(stage.index >= 0)
    if not len(y):
        return float("nan")
    there_y, there_x = np.divmod(stage.index[y, x], stage.index.shape[1])
    return float(np.hypot(there_y - y, there_x - x).mean())


def _as_json(arguments: argparse.Namespace, size: tuple[int, ...], stages: list[StageMap]) -> dict[str, Any]:
    return {
        "image": str(arguments.image),
        "mask": str(arguments.mask),
        "weights": str(arguments.weights),
        "height": size[0],
        "width": size[1],
        "stages": [
            {
                "level": stage.level,
                "factor": stage.factor,
                "height": stage.index.shape[0],
                "width": stage.index.shape[1],
                "index": stage.index.tolist(),
                "hole": stage.hole.astype(int).tolist(),
            }
            for stage in stages
        ],
    }


COMMAND = Command(
    "attention-map",
    "show where the holes of an image look (Figs. 8, 9)",
    "msa attention-map photo.jpg mask.png -o map.png",
    run,
    declare,
    DETAILS,
)
