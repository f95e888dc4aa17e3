"""Sources of masks: the brush, and folders of mask files."""

import itertools

import numpy as np
import pytest

from msa_model import data as d

from .files import rng, save


@pytest.mark.parametrize("ratio", d.RATIO_BINS)
def test_brush_masks_hit_their_bin_and_fill_it(ratio):
    low, high = ratio
    masks = [d.BrushMasks(ratio).load(None, rng(i), 96, 128) for i in range(40)]
    assert all(mask.shape == (96, 128) and mask.dtype == bool for mask in masks)
    shares = np.array([1 - mask.mean() for mask in masks])
    assert ((shares > low) & (shares <= high)).all()
    assert abs(shares.mean() - (low + high) / 2) < 0.25 * (high - low)  # not all of them at its lower end
    assert len({mask.tobytes() for mask in masks}) == 40


def test_numbered_brush_masks_are_fixed():
    masks = d.BrushMasks((0.2, 0.3))
    first, second = (masks.load(i, None, 64, 64) for i in (0, 1))
    assert np.array_equal(first, masks.load(0, None, 64, 64))
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, d.BrushMasks((0.2, 0.3), seed=1).load(0, None, 64, 64))
    for size, ratio in itertools.product((2, 4, 8), ((0, 1), (0.0, 0.5), (0.5, 1.0))):
        mask = d.BrushMasks(ratio).load(7, None, size, size)
        assert mask.any()
        assert not mask.all()


def test_white_is_the_hole_unless_inverted(corner):
    mask = d.MaskFolder(corner).load(0, None, 8, 8)
    assert mask.dtype == bool
    assert not mask[:4, :4].any()
    assert mask.sum() == 48
    assert np.array_equal(d.MaskFolder(corner, invert=True).load(0, None, 8, 8), ~mask)


def test_drawn_masks_come_in_four_rotations_numbered_ones_in_none(corner):
    source = d.MaskFolder(corner)
    upright = source.load(0, None, 8, 8)
    drawn = [source.load(None, rng(i), 8, 8) for i in range(80)]
    counts = [sum(np.array_equal(mask, np.rot90(upright, turns)) for mask in drawn) for turns in range(4)]
    assert sum(counts) == 80
    assert min(counts) > 8
    assert np.array_equal(source.load(5, rng(1), 8, 8), upright)  # over again past the last file
    for height, width in ((16, 8), (6, 20)):  # resized to the nearest pixel, turned or not
        for i in range(12):
            mask = source.load(None, rng(i), height, width)
            assert mask.shape == (height, width)
            assert mask.sum() == 0.75 * height * width
            assert {mask[0, 0], mask[0, -1], mask[-1, 0], mask[-1, -1]} == {False, True}


def test_mask_files_of_a_ratio_are_found_by_measuring(tmp_path, caplog):
    for percent in range(0, 100, 5):
        pixels = np.zeros((20, 100), np.uint8)
        pixels[:, :percent] = 255
        save(tmp_path / f"{percent:02}.png", pixels)
    (tmp_path / "broken.png").write_bytes(b"")
    source = d.MaskFolder(tmp_path, ratio=(0.1, 0.2))
    assert [path.stem for path in source.paths] == ["15", "20"]  # above the lower bound, up to the upper
    assert [path.stem for path in d.MaskFolder(tmp_path, True, (0.1, 0.2)).paths] == ["80", "85"]
    assert "broken.png" in caplog.text
    with pytest.raises(ValueError, match=r"none of the 21 masks has a hole ratio in \(0.96, 1\]; 1 cannot be read"):
        d.MaskFolder(tmp_path, ratio=(0.96, 1))
