"""Checkpoints: whole or not at all, and clear about what is wrong."""

import errno
import os
import shutil

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


def write_marked(folder, value=1.0):
    """Writes as this version does: state.pt knows that there are checksums."""
    write(folder, value)
    torch.save({"step": value, "checksums": True}, folder / "state.pt")


def three(tmp_path):
    for step in (1, 2, 3):
        checkpoints.save(tmp_path, step, lambda folder, step=step: write_marked(folder, float(step)), keep=3)
    return [checkpoints.path_of(tmp_path, step) for step in (1, 2, 3)]


@pytest.mark.parametrize("name", ["state.pt", "generator.safetensors", "checksums.json"])
def test_a_flipped_bit_is_refused_with_the_newest_intact_checkpoint(tmp_path, name):
    first, second, third = three(tmp_path)
    assert checkpoints.check(third)
    content = bytearray((third / name).read_bytes())
    for place in range(0, len(content), max(1, len(content) // 40)):
        content[place] ^= 4
        (third / name).write_bytes(content)
        with pytest.raises(checkpoints.CheckpointError) as caught:
            checkpoints.check(third)
        wanted = f"{third} is damaged: {name} is not what was written; remove it to continue from {second}"
        assert str(caught.value) == wanted or name == "checksums.json"
        content[place] ^= 4
    (second / name).write_bytes(b"")
    (third / name).unlink()
    read = checkpoints.load_state if name == "checksums.json" else checkpoints.check
    with pytest.raises(checkpoints.CheckpointError) as caught:
        read(third)
    advice = f"remove step-00000003 and step-00000002 to continue from {first}"
    assert str(caught.value) == f"{third} is damaged: {name} is missing; {advice}"


def test_files_of_another_step_are_refused(tmp_path):
    _, second, third = three(tmp_path)
    shutil.copyfile(second / "generator.safetensors", third / "ema.safetensors")
    with pytest.raises(
        checkpoints.CheckpointError, match=r"damaged: ema\.safetensors was added later; .*step-00000002"
    ):
        checkpoints.check(third)
    shutil.rmtree(third)
    second.rename(third)
    with pytest.raises(checkpoints.CheckpointError, match=r"written as the checkpoint of step 2; .*step-00000001"):
        checkpoints.check(third)
    (third / "checksums.json").unlink()
    torch.save({"step": 2.0}, third / "state.pt")  # as an older version wrote it
    assert not checkpoints.check(third)
    with pytest.raises(checkpoints.CheckpointError, match=r"damaged: state\.pt is of step 2\.0"):
        checkpoints.load_state(third)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    *_, third = three(tmp_path)
    for name in ("state.pt", "checksums.json"):
        (third / name).unlink()
        os.mkfifo(third / name)
        with pytest.raises(checkpoints.CheckpointError, match=f"{name} cannot be read .*not a regular file"):
            checkpoints.check(third)
    (third / "checksums.json").unlink()
    with pytest.raises(checkpoints.CheckpointError, match=r"state\.pt cannot be read \(not a regular file\)"):
        checkpoints.load_state(third)


def test_later_checkpoints_do_not_take_the_place_of_the_one_that_was_written(tmp_path):
    three(tmp_path)
    assert checkpoints.save(tmp_path, 2, write, keep=1).is_dir()
    assert checkpoints.steps_in(tmp_path) == [2, 3]


def test_a_checkpoint_is_removed_under_another_name(tmp_path, monkeypatch):
    three(tmp_path)
    seen = []
    rmtree = shutil.rmtree

    def die(path, **options):
        seen.append(os.path.basename(path))
        if os.path.exists(path):
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints.shutil, "rmtree", die)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(tmp_path, 4, write, keep=1)
    assert seen[-1] == ".step-00000001.old"
    assert checkpoints.steps_in(tmp_path) == [2, 3, 4]
    monkeypatch.setattr(checkpoints.shutil, "rmtree", rmtree)
    (tmp_path / ".step-00000009.part").mkdir()
    (tmp_path / ".mine.old").mkdir()
    checkpoints.clean(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == [".mine.old"]


def test_another_architecture_is_described():
    network = nn.Conv2d(2, 3, 1)
    message = (
        r"run's generator is of another architecture: missing: bias; unknown: extra; "
        r"of another shape: weight \(1,\) \(wanted \(3, 2, 1, 1\)\)"
    )
    with pytest.raises(checkpoints.CheckpointError, match=message):
        checkpoints.fit(network, {"weight": torch.zeros(1), "extra": torch.zeros(1)}, "run's generator")
