"""Which mask an image of an evaluation gets."""

import numpy as np
import pytest

from msa_model.data.image_files import ImageFileError
from msa_model.evaluate.pairs import NumberedPairs

SIZE = 64


def noise(seed=0, size=SIZE):
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def hole(rows, size=SIZE):
    """The top rows are hole."""
    valid = np.ones((size, size), dtype=bool)
    valid[:rows] = False
    return valid


class Images:
    def __init__(self, count, broken=()):
        self.count, self.broken = count, broken

    def __len__(self):
        return self.count

    def load(self, index, rng=None):
        if index in self.broken:
            raise ImageFileError(f"image {index}: cannot be read")
        return noise(index)


class Masks:
    """Mask i has `rows[i]` rows of hole."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def load(self, index, rng=None, height=SIZE, width=SIZE):
        return hole(self.rows[index])


def test_masks_belong_to_the_bin_of_their_ratio_and_are_used_over_again():
    bins = [(0.0, 0.25), (0.25, 0.5), (0.75, 1.0)]
    inputs = NumberedPairs(Images(3), Masks([16, 17, 0, 32, 48, 5]), bins, size=SIZE)
    rows = {bin_: [int((~valid[:, 0]).sum()) for _, valid in inputs.pairs(bin_)] for bin_ in bins}
    assert rows == {(0.0, 0.25): [16, 5, 16], (0.25, 0.5): [17, 32, 17], (0.75, 1.0): []}  # (low, high]
    assert [inputs.count(bin_) for bin_ in bins] == [3, 3, 0]
    assert inputs.notes == [
        "2 of 6 masks left out: their holes are in none of the ranges",
        "holes of 0-25%: 2 masks for 3 images, used over again",
        "holes of 25-50%: 2 masks for 3 images, used over again",
    ]


def test_an_unreadable_image_is_left_out_everywhere_and_named_once():
    bins = [(0.0, 0.25), (0.25, 0.5)]
    inputs = NumberedPairs(Images(3, broken=[1]), Masks([10, 20, 11, 21, 12, 22]), bins, size=SIZE)
    for bin_, rows in zip(bins, ([10, 12], [20, 22]), strict=True):
        found = list(inputs.pairs(bin_))
        assert [int((~valid[:, 0]).sum()) for _, valid in found] == rows
        assert [np.array_equal(image, noise(i)) for (image, _), i in zip(found, (0, 2), strict=True)] == [True, True]
    assert inputs.problems == ["image 1: cannot be read"]


def test_no_mask_in_any_bin_is_an_error():
    with pytest.raises(ValueError, match="none of the 2 masks has a share of hole pixels in any of the ranges"):
        NumberedPairs(Images(3), Masks([0, 64]), [(0.1, 0.2)], size=SIZE)
