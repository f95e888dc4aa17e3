"""`msa attention-map`: what it writes, and every wrong argument."""

import json

import numpy as np
import pytest
from PIL import Image

import msa_model
from msa_model import cli


def make_generator(**config):
    return msa_model.Generator(**(dict(base_width=4, depth=4, attention_levels=(3, 2)) | config)).eval()


@pytest.fixture
def files(tmp_path):
    """image.png and mask.png of 60 x 44 pixels, weights.safetensors."""
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (44, 60, 3), dtype=np.uint8)).save(tmp_path / "image.png")
    mask = np.zeros((44, 60), dtype=np.uint8)
    mask[10:30, 20:45] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    make_generator().save(tmp_path / "weights.safetensors")
    return tmp_path


def run(folder, *arguments, image="image.png", mask="mask.png", weights="weights.safetensors", output="map.png"):
    given = [folder / image, folder / mask, "-o", folder / output, "--weights", folder / weights, "--device", "cpu"]
    return cli.main(["attention-map", *map(str, [*given, *arguments])])


def test_the_command_writes_sheet_and_maps(files, capsys):
    assert run(files, "--json", files / "map.json", "--npz", files / "map.npz") == 0
    said = capsys.readouterr()
    assert "level 3: 15 x 11 cells of 4 x 4 pixels" in said.out
    assert said.err == ""
    with Image.open(files / "map.png") as sheet:
        assert sheet.mode == "RGB"
        assert sheet.width > 5 * 60 * 4  # five panels, enlarged
    content = json.loads((files / "map.json").read_text())
    assert (content["height"], content["width"]) == (44, 60)
    arrays = np.load(files / "map.npz")
    for stage, factor in zip(content["stages"], (4, 2), strict=True):
        assert (stage["factor"], stage["height"], stage["width"]) == (factor, 44 // factor, 60 // factor)
        assert np.array_equal(stage["index"], arrays[f"level_{stage['level']}_index"])
        assert np.array_equal(stage["hole"], arrays[f"level_{stage['level']}_hole"])
    hole = np.zeros((22, 30), dtype=bool)
    hole[5:15, 10:23] = True
    assert np.array_equal(arrays["level_2_hole"], hole)


def test_the_same_twice_and_overlay_is_another_picture(files):
    written = []
    for arguments in ((), (), ("--overlay",)):
        assert run(files, "-q", *arguments) == 0
        written.append((files / "map.png").read_bytes())
    assert written[0] == written[1] != written[2]


def test_invert_mask(files):
    assert run(files, "-q", "--npz", files / "a.npz") == 0
    with Image.open(files / "mask.png") as mask:
        mask.point(lambda value: 255 - value).save(files / "inverted.png")
    assert run(files, "-q", "--npz", files / "b.npz", "--invert-mask", mask="inverted.png") == 0
    a, b = (np.load(files / name) for name in ("a.npz", "b.npz"))
    assert all(np.array_equal(a[name], b[name]) for name in a)


def broken(files):
    Image.new("L", (60, 44), 0).save(files / "none.png")
    Image.new("L", (60, 44), 255).save(files / "all.png")
    (files / "text.png").write_text("no image")
    make_generator(attention_levels=()).save(files / "plain.safetensors")


@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        ({"image": "gone.png"}, 1, "gone.png: no such file"),
        ({"image": "text.png"}, 1, "text.png: is not a readable"),
        ({"mask": "text.png"}, 1, "text.png: is not a readable"),
        ({"mask": "none.png"}, 1, "none.png: no hole in this mask"),
        ({"mask": "all.png"}, 1, "all.png: all of this mask is hole"),
        ({"weights": "gone.safetensors"}, 1, "gone.safetensors: no such weights file"),
        ({"weights": "image.png"}, 1, "cannot be loaded as weights"),
        ({"weights": "plain.safetensors"}, 1, "this generator has no attention stage"),
        ({"output": "map.jpg"}, 2, "map.jpg: must be a .png file"),
        ({"output": "image.png"}, 1, "image.png: would overwrite an input"),
    ],
)
def test_one_clear_message(files, capsys, changes, code, said):
    broken(files)
    before = (files / "image.png").read_bytes()
    assert run(files, **changes) == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("msa attention-map: error: ")
    assert said in lines[0]
    assert not (files / "map.png").exists()
    assert (files / "image.png").read_bytes() == before


def test_without_weights_those_of_the_package_are_used_and_noted(files, capsys):
    arguments = [str(files / name) for name in ("image.png", "mask.png")]
    assert cli.main(["attention-map", *arguments, "-o", str(files / "map.png"), "--device", "cpu"]) == 0
    assert "note: the demo's weights" in capsys.readouterr().err
