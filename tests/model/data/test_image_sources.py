"""Sources of images: facades, folders, mixtures."""

import numpy as np
import pytest
from PIL import Image

from msa_model import data as d
from msa_model.data import render_facade

from .files import flat, ramp, rng, save


def test_files_at_any_depth_sorted_hidden_and_other_ones_left_out(tmp_path):
    for name in ("b/c/2.PNG", "a.jpg", "b/1.jpeg", "z.webp", "b/3.bmp", ".hidden.png", ".cache/4.png"):
        save(tmp_path / name, flat(9))
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "b" / "loop").symlink_to(tmp_path, target_is_directory=True)
    names = [str(path.relative_to(tmp_path)) for path in d.ImageFolder(tmp_path, 32, "celeba").paths]
    assert names == ["a.jpg", "b/1.jpeg", "b/3.bmp", "b/c/2.PNG", "z.webp"]


@pytest.mark.parametrize(
    ("preset", "size", "height", "width", "shares"),
    [
        ("celeba", 256, 218, 178, (1.0, 178 / 218)),  # the whole width, and the middle of the height
        ("paris", 256, 537, 936, (256 / 350 * 537 / 936, 256 / 350)),
        ("places2", 64, 256, 256, (256 / 350, 256 / 350)),
        ("paris", 128, 1000, 1500, (256 / 350 * 2 / 3, 256 / 350)),  # large: read at a fraction of its size
    ],
)
def test_geometry_of_the_presets(tmp_path, preset, size, height, width, shares):
    save(tmp_path / "a.jpg", ramp(height, width), quality=98, subsampling=0)
    source = d.ImageFolder(tmp_path, size, preset)
    middle = source.load(0)
    assert middle.shape == (size, size, 3)
    assert middle.dtype == np.uint8
    for channel, share in enumerate(shares):  # evaluation: centred, and as wide as the resize to the shorter side says
        profile = middle[..., channel].astype(float).mean(axis=channel)
        assert abs(profile.mean() - 127.5) < 2.5
        assert abs((profile[-1] - profile[0]) / 255 - share * (size - 1) / size) < 0.02
    crops = [source.load(0, rng(draw)).astype(float) for draw in range(30)]
    starts = {(round(crop[0, 0, 0]), round(crop[0, 0, 1])) for crop in crops}
    assert len(starts) == 1 if preset == "celeba" else len(starts) > 15
    for crop in crops:  # the scale is the same wherever the crop is
        assert abs((crop[size // 2, -1, 0] - crop[size // 2, 0, 0]) / 255 - shares[0] * (size - 1) / size) < 0.03
    assert np.array_equal(crops[3], source.load(0, rng(3)))


def test_flip_only_in_training_and_only_if_asked_for(tmp_path):
    save(tmp_path / "a.png", ramp(64, 64))
    plain, flipping = (d.ImageFolder(tmp_path, 32, "celeba", flip) for flip in (False, True))
    middle = plain.load(0)
    assert np.array_equal(flipping.load(0), middle)
    assert all(np.array_equal(plain.load(0, rng(i)), middle) for i in range(10))
    flips = sum(np.array_equal(flipping.load(0, rng(i)), middle[:, ::-1]) for i in range(40))
    assert 10 < flips < 30
    assert flips + sum(np.array_equal(flipping.load(0, rng(i)), middle) for i in range(40)) == 40


def test_every_mode_becomes_rgb_and_orientation_is_applied(tmp_path):
    base = Image.fromarray(ramp(40, 40).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: shown, the stored left edge is at the top
    base.save(tmp_path / "turned.jpg", exif=exif, quality=98, subsampling=0)
    for mode in ("L", "1", "P", "RGBA", "LA"):
        base.convert(mode).save(tmp_path / f"{mode}.png")
    base.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=98)
    Image.fromarray(np.full((40, 40), 0x8000, np.uint16)).save(tmp_path / "deep.png")
    source = d.ImageFolder(tmp_path, 40, "celeba")
    loaded = {path.stem: source.load(i) for i, path in enumerate(source.paths)}
    assert all(pixels.shape == (40, 40, 3) for pixels in loaded.values())
    assert loaded["turned"][0, 20, 0] < 12 < 240 < loaded["turned"][-1, 20, 0]
    assert np.array_equal(loaded["RGBA"], np.asarray(base))
    assert np.array_equal(loaded["L"], np.repeat(np.asarray(base.convert("L"))[..., None], 3, axis=2))
    assert set(np.unique(loaded["deep"])) == {128}
    assert abs(loaded["cmyk"].astype(int) - np.asarray(base)).mean() < 12


def test_mixed_sources_take_turns_and_the_smaller_ones_begin_again():
    few, many = d.Facades(16, 2, first_seed=100), d.Facades(16, 5, first_seed=200)
    mixed = d.MixedImages([few, many])
    assert len(mixed) == 10
    wanted = [100, 200, 101, 201, 100, 202, 101, 203, 100, 204]
    for index, number in enumerate(wanted):
        assert np.array_equal(mixed.load(index), render_facade(16, number))
    with pytest.raises(IndexError):
        mixed.load(10)


def test_facades_count_from_their_first_seed():
    source = d.Facades(32, length=5, first_seed=100)
    assert len(source) == 5
    assert np.array_equal(source.load(3, rng(0)), render_facade(32, 103))
    with pytest.raises(IndexError, match="only 0 to 4"):
        source.load(5)
    assert len(d.Facades(32)) == 100_000
