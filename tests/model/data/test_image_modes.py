"""Image modes: the colours of each, and which pixels of a mask are hole."""

import numpy as np
import pytest
from PIL import Image

from msa_model.data import image_modes

COLOUR = (0.2, 0.4, 0.8)
RGB = (51, 102, 204)  # the same in 8 bits


KEYED = Image.new("RGB", (1, 1), (255, 255, 255))
KEYED.info["transparency"] = (255, 255, 255)


@pytest.mark.parametrize(
    ("image", "seen"),
    [
        (Image.new("1", (1, 1), 1), (1, 1, 1)),
        (Image.new("L", (1, 1), 51), (0.2, 0.2, 0.2)),
        (Image.new("LA", (1, 1), (51, 0)), (0.2, 0.2, 0.2)),
        (Image.new("RGBA", (1, 1), (*RGB, 0)), COLOUR),
        (Image.new("RGBA", (1, 1), (*RGB, 85)).convert("RGBa"), COLOUR),
        (Image.new("LA", (1, 1), (51, 85)).convert("La"), (0.2, 0.2, 0.2)),
        (Image.new("CMYK", (1, 1), (204, 153, 51, 0)), COLOUR),
        (Image.new("I;16", (1, 1), 13107), (0.2, 0.2, 0.2)),
        (Image.new("I;16B", (1, 1), 13107), (0.2, 0.2, 0.2)),
        (Image.new("I", (1, 1), 65535), (1, 1, 1)),
        (Image.new("F", (1, 1), 0.25), (0.25, 0.25, 0.25)),
        (Image.new("RGB", (1, 1), RGB).quantize(2), COLOUR),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else "",
)
def test_colours_of_each_mode(image, seen):
    assert image_modes.to_rgb(image) == pytest.approx(np.array(seen, np.float32).reshape(1, 1, 3), abs=1e-6)


def test_nearest_palette_colour_over_several_pieces():
    rng = np.random.default_rng(0)
    colours, palette = rng.random((70_000, 3), np.float32), rng.random((5, 3), np.float32)
    distances = ((colours[:, None].astype(np.float64) - palette) ** 2).sum(2)
    chosen = image_modes._nearest(colours, palette)
    assert np.allclose(distances[np.arange(70_000), chosen], distances.min(1), atol=1e-6)


@pytest.mark.parametrize(
    ("mask", "hole"),
    [
        (Image.new("1", (1, 1), 1), True),
        (Image.new("I;16", (1, 1), 32768), True),
        (Image.new("I;16", (1, 1), 32767), False),
        (Image.new("RGB", (1, 1), (255, 255, 255)), True),
        (Image.new("RGB", (1, 1), (255, 0, 0)), False),
        (Image.new("RGBA", (1, 1), (255, 255, 255, 255)), True),
        (Image.new("RGBA", (1, 1), (255, 255, 255, 127)), False),
        (Image.new("LA", (1, 1), (255, 0)), False),
        (Image.new("RGB", (1, 1), (255, 255, 255)).quantize(2), True),
        (KEYED, False),
    ],
)
def test_masks_of_other_modes_count_as_white_or_not(mask, hole):
    assert image_modes.hole_pixels(mask).item() is hole
