"""Folders of images and masks."""

import numpy as np
import pytest

from .files import flat, save


@pytest.fixture
def photos(tmp_path):
    """Twelve PNGs, each of one grey."""
    for number in range(12):
        save(tmp_path / "photos" / f"{number:02}.png", flat(20 * number))
    return tmp_path / "photos"


@pytest.fixture
def corner(tmp_path):
    """A folder with one mask, white in its upper left quarter."""
    pixels = np.zeros((8, 8), np.uint8)
    pixels[:4, :4] = 255
    save(tmp_path / "masks" / "a.png", pixels)
    return tmp_path / "masks"
