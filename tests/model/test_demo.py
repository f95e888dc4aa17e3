"""The demo's parts, and the demo itself in two steps."""

import numpy as np
import torch

from msa_model import demo
from msa_model.losses import hole_total_variation, reconstruction_loss


def test_psnr_counts_hole_pixels_only():
    truth, mask = torch.zeros(1, 3, 2, 2), torch.tensor([[[[1, 1], [1, 0]]]])
    result = torch.full_like(truth, 9.0)
    result[..., 1, 1] = 0.1
    assert abs(demo.hole_psnr(result, truth, mask) - 20.0) < 1e-4


def test_mean_colour_is_that_of_the_valid_pixels():
    image = torch.tensor([[0.2, 0.4], [0.6, 100.0]]).expand(1, 3, 2, 2)
    mask = torch.tensor([[[[1, 1], [1, 0]]]])
    filled = demo.mean_colour_fill(image, mask)
    assert torch.allclose(filled[..., 1, 1], torch.tensor(0.4))
    assert torch.equal(filled[..., 0, :], image[..., 0, :])


def test_loss_weighs_hole_valid_and_variation():
    truth, mask = torch.zeros(1, 3, 2, 2), torch.tensor([[[[1, 0], [1, 0]]]])
    prediction = torch.tensor([0.5, 1.0]).expand(1, 3, 2, 2)
    # Means over the whole tensor: hole 1.0/2, valid 0.5/2. The composite is (0, 1) in every row: horizontally one
    # difference of 1, vertically none.
    assert torch.isclose(hole_total_variation(torch.where(mask != 0, truth, prediction), mask != 0), torch.tensor(1.0))
    assert torch.isclose(reconstruction_loss(prediction, truth, mask), torch.tensor(6 * 0.5 + 0.25 + 0.1 * 1.0))


def test_crops_come_from_the_photographs():
    photos = [torch.full((3, demo.SIZE + 5, demo.SIZE + 9), value) for value in (0.25, 0.75)]
    crops = demo.random_crops(photos, 16, np.random.default_rng(0))
    assert crops.shape == (16, 3, demo.SIZE, demo.SIZE)
    assert set(crops.unique().tolist()) == {0.25, 0.75}


def test_demo_writes_picture_and_weights_that_load(tmp_path, monkeypatch, capsys):
    from PIL import Image

    from msa_model import Generator

    monkeypatch.setattr(demo, "forward_times", lambda device: {"auto": 1.0, "reference": 2.0})
    demo.main(["--out", str(tmp_path), "--seconds", "60", "--steps", "2", "--device", "cpu"])
    picture = Image.open(tmp_path / "demo.png")
    assert picture.width == 4 * 2 * (demo.SIZE + 8)
    assert len(np.unique(np.asarray(picture))) > 100
    assert Generator.load(tmp_path / "demo.safetensors").config.base_width == 24
    assert "PSNR in the hole" in capsys.readouterr().out
