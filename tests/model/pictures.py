"""Pictures, masks and metadata for the tests of image files."""

import functools
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageCms

RGB, GREY = (51, 102, 204), 98  # what `one_colour` predicts, as 8-bit values
W, H = 12, 8  # of `picture()`


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


def array(path):
    with Image.open(path) as image:
        return np.asarray(image)


def left_behind(folder):
    return [path.name for path in Path(folder).rglob("*") if path.name.startswith(".") or path.suffix == ".part"]


def outputs(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@functools.cache  # a profile contains the second in which it was made
def profile():
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def exif_of_a_camera(orientation=1):
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "A camera"
    exif[ExifTags.Base.Orientation] = orientation
    exif[ExifTags.IFD.Exif] = {ExifTags.Base.ISOSpeedRatings: 200, ExifTags.Base.MakerNote: b"private"}
    exif[ExifTags.IFD.GPSInfo] = {ExifTags.GPS.GPSLatitudeRef: "N"}
    return exif
