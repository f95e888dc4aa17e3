"""Image files that are read and written as a library."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import ExifTags, Image

from msa_model.data import ImageFolder, native_messages
from msa_model.data import image_files as images

from ..pictures import array, exif_of_a_camera, left_behind, picture


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


def test_write_makes_folders_and_names_the_file_in_errors(tmp_path):
    source = images.Picture(picture(), "PNG")
    assert images.write(tmp_path / "new/folder/a.png", source) == []
    assert np.array_equal(array(tmp_path / "new/folder/a.png"), np.asarray(source.image))
    (tmp_path / "taken.png").mkdir()
    with pytest.raises(images.ImageFileError, match=r"taken\.png: cannot be written: "):
        images.write(tmp_path / "taken.png", source)
    assert not left_behind(tmp_path)


def test_reading_leaves_pillow_s_limits_and_warnings_alone(tmp_path):
    picture().save(tmp_path / "image.png")
    import warnings

    before, limit = list(warnings.filters), Image.MAX_IMAGE_PIXELS
    images.read(tmp_path / "image.png")
    assert (warnings.filters, Image.MAX_IMAGE_PIXELS) == (before, limit)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate"])
def test_tiff_below_a_folder_whose_name_is_not_utf8(tmp_path, compression):
    folder = tmp_path / os.fsdecode(b"\xff")
    folder.mkdir()
    picture().save(tmp_path / "in.tif", compression=compression)
    source = images.read(tmp_path / "in.tif")
    images.write(folder / "out.tif", source)
    assert np.array_equal(np.asarray(images.read(folder / "out.tif").image), np.asarray(source.image))


def test_a_file_keeps_the_permissions_that_the_user_gives_new_files(tmp_path):
    (tmp_path / "usual").touch()
    images.write(tmp_path / "a.png", images.Picture(picture(), "PNG"))
    assert (tmp_path / "a.png").stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.parametrize(
    ("number", "name", "what"),
    [(0, "a.png", "is a named pipe, not a file"), (1, "b.png", "cannot be read: Too many levels of symbolic links")],
)
def test_special_files_are_named_and_not_waited_for(tmp_path, number, name, what):
    os.mkfifo(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to("b.png")
    message = re.escape(f"{tmp_path / name}: {what}")
    with pytest.raises(images.ImageFileError, match=message):
        images.read(tmp_path / name)
    with pytest.raises(images.ImageFileError, match=message):
        images.read_hole(tmp_path / name)
    with pytest.raises(images.ImageFileError, match=message):
        ImageFolder(tmp_path, 8, "celeba").load(number)


def test_errors_of_files_are_printable(tmp_path):
    path = tmp_path / "\x1b[31m\n.png"
    path.write_bytes(b"")
    with pytest.raises(images.ImageFileError) as caught:
        images.read(path)
    assert str(caught.value) == f"{tmp_path}/\\x1b[31m .png: is not a readable JPEG, PNG, WebP, TIFF or BMP image"


def test_what_a_library_in_c_writes_is_caught(capfd):
    with native_messages.caught() as said:
        os.write(2, b"libtiff: \x1b[31mbad\n" * 1000)
    assert len(said) == 1
    assert said[0].startswith("libtiff: \\x1b[31mbad libtiff: ")
    assert len(said[0]) <= 300
    os.write(2, b"after\n")
    with native_messages.caught() as said:
        pass
    assert said == []
    assert capfd.readouterr().err == "after\n"


def test_what_pillow_logs_does_not_reach_the_terminal():
    code = (
        "import logging, msa_model.data.image_files; "
        "logging.getLogger('PIL.TiffImagePlugin').error('More samples per pixel than can be decoded')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
