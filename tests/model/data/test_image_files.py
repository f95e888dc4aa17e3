"""Image files that are read and written as a library."""

import numpy as np
import pytest
from PIL import ExifTags, Image

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
