"""The attack with hostile files of weights finds planted faults, and its files are good where they are not changed."""

import json
import os
import signal
import time

import numpy as np
import pytest
import torch

from msa_model import Generator
from msa_model.nn import generator_config, state_dicts

from . import boxed, campaign, weights


def failure(case, most=60):
    """Runs cases until one fails; returns its error."""
    for number in range(most):
        try:
            campaign.run_case(case, 0, number)
        except AssertionError as error:
            return str(error)
    return ""


@pytest.mark.parametrize("number", range(len(weights._OPTIONS)))
def test_an_unchanged_file_loads(tmp_path, number):
    config, tensors = weights.honest(number)
    (tmp_path / "weights.safetensors").write_bytes(weights.safetensors(json.dumps(config), tensors))
    weights.loaded(tmp_path / "weights.safetensors", tensors)
    generator = Generator.load(tmp_path / "weights.safetensors")
    assert generator.state_dict().keys() == tensors.keys()


def test_a_network_that_is_built_before_its_tensors_are_compared(tmp_path, monkeypatch):
    """A configuration of a large network with the tensors of a small one."""
    config, tensors = weights.honest(0)
    path = tmp_path / "weights.safetensors"
    path.write_bytes(weights.safetensors(json.dumps(config | {"base_width": 1000, "depth": 5}), tensors))
    weights.loaded(path, None)

    def build_first(who, *others):
        Generator(base_width=100_000, depth=2, attention_levels=())
        return "built"

    monkeypatch.setattr(state_dicts, "differences", build_first)
    with pytest.raises(AssertionError, match="traceback"):
        weights.loaded(path, None)


def config_case(rng, folder):
    config, tensors = weights.honest(int(rng.integers(6)))
    path = folder / "weights.safetensors"
    path.write_bytes(weights.safetensors(weights.hostile_config(rng, config), tensors))
    weights.loaded(path, tensors)


def test_a_configuration_that_is_believed(monkeypatch):
    monkeypatch.setattr(generator_config.GeneratorConfig, "__post_init__", lambda self: None)
    assert failure(config_case)


def tensors_case(rng, folder):
    config, tensors = weights.honest(0)
    tensors = weights.hostile_tensors(rng, tensors)
    path = folder / "weights.safetensors"
    path.write_bytes(weights.safetensors(json.dumps(config), tensors))
    weights.loaded(path, tensors)


def test_tensors_that_are_not_compared(monkeypatch):
    monkeypatch.setattr(state_dicts, "differences", lambda *arguments: "")
    assert "traceback" in failure(tensors_case)


def pickle_case(rng, folder):
    path = folder / "weights.safetensors"
    path.write_bytes(weights.pickles(rng))
    weights.pickled(rng, path)


def test_code_in_a_pickle(monkeypatch):
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda file, **options: load(file, map_location="cpu", weights_only=False))
    assert "got 99" in failure(pickle_case)


def test_a_load_that_takes_memory_hangs_or_crashes():
    with pytest.raises(AssertionError, match=r"(?s)traceback.*MemoryError"):
        boxed.run(lambda: len(np.ones(1 << 30)), memory=1 << 30)
    with pytest.raises(AssertionError, match="wanted an end"):
        boxed.run(lambda: time.sleep(60), seconds=0.2)
    with pytest.raises(AssertionError, match="killed by signal 9"):
        boxed.run(lambda: os.kill(os.getpid(), signal.SIGKILL))
