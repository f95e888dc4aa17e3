"""The command line on real files: formats, metadata, pairing, and everything that can be wrong with a user's files."""

import errno
import functools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageCms

import msa_model
from msa_model import cli, images
from msa_model.commands import inpaint as inpaint_command

RGB, GREY = (51, 102, 204), 98  # what OneColour predicts
ORIENTATION = ExifTags.Base.Orientation


@pytest.fixture
def generator(one_colour):
    return one_colour()


@pytest.fixture
def run(generator, monkeypatch, tmp_path, capsys):
    """Runs `msa inpaint` in this process with a generator that can be foretold; returns exit code and stderr lines."""
    weights = tmp_path / "weights.safetensors"
    weights.touch()
    monkeypatch.setattr(inpaint_command, "load_generator", lambda path, device: generator)

    def inpaint(*arguments):
        code = cli.main(["inpaint", *map(str, arguments), "--weights", str(weights), "--device", "cpu"])
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "Traceback" not in captured.err
        return code, captured.err.splitlines()

    return inpaint


W, H = 12, 8


def picture(mode="RGB", size=(W, H)):
    rng = np.random.default_rng(0)
    if mode == "1":
        return Image.fromarray(rng.random((size[1], size[0])) < 0.5)
    if mode == "F":
        return Image.fromarray(rng.random((size[1], size[0]), dtype=np.float32))
    if mode == "P":
        image = Image.frombytes("P", size, rng.integers(0, 4, size[0] * size[1], dtype=np.uint8).tobytes())
        image.putpalette([255, 0, 0, 60, 100, 200, 0, 0, 0, 250, 250, 250])
        return image
    count = len(Image.new(mode, size).tobytes())
    return Image.frombytes(mode, size, rng.integers(0, 256, count, dtype=np.uint8).tobytes())


def hole_mask(size=(W, H), left=None):
    """The left half (or `left` columns) is hole."""
    mask = Image.new("L", size, 0)
    mask.paste(255, (0, 0, size[0] // 2 if left is None else left, size[1]))
    return mask


@pytest.fixture
def files(tmp_path):
    """One image and its mask."""
    picture().save(tmp_path / "image.png")
    hole_mask().save(tmp_path / "mask.png")
    return tmp_path / "image.png", tmp_path / "mask.png", tmp_path / "out.png"


def array(path):
    with Image.open(path) as image:
        return np.asarray(image)


def left_behind(folder):
    return [path.name for path in Path(folder).rglob("*") if path.name.startswith(".") or path.suffix == ".part"]


# ---- formats and modes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "mode"),
    [(".png", m) for m in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")]
    + [(".tif", m) for m in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I;16B", "F")]
    + [(".bmp", m) for m in ("1", "L", "P", "RGB")],
)
def test_lossless_formats_keep_mode_and_valid_pixels(run, tmp_path, suffix, mode):
    source, out = tmp_path / f"a{suffix}", tmp_path / f"out{suffix}"
    picture(mode).save(source)
    hole_mask().save(tmp_path / "mask.png")
    assert run(source, tmp_path / "mask.png", "-o", out) == (0, [])
    with Image.open(source) as before, Image.open(out) as after:
        assert (after.format, after.mode, after.size) == (before.format, before.mode, before.size)
        if mode == "P":
            before, after = before.convert("RGB"), after.convert("RGB")
        before, after = np.asarray(before), np.asarray(after)
    assert np.array_equal(before[:, W // 2 :], after[:, W // 2 :])
    assert not np.array_equal(before[:, : W // 2], after[:, : W // 2])
    if mode in ("LA", "RGBA"):
        assert np.array_equal(before[..., -1], after[..., -1])
    if mode in ("RGB", "RGBA"):
        assert (after[:, : W // 2, :3] == RGB).all()


@pytest.mark.parametrize(("mode", "filled"), [("RGB", RGB), ("L", GREY), ("CMYK", (204, 153, 51, 0))])
def test_jpeg_keeps_its_mode_and_is_close(run, tmp_path, mode, filled):
    Image.new(mode, (32, 16), 200 if mode == "L" else (200, 90, 40, 10)[: len(mode)]).save(tmp_path / "a.jpg")
    hole_mask((32, 16)).save(tmp_path / "mask.png")
    assert run(tmp_path / "a.jpg", tmp_path / "mask.png", "-o", tmp_path / "out") == (0, [])
    with Image.open(tmp_path / "out/a.jpg") as after:
        assert (after.format, after.mode) == ("JPEG", mode)
        values = np.asarray(after).astype(int)
    # Not the columns at the seam: the source's chroma is subsampled, so it bleeds over.
    assert abs(values[:, :14] - filled).max() <= 2
    assert abs(values[:, 18:] - array(tmp_path / "a.jpg")[:, 18:]).max() <= 2


@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_jpeg_is_written_at_quality_95_with_the_subsampling_it_came_with(run, tmp_path, subsampling):
    from PIL.JpegImagePlugin import get_sampling

    picture(size=(32, 32)).save(tmp_path / "a.jpg", quality=60, subsampling=subsampling)
    picture(size=(32, 32)).save(tmp_path / "reference.jpg", quality=95)
    hole_mask((32, 32)).save(tmp_path / "mask.png")
    run(tmp_path / "a.jpg", tmp_path / "mask.png", "-o", tmp_path / "out.jpg")
    with Image.open(tmp_path / "out.jpg") as after, Image.open(tmp_path / "reference.jpg") as reference:
        assert get_sampling(after) == subsampling
        assert after.quantization == reference.quantization


@pytest.mark.parametrize("lossless", [True, False])
def test_webp_stays_lossless_if_it_was(run, tmp_path, lossless):
    picture().save(tmp_path / "a.webp", lossless=lossless, icc_profile=profile())
    hole_mask().save(tmp_path / "mask.png")
    assert run(tmp_path / "a.webp", tmp_path / "mask.png", "-o", tmp_path / "out.webp") == (0, [])
    same = np.array_equal(array(tmp_path / "a.webp")[:, W // 2 :], array(tmp_path / "out.webp")[:, W // 2 :])
    assert same is lossless


@pytest.mark.parametrize("compression", ["tiff_lzw", "packbits", "tiff_adobe_deflate", "raw"])
def test_tiff_keeps_a_lossless_compression(run, tmp_path, compression):
    picture().save(tmp_path / "a.tif", compression=compression)
    hole_mask().save(tmp_path / "mask.png")
    run(tmp_path / "a.tif", tmp_path / "mask.png", "-o", tmp_path / "out.tif")
    with Image.open(tmp_path / "out.tif") as after:
        assert after.info["compression"] == compression


@pytest.mark.parametrize(
    ("mode", "suffix", "written", "said"),
    [
        ("RGBA", ".jpg", "RGB", "written as RGB, as JPEG has no RGBA"),
        ("LA", ".jpg", "L", "written as L, as JPEG has no LA"),
        ("I;16", ".jpg", "L", "written as L, as JPEG has no I;16"),
        ("I;16", ".webp", "RGB", "written as RGB, as WEBP has no I;16"),
        ("CMYK", ".png", "RGB", "written as RGB, as PNG has no CMYK"),
        ("F", ".png", "I;16", "written as I;16, as PNG has no F"),
        ("I;16B", ".png", "I;16", "written as I;16, as PNG has no I;16B"),
        ("P", ".jpg", "RGB", "written as RGB, as JPEG has no P"),
        ("LA", ".webp", "RGBA", "written as RGBA, as WEBP has no LA"),
    ],
)
def test_another_output_format_converts_and_says_so(run, tmp_path, mode, suffix, written, said):
    picture(mode).save(tmp_path / "a.tif")
    hole_mask().save(tmp_path / "mask.png")
    code, lines = run(tmp_path / "a.tif", tmp_path / "mask.png", "-o", tmp_path / f"out{suffix}")
    assert code == 0
    assert len(lines) == 1
    assert said in lines[0]
    with Image.open(tmp_path / f"out{suffix}") as after:
        assert after.mode == written
        if (mode, suffix) == ("I;16B", ".png"):
            assert np.array_equal(np.asarray(after)[:, W // 2 :], array(tmp_path / "a.tif")[:, W // 2 :])


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".tif"])
def test_transparency_of_a_palette_survives_where_the_format_has_alpha(run, tmp_path, suffix):
    picture("P").save(tmp_path / "a.png", transparency=0)
    hole_mask().save(tmp_path / "mask.png")
    out = tmp_path / f"out{suffix}"
    code, lines = run(tmp_path / "a.png", tmp_path / "mask.png", "-o", out)
    assert code == 0
    assert len(lines) == 1
    if suffix != ".jpg":
        assert np.array_equal(array(out)[..., 3], np.where(array(tmp_path / "a.png") == 0, 0, 255))


def test_a_colour_key_becomes_alpha(run, tmp_path):
    """Otherwise a transparent pixel that is filled would turn opaque."""
    image = Image.new("RGB", (W, H), (1, 2, 3))
    image.paste((9, 9, 9), (0, 0, W, 2))
    image.save(tmp_path / "a.png", transparency=(9, 9, 9))
    hole_mask().save(tmp_path / "mask.png")
    assert run(tmp_path / "a.png", tmp_path / "mask.png", "-o", tmp_path / "out.png") == (0, [])
    result = array(tmp_path / "out.png")
    assert (result[:2, :, 3] == 0).all()
    assert (result[2:, :, 3] == 255).all()
    assert (result[:, : W // 2, :3] == RGB).all()


def test_sixteen_bits_per_colour_channel_are_not_lost_silently(run, tmp_path):
    """Pillow cannot write such a file, so it is made by hand."""
    import struct
    import zlib

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = (b"\0" + bytes(W * 6)) * H
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", W, H, 16, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(data)
    hole_mask().save(tmp_path / "mask.png")
    code, lines = run(tmp_path / "a.png", tmp_path / "mask.png", "-o", tmp_path / "out.png")
    assert code == 0
    assert "16 bits per channel of a colour image are read as 8" in lines[0]


def test_only_the_first_of_several_pictures_and_said(run, tmp_path):
    picture().save(tmp_path / "a.tif", save_all=True, append_images=[Image.new("RGB", (3, 3))])
    hole_mask().save(tmp_path / "mask.png")
    code, lines = run(tmp_path / "a.tif", tmp_path / "mask.png", "-o", tmp_path / "out.tif")
    assert code == 0
    assert "holds 2 pictures, only the first is used" in lines[0]


# ---- metadata ------------------------------------------------------------------------------------------------------


@functools.cache  # a profile holds the second it was made in
def profile():
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def exif_of_a_camera(orientation=1):
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "A camera"
    exif[ORIENTATION] = orientation
    exif[ExifTags.IFD.Exif] = {ExifTags.Base.ISOSpeedRatings: 200, ExifTags.Base.MakerNote: b"private"}
    exif[ExifTags.IFD.GPSInfo] = {ExifTags.GPS.GPSLatitudeRef: "N"}
    return exif


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_orientation_is_applied_once_and_metadata_kept(run, tmp_path, suffix):
    """The stored picture is 24x16 and lies on its side: upright it is 16x24, its top half the stored left half."""
    source, out = tmp_path / f"a{suffix}", tmp_path / f"out{suffix}"
    stored = Image.new("RGB", (24, 16), (200, 30, 30))
    stored.paste((30, 200, 30), (12, 0, 24, 16))
    lossless = {"lossless": True} if suffix == ".webp" else {}
    stored.save(source, exif=exif_of_a_camera(6).tobytes(), icc_profile=profile(), dpi=(72, 144), **lossless)
    mask = Image.new("L", (16, 24), 0)  # upright: a hole in the last rows
    mask.paste(255, (0, 20, 16, 24))
    mask.save(tmp_path / "mask.png")
    assert run(source, tmp_path / "mask.png", "-o", out) == (0, [])
    with Image.open(out) as after:
        assert after.size == (16, 24)
        exif = after.getexif()
        assert exif.get(ORIENTATION, 1) == 1
        assert exif[ExifTags.Base.Make] == "A camera"
        assert exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] == "N"
        assert exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ISOSpeedRatings] == 200
        assert ExifTags.Base.MakerNote not in exif.get_ifd(ExifTags.IFD.Exif)
        assert after.info["icc_profile"] == profile()
        if suffix != ".webp":
            assert after.info["dpi"] == pytest.approx((144, 72), rel=1e-3)  # turned with the picture
        pixel = after.convert("RGB").getpixel
        for place, colour in {(8, 4): (200, 30, 30), (8, 16): (30, 200, 30), (8, 22): RGB}.items():
            assert pixel(place) == pytest.approx(colour, abs=6)


def test_no_preview_of_what_was_removed_stays_in_the_file(run, tmp_path):
    """EXIF thumbnails and XMP of the source show the picture before inpainting."""
    secret = b"thumbnail-of-the-secret"
    exif = b"Exif\0\0II*\0\x08\0\0\0\0\0\x0e\0\0\0\x02\0\x01\x02\x04\0\x01\0\0\0\x2c\0\0\0\x02\x02\x04\0\x01\0\0\0"
    exif += len(secret).to_bytes(4, "little") + bytes(4) + secret
    picture().save(tmp_path / "a.jpg", exif=exif, xmp=b"<x>thumbnail-of-the-secret</x>")
    assert (tmp_path / "a.jpg").read_bytes().count(secret) == 2
    hole_mask().save(tmp_path / "mask.png")
    for suffix in (".jpg", ".png", ".webp", ".tif"):
        assert run(tmp_path / "a.jpg", tmp_path / "mask.png", "-o", tmp_path / f"out{suffix}")[0] == 0
        assert secret not in (tmp_path / f"out{suffix}").read_bytes()


def test_a_profile_of_another_colour_space_is_dropped(run, tmp_path):
    cmyk_profile = bytearray(profile())
    cmyk_profile[16:20] = b"CMYK"
    picture("CMYK").save(tmp_path / "a.tif", icc_profile=bytes(cmyk_profile))
    hole_mask().save(tmp_path / "mask.png")
    for suffix, kept in ((".tif", True), (".jpg", True), (".png", False)):
        run(tmp_path / "a.tif", tmp_path / "mask.png", "-o", tmp_path / f"out{suffix}")
        with Image.open(tmp_path / f"out{suffix}") as after:
            assert ("icc_profile" in after.info) is kept, suffix


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
def test_exif_in_tiff_is_kept_as_far_as_pillow_can(tmp_path, compression):
    picture().save(tmp_path / "empty.tif", compression=compression)
    picture().save(tmp_path / "camera.jpg", exif=exif_of_a_camera().tobytes())
    source = images.read(tmp_path / "empty.tif")
    source.exif = images.read(tmp_path / "camera.jpg").exif
    notes = images.write(tmp_path / "out.tif", source)
    assert [("EXIF is kept in part" in note) for note in notes] == ([] if compression == "raw" else [True])
    with Image.open(tmp_path / "out.tif") as after:
        assert after.info["compression"] == compression
        exif = after.getexif()
        assert exif[ExifTags.Base.Make] == "A camera"
        assert (ExifTags.IFD.GPSInfo in exif) is (compression == "raw")


def test_exif_too_long_for_jpeg(run, tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = "x" * 70_000
    picture().save(tmp_path / "a.png", exif=exif.tobytes())
    hole_mask().save(tmp_path / "mask.png")
    code, lines = run(tmp_path / "a.png", tmp_path / "mask.png", "-o", tmp_path / "out.jpg")
    assert code == 0
    assert "EXIF is not kept, as it is too long for JPEG" in lines[0]


@pytest.mark.parametrize("damaged", [b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0nothing of the kind"])
def test_damaged_exif_does_not_lose_the_picture(run, tmp_path, damaged):
    picture().save(tmp_path / "a.jpg", exif=damaged)
    hole_mask().save(tmp_path / "mask.png")
    code, lines = run(tmp_path / "a.jpg", tmp_path / "mask.png", "-o", tmp_path / "out.jpg")
    assert code == 0
    assert len(lines) <= 1


def test_exif_that_cannot_be_written_again_still_turns_the_picture(run, tmp_path, monkeypatch):
    hole_mask((H, W)).save(tmp_path / "mask.png")
    picture().save(tmp_path / "a.jpg", exif=exif_of_a_camera(6).tobytes())

    def fails(self, offset=8):
        raise ValueError("an odd tag")

    monkeypatch.setattr(Image.Exif, "tobytes", fails)
    code, lines = run(tmp_path / "a.jpg", tmp_path / "mask.png", "-o", tmp_path / "out.jpg")
    assert code == 0
    assert lines == [f"msa inpaint: note: {tmp_path / 'a.jpg'}: damaged EXIF is not kept: an odd tag"]
    assert array(tmp_path / "out.jpg").shape[:2] == (W, H)


# ---- masks ---------------------------------------------------------------------------------------------------------


def test_threshold_and_inversion(run, files):
    image, mask, out = files
    values = np.tile(np.repeat(np.array([127, 128], np.uint8), W // 2), (H, 1))
    Image.fromarray(values).save(mask)
    for arguments, hole in (([], values > 127), (["--invert-mask"], values <= 127)):
        assert run(image, mask, "-o", out, *arguments) == (0, [])
        expected = np.where(hole[..., None], np.uint8(RGB), array(image))
        assert np.array_equal(array(out), expected)


def test_a_mask_of_another_size_is_resized_to_the_nearest_pixel_and_said(run, files):
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


# ---- files and folders ---------------------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path):
    """Images in a folder and a nested one; masks of other suffixes and, by the hole's width, told apart."""
    for index, name in enumerate(["a.png", "b.jpg", "sub/a.png", "sub/deep/c.d.webp"]):
        image = tmp_path / "images" / name
        mask = (tmp_path / "masks" / name).with_suffix(".bmp")
        image.parent.mkdir(parents=True, exist_ok=True)
        mask.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (W, H), (250, 250, 250)).save(image)
        hole_mask(left=2 * index + 1).save(mask)
    (tmp_path / "images/notes.txt").write_text("no image")
    (tmp_path / "images/._a.png").write_bytes(b"what macOS leaves behind")
    return tmp_path / "images", tmp_path / "masks", tmp_path / "out"


def hole_width(path):
    return int((array(path).astype(int)[H // 2, :, 0] < 150).sum())


def outputs(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


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


def test_two_masks_of_one_stem(run, folders):
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


# ---- what can go wrong ---------------------------------------------------------------------------------------------


def one_error(result, *parts):
    code, lines = result
    assert code == 1
    assert len(lines) == 1, lines
    assert lines[0].startswith("msa inpaint: error: ")
    for part in parts:
        assert str(part) in lines[0]


def test_truncated_and_empty_files(run, files, tmp_path):
    image, mask, out = files
    whole = tmp_path / "whole.jpg"
    picture(size=(64, 64)).save(whole)
    (tmp_path / "cut.jpg").write_bytes(whole.read_bytes()[:-400])
    one_error(run(tmp_path / "cut.jpg", mask, "-o", out), "cut.jpg: cannot be read: ", "truncated")
    cut = image.read_bytes()[:-40]
    image.write_bytes(cut)
    one_error(run(image, mask, "-o", out), "image.png: cannot be read: ")
    image.write_bytes(b"")
    one_error(run(image, mask, "-o", out), "image.png: is not a readable")
    one_error(run(whole, image, "-o", out), "image.png: is not a readable")  # as a mask
    assert not out.exists()


@pytest.mark.parametrize("limit", [W * H - 1, W * H // 3])  # Pillow's warning, Pillow's error
def test_image_bombs_are_refused_with_the_limit(run, files, monkeypatch, limit):
    image, mask, out = files
    Image.new("L", (3, 3), 255).save(mask)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    one_error(run(image, mask, "-o", out), f"image.png: has more than {limit} pixels")
    assert not out.exists()


def test_what_is_not_there(run, files, tmp_path):
    image, mask, out = files
    one_error(run(tmp_path / "none.png", mask, "-o", out), "none.png: no such file or folder")
    one_error(run(image, tmp_path / "none.png", "-o", out), "none.png: no such file or folder")
    (tmp_path / "empty").mkdir()
    one_error(run(tmp_path / "empty", mask, "-o", tmp_path / "o"), "empty: no image in this folder", ".jpg", ".webp")
    assert not (tmp_path / "o").exists()


def test_outputs_that_cannot_be(run, files, folders, generator, tmp_path):
    image, mask, out = files
    source, masks, _ = folders
    (tmp_path / "file").touch()
    one_error(run(source, masks, "-o", tmp_path / "file/below"), "file/below: cannot write there")
    one_error(run(image, mask, "-o", tmp_path / "file/below/out.png"), "file/below: cannot write there")
    one_error(run(image, mask, "-o", tmp_path / "file"), "file: is neither a folder nor a file named")
    one_error(run(source, masks, "-o", tmp_path / "file"), "OUT must be a folder")
    one_error(run(source, masks, "-o", out), "OUT must be a folder")
    one_error(run(image, mask, "-o", tmp_path / "out.gif"), "out.gif: cannot write this format, only .bmp")
    assert not generator.calls  # all that is known before the work


def test_inputs_are_never_overwritten(run, files, folders, tmp_path):
    image, mask, _ = files
    source, masks, _ = folders
    before = image.read_bytes()
    link = tmp_path / "link.png"
    link.hardlink_to(image)
    hole_mask().save(tmp_path / "image.compare.png")
    for out in (image, link, tmp_path, tmp_path / "sub/../image.png"):
        (tmp_path / "sub").mkdir(exist_ok=True)
        one_error(run(image, mask, "-o", out), f"would overwrite the input {image}")
    one_error(run(image, mask, "-o", mask), f"would overwrite the input {mask}")
    one_error(run(source, masks, "-o", source), "would overwrite the input")
    compare = tmp_path / "image.compare.png"
    one_error(run(image, compare, "-o", tmp_path / "image.jpg", "--compare"), f"would overwrite the input {compare}")
    one_error(run(source, source, "-o", tmp_path / "o"), "images and masks must be in different folders")
    assert image.read_bytes() == before


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), ValueError("bad\nencoder")])
def test_nothing_half_written_is_left(run, files, monkeypatch, error):
    image, mask, out = files
    out.write_bytes(b"the old result")

    def half_a_save(self, file, **options):
        file.write(b"half of the new")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", half_a_save)
        message = "No space left on device" if isinstance(error, OSError) else "bad encoder"
        one_error(run(image, mask, "-o", out), f"out.png: cannot be written: {message}")
    assert out.read_bytes() == b"the old result"
    assert not left_behind(out.parent)
    assert run(image, mask, "-o", out) == (0, [])
    assert not left_behind(out.parent)


def test_an_interrupted_write_leaves_nothing_either(run, files, monkeypatch):
    image, mask, out = files

    def interrupted(self, file, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", interrupted)
    assert run(image, mask, "-o", out) == (130, ["msa inpaint: interrupted"])
    assert not out.exists()
    assert not left_behind(out.parent)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\n much"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes."),
        MemoryError(),
    ],
)
def test_running_out_of_memory_is_one_bad_file(run, folders, generator, monkeypatch, error):
    source, masks, out = folders
    forward = generator.forward

    def first_fails(image, mask):
        if not generator.calls:
            generator.calls.append(None)
            raise error
        return forward(image, mask)

    monkeypatch.setattr(generator, "forward", first_fails)
    code, lines = run(source, masks, "-o", out)
    assert code == 1
    assert lines[0].startswith(f"msa inpaint: error: {source / 'a.png'}: not enough memory on cpu")
    assert len(outputs(out)) == 3


def test_a_bug_is_not_dressed_up_as_a_bad_file(run, files, generator, monkeypatch):
    def bug(image, mask):
        raise RuntimeError("a bug")

    monkeypatch.setattr(generator, "forward", bug)
    with pytest.raises(RuntimeError, match="a bug"):
        run(*files[:2], "-o", files[2])


def test_a_prediction_that_is_not_finite(run, files, one_colour, monkeypatch):
    monkeypatch.setattr(inpaint_command, "load_generator", lambda path, device: one_colour((float("nan"), 0.0, 0.0)))
    one_error(run(*files[:2], "-o", files[2]), "image.png: msa_model.inpaint: the prediction is not finite")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_dtype_is_autocast(run, files, generator, monkeypatch, dtype):
    seen = []
    forward = generator.forward

    def spy(image, mask):
        seen.append((torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")))
        return forward(image, mask)

    monkeypatch.setattr(generator, "forward", spy)
    assert run(*files[:2], "-o", files[2], "--dtype", dtype) == (0, [])
    assert seen[0][0] is (dtype != "float32")
    assert dtype == "float32" or seen[0][1] is getattr(torch, dtype)
    assert not torch.is_autocast_enabled("cpu")


# ---- weights, devices, usage ---------------------------------------------------------------------------------------


def main_error(capsys, arguments, code=1):
    assert cli.main(["inpaint", *map(str, arguments)]) == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_weights_missing_or_damaged(files, tmp_path, capsys, small_generator):
    image, mask, out = files
    arguments = [image, mask, "-o", out, "--device", "cpu"]
    weights = tmp_path / "weights.safetensors"
    assert "no such weights file" in main_error(capsys, [*arguments, "--weights", weights])
    weights.write_bytes(b"nothing of the kind")
    assert f"{weights}: cannot be loaded as weights: " in main_error(capsys, [*arguments, "--weights", weights])
    small_generator.save(weights)
    weights.write_bytes(weights.read_bytes()[:-100])
    assert f"{weights}: cannot be loaded as weights: " in main_error(capsys, [*arguments, "--weights", weights])
    assert not out.exists()


def test_without_weights_the_demos_are_used_and_said_so(files, capsys):
    image, mask, out = files
    assert cli.main(["inpaint", str(image), str(mask), "-o", str(out), "--device", "cpu"]) == 0
    assert "note: the demo's weights, trained on rendered facades" in capsys.readouterr().err
    assert cli.main(["inpaint", str(image), str(mask), "-o", str(out), "--weights", "demo", "-q"]) == 0
    assert capsys.readouterr().err == ""


def test_cuda_asked_for_but_not_there(files, tmp_path, capsys, monkeypatch):
    image, mask, out = files
    (tmp_path / "weights").touch()
    arguments = [image, mask, "-o", out, "--weights", tmp_path / "weights", "--device"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "--device cuda: " in main_error(capsys, [*arguments, "cuda"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert "--device cuda:2: there are only 2 GPUs" in main_error(capsys, [*arguments, "cuda:2"])


@pytest.mark.parametrize(
    "arguments",
    [[], ["paint"], ["inpaint", "a", "b"], ["inpaint", "a", "b", "-o", "c", "--device", "tpu"]],
)
def test_usage_errors(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert "usage: msa" in capsys.readouterr().err


def test_help_lists_every_command_with_an_example(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["--help"])
    assert caught.value.code == 0
    said = capsys.readouterr().out
    for command in cli.COMMANDS:
        assert command.summary in said
        assert command.example in said
        assert command.example.startswith(f"msa {command.name}")


def test_parsing_does_not_import_torch():
    """The package's own __init__ is left out here: this is about the module of the command line."""
    script = f"""
import sys, types
package = types.ModuleType("msa_model")
package.__path__ = [{str(Path(msa_model.__file__).parent)!r}]
sys.modules["msa_model"] = package
from msa_model import cli
try:
    cli.main(["inpaint", "--help"])
except SystemExit:
    pass
assert "torch" not in sys.modules and "PIL" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.DEVNULL)


def test_info_is_that_of_the_operators(capsys):
    assert cli.main(["info"]) == 0
    said = capsys.readouterr().out
    from msa_ops import info

    info.main()
    assert said == capsys.readouterr().out
    assert "torch" in said


def test_missing_extra_is_named(run, files, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    code, lines = run(*files[:2], "-o", files[2])
    assert (code, lines) == (1, ["msa inpaint: error: tqdm is missing: pip install 'msa-ops[model]'"])


def test_the_real_thing_end_to_end(files, folders, tmp_path, small_generator):
    """As a user runs it: another process, saved weights, the network itself."""
    source, masks, out = folders
    (source / "b.jpg").write_bytes(b"")
    small_generator.save(tmp_path / "weights.safetensors")
    command = [sys.executable, "-m", "msa_model", "inpaint", source, masks, "-o", out, "--compare", "--device", "cpu"]
    done = subprocess.run([*command, "--weights", tmp_path / "weights.safetensors"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 2
    with Image.open(source / "a.png") as image, Image.open(masks / "a.bmp") as mask:
        expected = msa_model.inpaint(small_generator, image, mask)
    result = array(out / "a.png")
    assert abs(result.astype(int) - np.asarray(expected).astype(int)).max() <= 1
    assert np.array_equal(result[:, 1:], array(source / "a.png")[:, 1:])


# ---- reading and writing as a library ------------------------------------------------------------------------------


def test_write_makes_folders_and_names_the_file_in_errors(tmp_path):
    source = images.Picture(picture(), "PNG")
    assert images.write(tmp_path / "new/folder/a.png", source) == []
    assert np.array_equal(array(tmp_path / "new/folder/a.png"), np.asarray(source.image))
    (tmp_path / "taken.png").mkdir()
    with pytest.raises(images.ImageFileError, match=r"taken\.png: cannot be written: "):
        images.write(tmp_path / "taken.png", source)
    assert not left_behind(tmp_path)


def test_reading_leaves_pillow_s_limits_and_warnings_alone(files):
    import warnings

    before, limit = list(warnings.filters), Image.MAX_IMAGE_PIXELS
    images.read(files[0])
    assert (warnings.filters, Image.MAX_IMAGE_PIXELS) == (before, limit)
