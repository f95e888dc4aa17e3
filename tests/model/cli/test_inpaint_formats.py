"""`msa inpaint` on files of every format: modes, valid pixels and metadata that stay."""

import numpy as np
import pytest
from PIL import ExifTags, Image

from ..pictures import GREY, RGB, H, W, array, exif_of_a_camera, hole_mask, picture, profile


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
def test_another_output_format_converts_the_mode_and_notes_it(run, tmp_path, mode, suffix, written, said):
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


def test_only_the_first_of_several_pictures_is_used_and_noted(run, tmp_path):
    picture().save(tmp_path / "a.tif", save_all=True, append_images=[Image.new("RGB", (3, 3))])
    hole_mask().save(tmp_path / "mask.png")
    code, lines = run(tmp_path / "a.tif", tmp_path / "mask.png", "-o", tmp_path / "out.tif")
    assert code == 0
    assert "holds 2 pictures, only the first is used" in lines[0]


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
        assert exif.get(ExifTags.Base.Orientation, 1) == 1
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
