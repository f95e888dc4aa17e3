"""Whole runs: checkpoints, resumption, folders of images."""

import pytest
import torch

from msa_model.data.facades import render_facade
from msa_model.train import checkpoints
from msa_model.train.errors import CheckpointError
from msa_model.train.run import run, training_data

from .tiny import batch, config, weights


def test_a_run_writes_checkpoints_that_inpaint_and_events(tmp_path):
    from msa_model import Generator

    run(config(tmp_path, "--steps", "4", "--save_every", "2", "--keep", "1", "--images_every", "2", "--ema", "0.9"))
    assert checkpoints.steps_in(tmp_path) == [4]
    assert any((tmp_path / "events").iterdir())
    folder = checkpoints.path_of(tmp_path, 4)
    for name in ("generator", "ema"):
        assert Generator.load(folder / f"{name}.safetensors")(*batch()).shape == (2, 3, 32, 32)
    latest, average = weights(tmp_path, 4), weights(tmp_path, 4, "ema")
    assert not torch.equal(latest["encoder.0.conv.weight"], average["encoder.0.conv.weight"])


def test_a_resumed_run_reports_changed_options(tmp_path, capsys):
    run(config(tmp_path, "--steps", "1"))
    run(config(tmp_path, "--steps", "1"))
    assert "not as before" not in capsys.readouterr().err
    run(config(tmp_path, "--steps", "2", "--lr_generator", "0.5", "--data.images", "[synthetic, synthetic]"))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("msa train: ")]
    assert lines == [
        "msa train: continuing after step 1",
        "msa train: not as before: data.images: synthetic, now ['synthetic', 'synthetic']",
        "msa train: not as before: lr_generator: 0.001, now 0.5",
        "msa train: not as before: steps: 1, now 2",
    ]


def test_a_run_uses_folders_and_vgg_weights(tmp_path):
    from PIL import Image

    from msa_model.data.brush import free_form_mask
    from msa_model.nn.vgg import VGG16Features

    (tmp_path / "photos").mkdir()
    (tmp_path / "masks").mkdir()
    for i in range(3):
        Image.fromarray(render_facade(64, i)).save(tmp_path / "photos" / f"{i}.jpg")
        hole = ~free_form_mask(64, 64, (0.2, 0.3), i)[0].numpy()
        Image.fromarray(hole).save(tmp_path / "masks" / f"{i}.png")
    torch.save(VGG16Features(None).state_dict(), tmp_path / "vgg.pth")
    folders = ["--data.images", str(tmp_path / "photos"), "--data.masks", str(tmp_path / "masks")]
    trainer = run(config(tmp_path / "run", *folders, "--loss.vgg", str(tmp_path / "vgg.pth"), "--steps", "2"))
    terms = trainer.step(*batch())
    assert {"perceptual", "style"} <= terms.keys()
    assert all(torch.isfinite(term) for term in terms.values())
    item = training_data(trainer.config)[0, 0]
    assert item["image"].shape == (3, 32, 32)
    assert 0.05 < 1 - item["mask"].float().mean() < 0.6  # white is hole


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path):
    run(config(tmp_path, "--steps", "1"))
    with pytest.raises(CheckpointError, match=r"generator is of another architecture: of another shape: .*wanted"):
        run(config(tmp_path, "--steps", "2", "--generator.base_width", "8"))
