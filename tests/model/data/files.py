"""Image files for the tests of data sources."""

import numpy as np
from PIL import Image

from msa_model.data.sampling import random_stream


def rng(*key):
    return random_stream(0, 9, *key)


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path, **options)
    return path


def flat(value, height=40, width=40):
    return np.full((height, width, 3), value)


def ramp(height, width):
    """Red tells the column, green the row, in shares of the extent."""
    red, green = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return np.stack([red, green, np.zeros_like(red)], -1)


def damaged_files(folder):
    """Three files no reader can read: cut off, empty, and text under a picture's name."""
    whole = save(folder / "cut.jpg", np.random.default_rng(0).integers(0, 256, (64, 64, 3)))
    whole.write_bytes(whole.read_bytes()[:400])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_text("not a picture")
    return {"cut.jpg", "empty.png", "text.png"}
