"""Options that several commands have, and what their values stand for."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from .. import devices, user_files
from ..memory import is_out_of_memory
from ..weights import demo_weights
from .command import CommandError

if TYPE_CHECKING:
    import torch

    from ..nn.generator import Generator

_LOG = logging.getLogger("msa_model.cli")

# ---- declaring them ------------------------------------------------------------------------------------------------


def add_output(parser: argparse.ArgumentParser, help_: str) -> None:
    """Adds ``-o OUT``."""
    parser.add_argument("-o", "--output", type=file_path, required=True, metavar="OUT", help=help_)


def add_weights(parser: argparse.ArgumentParser) -> None:
    """Adds ``--weights FILE``, by default the weights that come with the package."""
    parser.add_argument(
        "--weights",
        type=weights_file,
        default="demo",
        metavar="FILE",
        help="the generator's weights (safetensors); default: demo, a small generator that comes with this package",
    )


def add_invert_mask(parser: argparse.ArgumentParser, help_: str = "black = hole") -> None:
    """Adds ``--invert-mask``."""
    parser.add_argument("--invert-mask", action="store_true", help=help_)


def add_device(parser: argparse.ArgumentParser) -> None:
    """Adds ``--device``; `find_device` turns its value into a device."""
    parser.add_argument("--device", type=device_name, default="auto", metavar="auto|cpu|cuda[:i]", help="default: auto")


def add_quiet(parser: argparse.ArgumentParser, help_: str) -> None:
    """Adds ``-q``."""
    parser.add_argument("-q", "--quiet", action="store_true", help=help_)


# ---- types of values -----------------------------------------------------------------------------------------------


def file_path(text: str) -> Path:
    """Reads a path. An empty one is refused, as it would stand for the current folder."""
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError(f"must be a path, got {text!r}")
    return Path(text)


def weights_file(text: str) -> Path:
    """Reads a path; "demo" is the path of the weights in this package (./demo is a file of that name)."""
    return demo_weights() if text == "demo" else file_path(text)


def device_name(text: str) -> str:
    """Reads the name of a device, without asking torch for it."""
    try:
        return devices.device_name(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def positive(text: str) -> int:
    """Reads a whole number of at least 1."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def whole(text: str) -> int:
    """Reads a whole number of at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 0, got {text!r}")
    return int(text)


# ---- what the values stand for -------------------------------------------------------------------------------------


def require_weights(
    path: Path, option: str = "", advice: str = "'msa train' writes one, and --weights demo needs none"
) -> None:
    """Raises CommandError if there is no file of weights; the message has `option` before the path."""
    try:
        user_files.check(path)
    except FileNotFoundError:
        raise CommandError(f"{option}{path}: no such weights file; {advice}") from None
    except OSError as error:
        raise CommandError(f"{option}{path}: cannot be loaded as weights: {error.strerror}") from None


def demo_note(path: Path) -> list[str]:
    """Returns a note for the user if the weights are those that come with the package."""
    if path != demo_weights():
        return []
    return ["the demo's weights, trained on rendered facades at 128x128; --weights FILE takes others"]


def find_device(name: str) -> torch.device:
    """Returns the device of a `device_name`.

    Raises:
        CommandError: there is no such device.
    """
    try:
        return devices.find_device(name)
    except ValueError as error:
        raise CommandError(f"--device {name}: {error}") from error


def load_generator(path: Path, device: torch.device) -> Generator:
    """Loads a generator.

    The backend that the file names is a preference. Where it cannot run on this device, the default takes its place,
    which is logged.

    Raises:
        CommandError: the file holds no weights of a generator, or memory runs out.
    """
    from ..nn.generator import Generator

    try:
        generator = Generator.load(path, device)
        if reasons := _reasons_against(generator, device):
            message = "%s: asks for backend %r, which cannot run here (%s); 'auto' takes its place"
            _LOG.warning(message, path, generator.config.backend, "; ".join(reasons))
            generator = Generator.load(path, device, backend="auto")
        return generator
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CommandError(f"{path}: cannot be loaded as weights: {error}") from error
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise CommandError(f"{path}: not enough memory on {device} for these weights") from error


def _reasons_against(generator: Generator, device: torch.device) -> list[str]:
    """Says why the backend of a generator cannot run on a device; an empty list where it can."""
    import torch

    from msa_ops import not_supported_reasons

    tensor = torch.empty(0, device=device)
    operators = ("partial_conv2d", "partial_conv2d_upcat", *["shift_attention"] * bool(generator.attention))
    reasons = [not_supported_reasons(name, generator.config.backend, tensor) for name in operators]
    return list(dict.fromkeys(reason for found in reasons for reason in found))
