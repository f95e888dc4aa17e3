"""Attention maps: the right places whatever the generator, colours that tell places apart, and `msa attention-map`."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import msa_model
from msa_model import attention_maps as maps
from msa_model import cli


def make_generator(**config):
    return msa_model.Generator(**(dict(base_width=4, depth=4, attention_levels=(3, 2)) | config)).eval()


def picture(height=64, width=64):
    """An image and its mask, 1 = valid."""
    image = torch.rand(1, 3, height, width)
    mask = torch.ones(1, 1, height, width, dtype=torch.bool)
    mask[..., height // 4 : height // 2 + 3, width // 3 : width // 3 * 2 + 1] = False
    return image, mask


# ---- the maps ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"variant": "released"},
        {"mask_reduction": "all_valid"},
        {"attention_levels": (2,)},
        {"attention_levels": (4, 3, 2), "radius": 0, "scale": 3.0, "renormalize": True},
    ],
)
@pytest.mark.parametrize(("height", "width"), [(64, 64), (50, 37), (20, 90)])
def test_every_hole_cell_looks_at_a_background_cell_of_the_image(config, height, width):
    generator = make_generator(**config)
    image, mask = picture(height, width)
    result, stages = maps.attention_maps(generator, image, mask)
    assert torch.equal(result, msa_model.inpaint(generator, image, mask))
    assert [stage.level for stage in stages] == sorted(generator.config.attention_levels, reverse=True)
    for stage in stages:
        assert stage.factor == 2 ** (stage.level - 1)
        assert stage.index.shape == stage.hole.shape == (-(-height // stage.factor), -(-width // stage.factor))
        assert stage.index.dtype == np.int64
        assert stage.hole.any()
        assert ((stage.index >= 0) == (stage.hole & ~stage.hole.all())).all()
        assert not stage.hole.flatten()[stage.index[stage.index >= 0]].any()


@pytest.mark.parametrize(("height", "width"), [(64, 64), (50, 37)])
def test_the_place_looked_at_is_the_one_whose_features_are_the_same(height, width):
    generator = make_generator(attention_levels=(3,), radius=0)
    image, mask = picture(height, width)
    cells = mask[0, 0, ::4, ::4]
    rows, columns = cells.shape
    background = cells.flatten().nonzero()[:, 0]
    wanted = background[torch.randperm(len(background))[: int((~cells).sum())]]

    def plant(block, inputs):
        features, valid = inputs
        planted = torch.zeros_like(features)
        own = torch.randn(features.shape[1], rows, columns)
        own[:, ~cells] = own.flatten(1)[:, wanted]
        planted[0, :, :rows, :columns] = own  # the rest is padding, to which no index may point
        return planted, valid

    generator.attention["3"].register_forward_pre_hook(plant)
    _, (stage,) = maps.attention_maps(generator, image, mask)
    assert stage.index[stage.hole].tolist() == wanted.tolist()


def test_all_hole_looks_nowhere():
    generator = make_generator()
    _, stages = maps.attention_maps(generator, torch.rand(1, 3, 32, 32), torch.zeros(1, 1, 32, 32))
    assert all((stage.index == -1).all() and stage.hole.all() for stage in stages)


def test_the_generator_is_left_as_it_was():
    generator = make_generator().train()
    maps.attention_maps(generator, *picture())
    assert generator.training
    assert not any(block._forward_pre_hooks for block in generator.attention.values())


def test_refusals():
    with pytest.raises(ValueError, match="no attention stage"):
        maps.attention_maps(make_generator(attention_levels=()), *picture())
    image, mask = picture()
    with pytest.raises(ValueError, match=r"image must have shape \(1, 3, H, W\)"):
        maps.attention_maps(make_generator(), image.repeat(2, 1, 1, 1), mask.repeat(2, 1, 1, 1))


# ---- colours -------------------------------------------------------------------------------------------------------


def test_green_top_left_and_pink_bottom_right():
    red, green, blue = maps.place_colours(0.0, 0.0).astype(int)
    assert green > red + 80
    assert green > blue + 80
    red, green, blue = maps.place_colours(1.0, 1.0).astype(int)
    assert red > green + 80
    assert blue > green + 80


def test_no_two_places_share_a_colour_and_neighbours_are_close():
    square = maps.legend(128, 128).astype(int)
    assert len(np.unique(square.reshape(-1, 3), axis=0)) == 128 * 128
    assert max(np.abs(np.diff(square, axis=axis)).max() for axis in (0, 1)) <= 3


def test_a_map_is_enlarged_to_the_image_and_cropped():
    index = np.full((2, 3), -1)
    index[0, 1], index[1, 2] = 0, 3  # looks at the top left; at the bottom left
    hole = index >= 0
    hole[1, 1] = True  # and one has nowhere to look
    backdrop = np.full((7, 10, 3), 9, dtype=np.uint8)
    shown = maps.colour_map(maps.StageMap(3, 4, index, hole), backdrop)
    assert shown.shape == (7, 10, 3)
    assert (shown[:4, 4:8] == maps.CORNERS[0, 0]).all()
    assert (shown[4:, 8:] == maps.CORNERS[1, 0]).all()
    assert (shown[4:, 4:8] == 64).all()
    assert (shown[:4, :4] == 9).all()
    assert (shown[:, 8:][:4] == 9).all()


def test_opacity_mixes_with_the_backdrop():
    stage = maps.StageMap(1, 1, np.array([[-1, 0]]), np.array([[False, True]]))
    shown = maps.colour_map(stage, np.zeros((1, 2, 3), dtype=np.uint8), opacity=0.5)
    assert shown[0, 1].tolist() == np.rint(maps.CORNERS[0, 0] / 2).tolist()


# ---- the command ---------------------------------------------------------------------------------------------------


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


def test_without_weights_the_demos_are_used_and_said_so(files, capsys):
    arguments = [str(files / name) for name in ("image.png", "mask.png")]
    assert cli.main(["attention-map", *arguments, "-o", str(files / "map.png"), "--device", "cpu"]) == 0
    assert "note: the demo's weights" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["attention-map", "evaluate"])
def test_help_and_wrong_usage_do_not_wait_for_torch(command):
    code = f"""
import sys
from msa_model.cli import main
for arguments in (["{command}", "--help"], ["{command}", "--nonsense"]):
    try:
        main(arguments)
    except SystemExit as exit:
        print(exit.code)
heavy = {{"torch", "torchmetrics", "cv2", "skimage", "matplotlib"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Figs. 8" in done.stdout or "Table 4" in done.stdout
    assert "usage:" in done.stderr
