"""The attacks on training find faults that are planted, and pass without them."""

import pytest

from msa_model.train.errors import CheckpointError

from . import campaign, checkpoints, kills, warm_training
from .file_events import Death

pytestmark = pytest.mark.slow


def found(case, number=0, tries=12):
    """The first failure of a few cases, "" if there is none."""
    for _ in range(tries):
        failures = campaign.run("test", case, number, seconds=0).failures
        if failures:
            return failures[0]
        number += 1
    return ""


def plant(monkeypatch, code):
    kills.whole("0"), kills.whole("0.9"), checkpoints.run_folder()  # without the fault
    monkeypatch.setattr(warm_training.shared(), "plant", code)


def test_cases_pass():
    for case in (kills.at_a_moment, kills.at_a_file_event, kills.two_in_one_folder, kills.afresh, checkpoints.case):
        assert not found(case, tries=1)


def test_checkpoints_that_are_not_compared_are_found(monkeypatch):
    plant(monkeypatch, "from msa_model.train import checksums; checksums.difference = lambda *_: ''")
    assert "exit code 0" in found(checkpoints.case)


def test_a_folder_without_a_lock_is_found(monkeypatch):
    plant(monkeypatch, "from msa_model.train import run\nclass Lock:\n problem = ''\n def __init__(self, folder): ...\n"
                       " def release(self): ...\nrun.FolderLock = Lock")  # fmt: skip

    def both_at_once(rng, folder):
        warm = warm_training.shared()
        command = kills.arguments(folder / "run", "0", 1, 1)
        trainings = [warm.start(command, folder / f"log-{i}") for i in range(2)]
        codes = sorted(training.wait() for training in trainings)
        assert codes == [0, 1], [codes, *(training.lines() for training in trainings)]
        return "two"

    assert "[0, 0]" in (message := found(both_at_once)) or "could not be written" in message


def test_pruning_that_leaves_half_a_checkpoint_is_found(monkeypatch, tmp_path):
    """As it was once: the folder kept its name while its files were removed one by one."""
    plant(monkeypatch, "import shutil; from msa_model.train import checkpoints\n"
                       "checkpoints._remove = lambda folder: shutil.rmtree(folder, ignore_errors=True)")  # fmt: skip
    for at in range(12, 34):  # from the end of the first checkpoint on; the second one ends the first
        run = tmp_path / str(at)
        death = Death(str(run), at, after=True)
        warm_training.shared().run(kills.arguments(run, "0", 1, 1), tmp_path / "log", death)
        try:
            kills.all_intact(run)
        except (AssertionError, CheckpointError):
            return
    pytest.fail("no half checkpoint was seen")
