"""`msa inpaint` on files and folders: masks, pairing, comparison pictures, progress."""

import sys

import numpy as np
import pytest
from PIL import Image

from ..pictures import RGB, H, W, array, hole_mask, outputs, picture, profile


def test_threshold_and_inversion(run, files):
    image, mask, out = files
    values = np.tile(np.repeat(np.array([127, 128], np.uint8), W // 2), (H, 1))
    Image.fromarray(values).save(mask)
    for arguments, hole in (([], values > 127), (["--invert-mask"], values <= 127)):
        assert run(image, mask, "-o", out, *arguments) == (0, [])
        expected = np.where(hole[..., None], np.uint8(RGB), array(image))
        assert np.array_equal(array(out), expected)


def test_a_mask_of_another_size_is_resized_to_the_nearest_pixel_and_noted(run, files):
    image, mask, out = files
    hole_mask((W // 2, H // 2), left=1).save(mask)
    code, lines = run(image, mask, "-o", out)
    assert code == 0
    assert lines == [f"msa inpaint: note: {mask}: mask of 6x4 pixels resized (nearest) to the image's 12x8"]
    expected = array(image).copy()
    expected[:, :2] = RGB
    assert np.array_equal(array(out), expected)
    assert run(image, mask, "-o", out, "--quiet") == (0, [])
    fine = np.random.default_rng(3).random((3 * H, 3 * W)) < 0.5
    Image.fromarray(fine).save(mask)
    run(image, mask, "-o", out)
    expected = np.where(fine[1::3, 1::3, None], np.uint8(RGB), array(image))  # each cell's middle pixel
    assert np.array_equal(array(out), expected)


def test_masks_all_valid_and_all_hole(run, files):
    image, mask, out = files
    Image.new("L", (W, H), 0).save(mask)
    code, lines = run(image, mask, "-o", out)
    assert code == 0
    assert "no hole in this mask" in lines[0]
    assert np.array_equal(array(out), array(image))
    Image.new("L", (W, H), 255).save(mask)
    assert run(image, mask, "-o", out) == (0, [])
    assert (array(out) == RGB).all()


def hole_width(path):
    return int((array(path).astype(int)[H // 2, :, 0] < 150).sum())


def test_folders_are_paired_by_stem_and_nesting(run, folders):
    source, masks, out = folders
    assert run(source, masks, "-o", out) == (0, [])
    names = ["a.png", "b.jpg", "sub/a.png", "sub/deep/c.d.webp"]
    assert outputs(out) == names
    assert [hole_width(out / name) for name in names] == [1, 3, 5, 7]


def test_one_mask_for_many(run, folders):
    source, masks, out = folders
    assert run(source, masks / "b.bmp", "-o", out) == (0, [])
    assert [hole_width(out / name) for name in outputs(out)] == [3, 3, 3, 3]


def test_one_image_finds_its_mask_in_a_folder(run, folders):
    source, masks, out = folders
    assert run(source / "b.jpg", masks, "-o", out) == (0, [])
    assert hole_width(out / "b.jpg") == 3


def test_one_bad_file_does_not_stop_the_rest(run, folders):
    source, masks, out = folders
    (source / "b.jpg").write_bytes(b"no image at all")
    (masks / "sub/a.bmp").unlink()
    code, lines = run(source, masks, "-o", out)
    assert code == 1
    assert outputs(out) == ["a.png", "sub/deep/c.d.webp"]
    assert len(lines) == 3
    assert f"msa inpaint: error: {source / 'sub/a.png'}: no mask named sub/a in {masks}" in lines[0]
    assert lines[1] == (f"msa inpaint: error: {source / 'b.jpg'}: is not a readable JPEG, PNG, WebP, TIFF or BMP image")
    assert lines[2] == "msa inpaint: error: 2 of 4 images failed"


def test_of_two_masks_with_one_stem_the_images_suffix_decides(run, folders):
    source, masks, out = folders
    hole_mask(left=9).save(masks / "a.png")  # the image's own suffix wins
    hole_mask(left=9).save(masks / "b.tif")  # b.jpg has b.bmp and b.tif: which?
    code, lines = run(source, masks, "-o", out)
    assert code == 1
    assert hole_width(out / "a.png") == 9
    assert "b.jpg: 2 masks named b in" in lines[0]
    assert not (out / "b.jpg").exists()


def test_masks_and_results_inside_the_image_folder_are_no_images(run, folders):
    source, masks, _ = folders
    masks = masks.rename(source / "masks")
    for _ in range(2):  # the second time the results are there
        assert run(source, masks, "-o", source / "out") == (0, [])
    assert len(outputs(source / "out")) == 4
    one_mask = (masks / "a.bmp").rename(source / "mask.bmp")
    assert run(source, one_mask, "-o", source / "again") == (0, [])
    assert "mask.bmp" not in outputs(source / "again")


def test_comparisons(run, folders):
    source, masks, out = folders
    picture().save(source / "b.compare.png")
    hole_mask().save(masks / "b.compare.png")
    assert run(source, masks, "-o", out, "--compare") == (0, [])
    # b.compare.png is the result of an image of that name, so b.jpg's comparison goes by its whole name.
    assert {"a.compare.png", "b.compare.png", "b.jpg.compare.png", "b.compare.compare.png"} <= set(outputs(out))
    left, right = np.split(array(out / "sub/a.compare.png"), 2, axis=1)
    assert left.shape == right.shape == (H, W, 3)
    assert (left[:, :5] == 255).all()
    assert np.array_equal(left[:, 5:], array(source / "sub/a.png")[:, 5:])
    assert np.array_equal(right, array(out / "sub/a.png"))


@pytest.mark.parametrize("mode", ["L", "LA", "P", "I;16", "CMYK", "F", "1"])
def test_comparisons_of_other_modes(run, tmp_path, mode):
    picture(mode).save(tmp_path / "a.tif", icc_profile=profile())
    hole_mask().save(tmp_path / "mask.png")
    assert run(tmp_path / "a.tif", tmp_path / "mask.png", "-o", tmp_path / "out.tif", "--compare") == (0, [])
    assert array(tmp_path / "out.compare.png").shape == (H, 2 * W, 3)


@pytest.mark.parametrize("quiet", [False, True])
def test_a_progress_bar_for_many_on_a_terminal_only(run, folders, monkeypatch, quiet):
    monkeypatch.setattr(type(sys.stderr), "isatty", lambda stream: True, raising=False)
    source, masks, out = folders
    code, lines = run(source, masks, "-o", out, *["--quiet"] * quiet)
    assert code == 0
    assert any("4/4" in line for line in lines) is not quiet
    assert run(source / "a.png", masks, "-o", out) == (0, [])
