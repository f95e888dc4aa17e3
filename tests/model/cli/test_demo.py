"""`msa demo`, and the weights that come with the package."""

import numpy as np
import pytest
import torch
from PIL import Image

from msa_model import Generator, cli, inpaint
from msa_model.cli import demo
from msa_model.data import FIRST_HELD_OUT_FACADE, RATIO_BINS, BrushMasks, Facades
from msa_model.evaluate.fills import FILLS
from msa_model.weights import demo_weights


def test_the_weights_are_small_and_in_half_precision():
    from safetensors import safe_open

    assert demo_weights().stat().st_size < 16e6
    weights = {name for name, _ in Generator.load(demo_weights()).named_parameters()}
    with safe_open(demo_weights(), "pt") as file:
        assert {file.get_tensor(name).dtype for name in weights} == {torch.float16}


@pytest.mark.parametrize("ratio", RATIO_BINS)
def test_the_weights_beat_the_classical_fills_on_facades_they_never_saw(ratio):
    """As the model card's table, on fewer facades."""
    generator = Generator.load(demo_weights())
    facades, masks = Facades(128, 6, FIRST_HELD_OUT_FACADE), BrushMasks(ratio)
    error = dict.fromkeys(["ours", "telea", "navier-stokes", "biharmonic"], 0.0)
    for index in range(len(facades)):
        truth, valid = facades.load(index), masks.load(index, None, 128, 128)
        for name in error:
            fill = FILLS.get(name, lambda t, v: np.asarray(inpaint(generator, Image.fromarray(t), Image.fromarray(~v))))
            error[name] -= demo.hole_psnr(fill(truth, valid), truth, valid)
    assert min(error, key=error.get) == "ours", error


def test_psnr_counts_hole_pixels_only():
    truth, valid = np.zeros((2, 2, 3), np.uint8), np.array([[True, True], [True, False]])
    result = np.full_like(truth, 200)
    result[1, 1] = 51  # a fifth of 255: -20 log10(1/5)
    assert abs(demo.hole_psnr(result, truth, valid) - 13.979) < 1e-3


def test_demo_writes_its_pictures_and_figures(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "forward_times", lambda device: {"auto": 1.0, "reference": 2.0})
    assert cli.main(["demo", "--out", str(tmp_path), "--device", "cpu"]) == 0
    picture = Image.open(tmp_path / "demo.png")
    assert picture.width == 4 * (2 * demo.SIZE + 8) + 8
    assert len(np.unique(np.asarray(picture))) > 100
    assert Image.open(tmp_path / "attention-map.png").width > 256
    printed = capsys.readouterr().out
    assert "this network" in printed
    assert "2000 ms on reference operators (2.00 x)" in printed
