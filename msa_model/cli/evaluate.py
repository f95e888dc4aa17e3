"""``msa evaluate``: measures weights and classical fills."""

from __future__ import annotations

import argparse
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..lines import printable, tell
from ..memory import is_out_of_memory
from .command import Command, CommandError, say
from .files import make_writable
from .options import (
    add_device,
    add_invert_mask,
    add_output,
    add_quiet,
    file_path,
    find_device,
    load_generator,
    positive,
    require_weights,
    weights_file,
    whole,
)

if TYPE_CHECKING:
    import torch

    from ..evaluate.fills import Fill
    from ..evaluate.measure import Bin
    from ..evaluate.pairs import NumberedPairs

#: The names in `msa_model.evaluate.fills.FILLS`, which are not imported here because that takes time.
METHODS = ("mean-colour", "telea", "navier-stokes", "biharmonic")
DATASETS = ("paris", "celeba", "places2", "synthetic")
_BINS = "1-10 10-20 20-30 30-40 40-50 50-60"

DETAILS = """\
Fills the same holes with trained weights and with classical fills, and measures PSNR, SSIM and mean
l1 of the composites (valid pixels kept, 8 bits), per range of hole ratios as in Table 4 of the paper.

Two protocols: 'standard' (RGB, data range 1, SSIM with the Gaussian window of 11) and 'paper', which
repeats the authors' script: grey images, SSIM with a uniform window of 51, l1 = sum |a-b| / sum (a+b).
That script weighs the channels of a BGR image as if they were RGB, and so does 'paper'. Figures of
one protocol cannot be compared with those of the other.

Every image is measured once per range. Without --masks the holes come from the built-in brush; masks
of a folder are sorted by their own ratio, and those outside all ranges are left out. Biharmonic
solves a linear system per image, about half a second at 256 x 256: --methods can leave it out.

OUT is a folder: evaluation.json, evaluation.csv and evaluation.png go there. Figures (not times)
are the same for the same arguments."""


def declare(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--images", type=file_path, metavar="FOLDER", help="test images, subfolders too")
    source.add_argument("--synthetic", type=positive, metavar="N", help="N rendered facades, none used in training")
    parser.add_argument("--masks", type=file_path, metavar="FOLDER", help="mask files; white = hole (default: brush)")
    add_invert_mask(parser, "black = hole, in mask files")
    parser.add_argument(
        "--weights",
        type=weights_file,
        nargs="+",
        default=[],
        metavar="FILE",
        help="generators' weights (safetensors); demo: those that come with this package",
    )
    parser.add_argument(
        "--methods",
        nargs="*",
        choices=METHODS,
        default=list(METHODS),
        metavar="METHOD",
        help=f"classical fills, any of {', '.join(METHODS)}; none after the option: only the weights (default: all)",
    )
    parser.add_argument(
        "--dataset", choices=DATASETS, help="resize and crop (default: celeba's), and whose Table 4 to show"
    )
    parser.add_argument(
        "--bins",
        type=_bin,
        nargs="+",
        default=[_bin(text) for text in _BINS.split()],
        metavar="LOW-HIGH",
        help=f"ranges of hole ratios, in percent; default: {_BINS}",
    )
    parser.add_argument(
        "--size", type=positive, default=256, metavar="N", help="side of the images in pixels; default: 256"
    )
    parser.add_argument("--count", type=positive, metavar="N", help="at most N images per range")
    parser.add_argument(
        "--protocols", nargs="+", choices=("standard", "paper"), default=["standard", "paper"], help="default: both"
    )
    parser.add_argument(
        "--lpips", type=file_path, metavar="FILE", help="torchvision's AlexNet or VGG-16 weights, for LPIPS"
    )
    parser.add_argument("--fid", type=file_path, metavar="FILE", help="torch-fidelity's Inception weights, for FID")
    parser.add_argument("--seed", type=whole, default=0, help="of the brush; default: 0")
    add_device(parser)
    add_output(parser, "folder for the results")
    add_quiet(parser, "no progress bar and no table")


def _bin(text: str) -> tuple[float, float]:
    """Reads a range of hole ratios in percent: "10-20" → (0.1, 0.2)."""
    low, dash, high = text.removesuffix("%").partition("-")
    try:
        bounds = float(low) / 100, float(high) / 100
    except ValueError:
        bounds = 1.0, 0.0
    if not dash or not 0 <= bounds[0] < bounds[1] <= 1:
        raise argparse.ArgumentTypeError(f"must be LOW-HIGH in percent, 0 <= LOW < HIGH <= 100, got {text!r}")
    return bounds


def run(arguments: argparse.Namespace) -> int:
    """Measures, prints the table and writes the files."""
    _check(arguments)
    make_writable(arguments.output)
    try:
        return _measure(arguments)
    except ModuleNotFoundError as error:
        if error.name == "torch_fidelity":
            raise CommandError(f"--fid {arguments.fid}: {error}") from error
        raise


def _check(arguments: argparse.Namespace) -> None:
    """Refuses whatever can be refused before anything is loaded."""
    from ..evaluate.metrics import SMALLEST_SIDE

    if not arguments.weights and not arguments.methods:
        raise CommandError("nothing to measure: give --weights FILE (or demo) or --methods", 2)
    for protocol in arguments.protocols:
        if arguments.size < SMALLEST_SIDE[protocol]:
            window = SMALLEST_SIDE[protocol]
            raise CommandError(
                f"--size {arguments.size}: protocol '{protocol}' has an SSIM window of {window}x{window} pixels, which "
                f"does not fit into the images; use --size {window} or more"
                + (", or --protocols standard" if protocol == "paper" else ""),
                2,
            )
    if arguments.synthetic and arguments.dataset not in (None, "synthetic"):
        raise CommandError(f"--dataset {arguments.dataset} goes with --images, not with --synthetic", 2)
    if arguments.images and arguments.dataset == "synthetic":
        raise CommandError("--dataset synthetic goes with --synthetic N, not with --images", 2)
    for folder, what in ((arguments.images, "images"), (arguments.masks, "masks")):
        if folder is not None and not folder.is_dir():
            raise CommandError(f"{folder}: no such folder of {what}")
    for path in arguments.weights:
        require_weights(path)
    for option in ("lpips", "fid"):
        path = getattr(arguments, option)
        if path is not None:
            require_weights(path, f"--{option} ", "nothing is downloaded")


def _measure(arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    from ..data.image_files import ImageFileError
    from ..evaluate import report
    from ..evaluate.measure import bin_name, evaluate_bin

    device = find_device(arguments.device)
    methods = _methods(arguments, device)
    lpips, inception = _learned(arguments, device)
    bins = list(dict.fromkeys(arguments.bins))
    inputs = _pairs(arguments, bins)
    protocols = list(dict.fromkeys(arguments.protocols))
    rows, empty = [], []
    total = sum(inputs.count(bin_) for bin_ in bins)
    with tqdm(total=total, desc="evaluate", unit="image", file=sys.stderr, disable=arguments.quiet or None) as bar:
        for bin_ in bins:
            try:
                found = evaluate_bin(
                    methods,
                    bin_,
                    inputs.pairs(bin_),
                    protocols=protocols,
                    lpips=lpips,
                    inception=inception,
                    tick=bar.update,
                )
            except (ValueError, FloatingPointError, ImageFileError) as error:
                raise CommandError(f"holes of {bin_name(*bin_)}: {error}") from error
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                raise CommandError(f"not enough memory on {device}; try a smaller --size") from error
            rows += found
            if not found:
                empty.append(bin_)
    if not rows:
        for problem in inputs.problems:
            say("evaluate", "error", problem)
        raise CommandError(f"no image could be measured{'' if inputs.problems else ': no mask in any range'}")
    facts = _facts(arguments, device)
    dataset = arguments.dataset
    paths = report.write(arguments.output, rows, protocols, facts, dataset)
    if not arguments.quiet:
        print(report.table(rows, protocols, dataset))
        for bin_ in empty:
            say("evaluate", "note", f"no mask with holes of {bin_name(*bin_)}")
        for note in inputs.notes:
            say("evaluate", "note", note)
        tell("written:", ", ".join(map(str, paths)))
    for problem in inputs.problems:
        say("evaluate", "error", problem)
    return 1 if inputs.problems else 0


def _methods(arguments: argparse.Namespace, device: torch.device) -> dict[str, Fill]:
    """Collects the fills: the classical ones, then the weights under their file's name, or their path if two agree."""
    from ..evaluate.fills import FILLS
    from ..evaluate.measure import network_fill

    methods = {name: FILLS[name] for name in METHODS if name in arguments.methods}
    for path in arguments.weights:
        names = [printable(name) for name in (path.stem, path.with_suffix(""), path)]
        taken = {*methods, *(printable(other.stem) for other in arguments.weights if other != path)}
        name = next((name for name in names if name not in taken), None)
        if name is None:
            raise CommandError(f"{path}: these weights are given twice", 2)
        methods[name] = network_fill(load_generator(path, device))
    return methods


def _learned(arguments: argparse.Namespace, device: torch.device) -> tuple[Any, Any]:
    """Loads the networks of LPIPS and of FID, where they are asked for."""
    if arguments.lpips is None and arguments.fid is None:
        return None, None
    from ..evaluate.learned_metrics import Lpips, load_inception

    option = "lpips"
    try:
        lpips = None if arguments.lpips is None else Lpips(arguments.lpips).to(device)
        option = "fid"
        return lpips, None if arguments.fid is None else load_inception(arguments.fid).to(device)
    except (OSError, ValueError) as error:
        raise CommandError(f"--{option} {getattr(arguments, option)}: {error}") from error


def _pairs(arguments: argparse.Namespace, bins: list[Bin]) -> NumberedPairs:
    from ..data.image_sources import FIRST_HELD_OUT_FACADE, Facades, ImageFolder, ImageSource
    from ..data.mask_sources import BrushMasks, MaskFolder, MaskSource
    from ..evaluate.pairs import NumberedPairs

    def brush(bin_: Bin) -> MaskSource:
        return BrushMasks(bin_, arguments.seed)

    size = arguments.size
    images: ImageSource
    try:
        if arguments.synthetic:
            images = Facades(size, arguments.synthetic, FIRST_HELD_OUT_FACADE)
        else:
            # Without a data set the shorter side becomes the size, and the middle is kept, as for celeba.
            images = ImageFolder(arguments.images, size, arguments.dataset or "celeba")
        masks = MaskFolder(arguments.masks, arguments.invert_mask) if arguments.masks else brush
        return NumberedPairs(images, masks, bins, size=size, limit=arguments.count)
    except ValueError as error:
        raise CommandError(error) from error


def _facts(arguments: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Lists arguments, device and versions for the JSON file."""
    from importlib.metadata import distributions

    import torch

    packages = ("torch", "torchmetrics", "scikit-image", "opencv-python-headless", "numpy")
    given = {name: value for name, value in vars(arguments).items() if name not in ("command", "quiet")}

    def plain(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [plain(entry) for entry in value]
        return str(value) if isinstance(value, Path) else value

    return {
        "arguments": {name: plain(value) for name, value in given.items()},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "versions": {d.name: d.version for d in distributions() if d.name in packages},
    }


COMMAND = Command(
    "evaluate",
    "measure weights and classical fills (Table 4)",
    "msa evaluate --images photos --masks masks --weights weights.safetensors -o evaluation",
    run,
    declare,
    DETAILS,
)
