"""Weights that come with the package; README.md beside this file is their model card."""

from pathlib import Path


def demo_weights() -> Path:
    """Returns the file of a small generator, for `msa_model.Generator.load`.

    It was trained on rendered building facades and a few photographs at 128×128. That is enough to try everything; it
    is not meant for photographs in general.
    """
    return Path(__file__).parent / "demo.safetensors"
