"""Whole runs: checkpoints, resumption, folders of images."""

import pytest
import torch

from msa_model.data.facades import render_facade
from msa_model.train import checkpoints
from msa_model.train.errors import CheckpointError, TrainingError
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


def test_a_used_folder_without_resuming_is_refused_and_stays_as_it_is(tmp_path):
    run(config(tmp_path, "--steps", "2", "--save_every", "1"))
    for steps in ("1", "2", "5"):
        with pytest.raises(TrainingError) as caught:
            run(config(tmp_path, "--steps", steps, "--resume", "false"))
        assert str(caught.value) == (
            f"{tmp_path} holds checkpoints of another run, the newest of step 2, and resume is false: name another "
            "folder (--out), continue that run (--resume true), or remove its checkpoints"
        )
    assert checkpoints.steps_in(tmp_path) == [1, 2]
    run(config(tmp_path / "new", "--steps", "1", "--resume", "false"))
    assert checkpoints.steps_in(tmp_path / "new") == [1]


def test_a_damaged_checkpoint_is_never_resumed(tmp_path):
    run(config(tmp_path, "--steps", "2", "--save_every", "1"))
    file = tmp_path / "step-00000002" / "generator.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1  # in a weight
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"step-00000002 is damaged: generator\.safetensors .*step-00000001$"):
        run(config(tmp_path, "--steps", "3"))


def test_a_state_of_another_kind_is_one_line(tmp_path):
    run(config(tmp_path, "--steps", "1"))
    folder = tmp_path / "step-00000001"
    (folder / "checksums.json").unlink()
    torch.save({"step": 1, "config": "{}"}, folder / "state.pt")
    with pytest.raises(
        CheckpointError, match=r"state\.pt is not the state of such a run \(KeyError: 'optimizers'\); there"
    ):
        run(config(tmp_path, "--steps", "2"))


@pytest.mark.parametrize("device", ["tpu", "mps", "meta", "cpu:1", "cuda:x", "cuda:99", "", "CPU"])
def test_unknown_and_absent_devices_are_refused(tmp_path, monkeypatch, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(
        TrainingError, match=f"^device {device}: (must be auto, cpu, cuda or cuda:i, got|there are only 2)"
    ):
        run(config(tmp_path / "run", "--device", device))
    assert not (tmp_path / "run").exists()


def test_cuda_without_a_gpu_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device in ("cuda", "cuda:0"):
        with pytest.raises(
            TrainingError, match=f"^device {device}: (torch finds no GPU|this torch is built without CUDA)$"
        ):
            run(config(tmp_path, "--device", device))


def test_a_backend_that_cannot_run_here_is_refused_with_the_reasons(tmp_path):
    with pytest.raises(TrainingError, match=r"^msa_ops::partial_conv2d: backend 'cuda' cannot run: .*$"):
        run(config(tmp_path, "--generator.backend", "cuda", "--steps", "1"))
