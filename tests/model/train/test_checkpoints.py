"""Checkpoints: whole or not at all, and clear about what is wrong."""

import errno
import os

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from msa_model.train import checkpoints


def write(folder, value=1.0):
    save_file({"weight": torch.full((2, 2), value)}, folder / "generator.safetensors")
    torch.save({"step": value}, folder / "state.pt")


def test_the_newest_are_kept_and_read_back(tmp_path):
    for step in (5, 10, 15):
        checkpoints.save(tmp_path, step, lambda folder, step=step: write(folder, step), keep=2)
    assert checkpoints.steps_in(tmp_path) == [10, 15]
    assert checkpoints.load_state(checkpoints.path_of(tmp_path, 15)) == {"step": 15}
    assert checkpoints.load_weights(checkpoints.path_of(tmp_path, 10), "generator")["weight"][0, 0] == 10
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["step-00000010", "step-00000015"]


def test_a_full_disk_leaves_the_old_checkpoint_intact(tmp_path):
    checkpoints.save(tmp_path, 1, write, keep=3)

    def full(folder):
        write(folder)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(
        checkpoints.CheckpointError, match=r"step 2 could not be written .*No space left.*step-00000001"
    ):
        checkpoints.save(tmp_path, 2, full, keep=1)
    assert [entry.name for entry in tmp_path.iterdir()] == ["step-00000001"]
    assert checkpoints.load_state(checkpoints.path_of(tmp_path, 1)) == {"step": 1.0}


def test_a_crash_while_writing_leaves_no_complete_checkpoint(tmp_path):
    checkpoints.save(tmp_path, 1, write, keep=3)
    half = tmp_path / ".step-00000002.part"
    half.mkdir()
    (half / "state.pt").write_bytes(b"half")
    assert checkpoints.steps_in(tmp_path) == [1]
    checkpoints.save(tmp_path, 2, write, keep=3)
    assert checkpoints.steps_in(tmp_path) == [1, 2]
    assert not half.exists()


@pytest.mark.parametrize("name", ["state.pt", "generator.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None])
def test_a_corrupt_checkpoint_is_named_with_the_one_before(tmp_path, name, content):
    for step in (1, 2):
        checkpoints.save(tmp_path, step, write, keep=3)
    file = checkpoints.path_of(tmp_path, 2) / name
    file.write_bytes(file.read_bytes()[:-3] if content is None else content)
    read = checkpoints.load_state if name == "state.pt" else lambda path: checkpoints.load_weights(path, "generator")
    with pytest.raises(checkpoints.CheckpointError, match=f"{name} cannot be read .*continue from .*step-00000001"):
        read(file.parent)


def test_state_never_runs_code(tmp_path):
    class Payload:
        def __reduce__(self):
            return os.system, ("true",)

    checkpoints.save(tmp_path, 1, lambda folder: torch.save(Payload(), folder / "state.pt"), keep=1)
    with pytest.raises(checkpoints.CheckpointError, match="there is none before it"):
        checkpoints.load_state(checkpoints.path_of(tmp_path, 1))


def test_another_architecture_is_described():
    network = nn.Conv2d(2, 3, 1)
    message = (
        r"run's generator is of another architecture: missing: bias; unknown: extra; "
        r"of another shape: weight \(1,\) \(wanted \(3, 2, 1, 1\)\)"
    )
    with pytest.raises(checkpoints.CheckpointError, match=message):
        checkpoints.fit(network, {"weight": torch.zeros(1), "extra": torch.zeros(1)}, "run's generator")
