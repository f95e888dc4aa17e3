"""The training step: losses fall, precision, steps that are not finite, fine-tuning."""

import pytest
import torch

from msa_model.train.errors import TrainingError
from msa_model.train.trainer import Trainer

from .tiny import assert_same, batch, config


def test_the_discriminator_is_that_of_table_3(monkeypatch):
    monkeypatch.undo()  # of the narrow one
    assert sum(p.numel() for p in Trainer(config("unused")).discriminator.parameters()) == 2_764_737


def test_losses_fall(tmp_path):
    trainer = Trainer(config(tmp_path, "--steps", "40"))
    image, mask = batch(4)
    totals = [trainer.step(image, mask)["total"].item() for _ in range(40)]
    assert sum(totals[-5:]) < 0.7 * sum(totals[:5])


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_steps_are_finite(tmp_path, precision):
    trainer = Trainer(config(tmp_path, "--precision", precision))
    before = trainer.generator.state_dict()["encoder.0.conv.weight"].clone()
    for _ in range(3):
        terms = trainer.step(*batch())
    assert all(torch.isfinite(term) for term in terms.values())
    assert not torch.equal(before, trainer.generator.state_dict()["encoder.0.conv.weight"])


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_step_that_is_not_finite_is_skipped_and_counted(tmp_path, precision):
    trainer = Trainer(config(tmp_path, "--max_bad_steps", "4", "--precision", precision))
    image, mask = batch()
    trainer.step(image, mask)
    before = {name: p.detach().clone() for name, p in trainer.generator.named_parameters()}
    trainer.step(image * float("nan"), mask)
    assert trainer.bad_steps == 2  # generator and discriminator
    trainer.stop_if_not_finite()
    assert_same(before, {name: p.detach() for name, p in trainer.generator.named_parameters()})
    trainer.step(image * float("nan"), mask)
    with pytest.raises(
        TrainingError, match=r"4 updates were not finite and skipped, by step 3; the terms .*valid.* were not"
    ):
        trainer.stop_if_not_finite()


def test_fine_tuning_freezes_the_statistics(tmp_path):
    first = Trainer(config(tmp_path))
    first.step(*batch())
    first.generator.save(tmp_path / "first.safetensors")
    trainer = Trainer(config(tmp_path, "--fine_tune", "true", "--init", str(tmp_path / "first.safetensors"),
                             "--lr_generator", "5e-5"))  # fmt: skip
    before = {name: t.clone() for name, t in trainer.generator.state_dict().items()}
    assert_same(before, first.generator.state_dict())
    trainer.step(*batch())
    after = trainer.generator.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before if "running" in name)
    assert not torch.equal(before["encoder.1.conv.weight"], after["encoder.1.conv.weight"])


def test_weights_of_another_generator_are_refused(tmp_path):
    Trainer(config(tmp_path)).generator.save(tmp_path / "first.safetensors")
    with pytest.raises(TrainingError, match=r"is another generator: base_width=4 \(here 8\)"):
        Trainer(config(tmp_path, "--init", str(tmp_path / "first.safetensors"), "--generator.base_width", "8"))
