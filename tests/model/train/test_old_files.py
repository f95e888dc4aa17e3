"""Weights, configurations and checkpoints that version 0.1 wrote: they load.

The files in `tests/model/data/written_by_0_1` were written by the code of version 0.1, with a discriminator of width 1.
"""

import dataclasses
import functools
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file

from msa_model import Discriminator, Generator
from msa_model.train import checkpoints, trainer
from msa_model.train.config import parse
from msa_model.train.run import run

from .tiny import assert_same

FILES = Path(__file__).parents[1] / "data" / "written_by_0_1"


def test_weights_give_the_predictions_that_they_gave():
    generator = Generator.load(FILES / "generator.safetensors")
    assert dataclasses.astuple(generator.config)[:5] == (2, 3, "released", (3, 2), 5.0)
    assert generator.config.mask_reduction == "all_valid"
    case = load_file(FILES / "prediction.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(generator(case["image"], case["mask"]), case["prediction"], rtol=1e-4, atol=1e-4)


def test_a_configuration_file_has_the_values_that_it_had():
    config = parse(["--config", str(FILES / "config.yaml")])
    assert json.loads(json.dumps(dataclasses.asdict(config))) == json.loads((FILES / "config.json").read_text())


def test_a_run_continues_from_its_checkpoint(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(trainer, "Discriminator", functools.partial(Discriminator, base_width=1))
    shutil.copytree(FILES / "run", tmp_path / "run")
    config = dataclasses.replace(parse(["--config", str(FILES / "config.yaml")]), out=str(tmp_path / "run"))
    resumed = trainer.Trainer(config)
    changed = resumed.resume()
    assert [line.split(":")[0] for line in changed] == ["out"]
    folder = FILES / "run" / "step-00000002"
    assert resumed.step_number == 2
    assert_same(resumed.generator.state_dict(), load_file(folder / "generator.safetensors"))
    assert_same(resumed.ema.module.state_dict(), load_file(folder / "ema.safetensors"))
    state = checkpoints.load_state(folder)
    for name, optimizer in resumed.optimizers.items():
        found, wanted = optimizer.state_dict()["state"], state["optimizers"][name]["state"]
        assert found.keys() == wanted.keys()
        for number in wanted:
            assert_same(found[number], wanted[number])

    run(dataclasses.replace(config, steps=3))
    said = capsys.readouterr().err
    assert "continuing after step 2" in said
    assert "an older version wrote this checkpoint, without checksums: damage to it would not show" in said
    assert checkpoints.steps_in(tmp_path / "run") == [2, 3]
