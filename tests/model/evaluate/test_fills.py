"""Classical fills: holes filled, the rest untouched, nothing of the truth seen."""

import numpy as np
import pytest

from msa_model.evaluate.fills import FILLS, composite, mean_colour


@pytest.fixture(params=FILLS)
def fill(request):
    return FILLS[request.param]


def ramp(height=40, width=48):
    y, x = np.mgrid[:height, :width]
    return np.stack([4 * y, 5 * x, 2 * y + 2 * x], axis=2).astype(np.uint8)


def square_hole(height=40, width=48):
    valid = np.ones((height, width), dtype=bool)
    valid[12:22, 15:30] = False
    return valid


def test_valid_pixels_are_kept_and_values_in_holes_are_not_used(fill):
    image, valid = ramp(), square_hole()
    before = image.copy()
    filled = fill(image, valid)
    assert filled.dtype == np.uint8
    assert np.array_equal(filled[valid], image[valid])
    assert np.array_equal(image, before)
    other = np.where(valid[..., None], image, np.uint8(255))
    assert np.array_equal(fill(other, valid), filled)


@pytest.mark.parametrize(("name", "error"), [("telea", 8), ("navier-stokes", 8), ("biharmonic", 1)])
def test_a_ramp_is_continued(name, error):
    image, valid = ramp(), square_hole()
    difference = np.abs(FILLS[name](image, valid).astype(int) - image)[~valid]
    assert difference.max() <= 4 * error
    assert difference.mean() <= error


def test_the_mean_colour_is_that_of_the_valid_pixels():
    image, valid = ramp(), square_hole()
    filled = mean_colour(image, valid)[~valid]
    assert (filled == np.rint(image[valid].mean(axis=0))).all()


def test_no_hole_gives_a_copy(fill):
    image = ramp()
    filled = fill(image, np.ones(image.shape[:2], dtype=bool))
    assert np.array_equal(filled, image)
    assert not np.shares_memory(filled, image)


def test_no_valid_pixel_gives_mid_grey(fill):
    image = ramp()
    assert (fill(image, np.zeros(image.shape[:2], dtype=bool)) == 128).all()


def test_one_valid_pixel(fill):
    image = ramp(16, 16)
    valid = np.zeros((16, 16), dtype=bool)
    valid[3, 5] = True
    assert np.array_equal(fill(image, valid)[3, 5], image[3, 5])


def test_the_same_twice(fill):
    image, valid = ramp(), np.random.default_rng(0).random((40, 48)) < 0.5
    assert np.array_equal(fill(image, valid), fill(image, valid))


@pytest.mark.parametrize(
    ("image", "valid", "said"),
    [
        (ramp().astype(np.float32), square_hole(), "image must be"),
        (ramp()[..., 0], square_hole(), "image must be"),
        (ramp(), square_hole().astype(np.uint8), "mask must be bool"),
        (ramp(), square_hole()[1:], "mask must be bool of shape"),
    ],
)
def test_wrong_arguments_are_named(image, valid, said):
    with pytest.raises(ValueError, match=said):
        mean_colour(image, valid)


def test_composite_rounds_and_clamps():
    image = np.full((1, 4, 3), 7, dtype=np.uint8)
    valid = np.array([[True, False, False, False]])
    prediction = np.array([0, -3.0, 99.6, 300.0]).reshape(1, 4, 1).repeat(3, axis=2)
    assert composite(image, valid, prediction)[0, :, 0].tolist() == [7, 0, 100, 255]
