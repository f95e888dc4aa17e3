"""Weights that come with the package; README.md beside this file is their model card."""

from pathlib import Path


def demo_weights() -> Path:
    """The file of a small generator, for `msa_model.Generator.load`: trained on rendered building facades and a
    few photographs at 128×128, enough to try everything, not for photographs at large."""
    return Path(__file__).parent / "demo.safetensors"
