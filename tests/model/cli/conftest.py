"""Files for `msa inpaint`, and a way to run it in this process."""

import pytest
from PIL import Image

from msa_model import cli
from msa_model.cli import inpaint as inpaint_command

from ..pictures import H, W, hole_mask, picture


@pytest.fixture
def generator(one_colour):
    return one_colour()


@pytest.fixture
def run(generator, monkeypatch, tmp_path, capsys):
    """Runs `msa inpaint` in this process with a known prediction; returns the exit code and the lines of stderr."""
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


@pytest.fixture
def files(tmp_path):
    """One image and its mask."""
    picture().save(tmp_path / "image.png")
    hole_mask().save(tmp_path / "mask.png")
    return tmp_path / "image.png", tmp_path / "mask.png", tmp_path / "out.png"


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
