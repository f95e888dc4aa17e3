"""What the commands share: their errors, devices, weights and files."""

from __future__ import annotations

import argparse
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from ..weights import demo_weights

if TYPE_CHECKING:
    import torch

    from ..generator import Generator


class CommandError(Exception):
    """What stops a command as a whole: one line for the user, and the exit code."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


def one_line(message: object) -> str:
    return " ".join(str(message).split())


def add_weights_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--weights",
        type=weights_file,
        default="demo",
        metavar="FILE",
        help="the generator's weights (safetensors); default: demo, a small generator that comes with this package",
    )


def weights_file(text: str) -> Path:
    """The path that an argument means: "demo" is that of the weights in this package (./demo a file of that name)."""
    return demo_weights() if text == "demo" else Path(text)


def require_weights(path: Path) -> None:
    if not path.is_file():
        raise CommandError(f"{path}: no such weights file; 'msa train' writes one, and --weights demo needs none")


def demo_note(path: Path) -> list[str]:
    """What the user of a command that fell back on the demo's weights should know."""
    if path != demo_weights():
        return []
    return ["the demo's weights, trained on rendered facades at 128x128; --weights FILE takes others"]


def device_name(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"must be auto, cpu, cuda or cuda:i, got {text!r}")
    return text


def file_identity(path: Path) -> tuple[int, int] | None:
    """Tells files apart whatever their names (links, capitals); None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def make_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise CommandError(f"{folder}: cannot write there: {error.strerror or error}") from error


def find_device(name: str) -> torch.device:
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            why = "torch finds no GPU" if torch.version.cuda else "this torch is built without CUDA"
            raise CommandError(f"--device {name}: {why}")
        if (device.index or 0) >= torch.cuda.device_count():
            raise CommandError(f"--device {name}: there are only {torch.cuda.device_count()} GPUs, counted from 0")
    return device


def load_generator(path: Path, device: torch.device) -> Generator:
    from ..generator import Generator

    try:
        return Generator.load(path, device)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CommandError(f"{path}: cannot be loaded as weights: {one_line(error)}") from error
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise CommandError(f"{path}: not enough memory on {device} for these weights") from error


def is_out_of_memory(error: BaseException) -> bool:
    """The CPU's allocator, and on any device the compiled operators, raise a RuntimeError that only its text tells."""
    import torch

    said = ("can't allocate memory", "not enough memory", "out of memory", "std::bad_alloc")
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(text in str(error) for text in said)
