"""Only devices with a known name that the machine has are taken."""

import pytest
import torch

from msa_model import devices


@pytest.mark.parametrize("name", ["auto", "cpu", "cuda", "cuda:0", "cuda:12"])
def test_known_names(name):
    assert devices.device_name(name) == name


@pytest.mark.parametrize(
    "name", ["tpu", "", "CPU", "cpu:0", "cuda:", "cuda:-1", "cuda:٣", "cuda:1000", "cpu\n", "meta"]
)
def test_other_names_are_refused(name):
    for read in (devices.device_name, devices.find_device):
        with pytest.raises(ValueError, match=r"must be auto, cpu, cuda or cuda:i, got "):
            read(name)


def test_absent_devices_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert devices.find_device("auto") == devices.find_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match=r"torch finds no GPU|built without CUDA"):
        devices.find_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices.find_device("auto") == torch.device("cuda")
    assert devices.find_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(ValueError, match="there are only 2 GPUs, counted from 0"):
        devices.find_device("cuda:2")
