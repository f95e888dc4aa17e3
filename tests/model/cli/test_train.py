"""`msa train`: its messages and exit codes."""

import os
import signal
import subprocess
import sys

import pytest

from msa_model import cli
from msa_model.train import run
from msa_model.train.errors import CheckpointError, TrainingError
from msa_model.train.trainer import Trainer

from ..train.tiny import TINY


def test_a_run_says_where_the_weights_are(tmp_path, capsys):
    assert cli.main(["train", *TINY, "--steps", "1", "--loss.adversarial", "0", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"trained 1 steps; weights: {tmp_path}/step-00000001\n"
    assert (tmp_path / "step-00000001/generator.safetensors").is_file()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--stepz", "3"], "unrecognized arguments: --stepz 3; did you mean steps?"),
        (["--steps", "0"], "steps must be at least 1, got 0"),
        (["--generator.depth", "1"], "msa_model.Generator: depth must be between 2 and 12, got 1"),
    ],
)
def test_wrong_configurations_are_wrong_usage(capsys, arguments, said):
    assert cli.main(["train", *TINY, *arguments]) == 2
    assert capsys.readouterr().err == f"msa train: error: {said}\n"


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (TrainingError("20 updates were\nnot finite"), 1, "error: 20 updates were not finite"),
        (CheckpointError("disk full"), 1, "error: disk full"),
        (ValueError("no images"), 1, "error: no images"),
        (OSError("unplugged"), 1, "error: unplugged"),
        (KeyboardInterrupt(), 130, "interrupted; checkpoints are in runs/x"),
    ],
)
def test_errors_of_a_run_are_one_line(tmp_path, monkeypatch, capsys, error, code, said):
    def stop(config):
        raise error

    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/x/step-00000001").mkdir(parents=True)
    monkeypatch.setattr(run, "run", stop)
    assert cli.main(["train", *TINY, "--out", "runs/x"]) == code
    assert capsys.readouterr().err == f"msa train: {said}\n"


def test_no_path_is_printed_that_is_gone(tmp_path, monkeypatch, capsys):
    def remove(trainer):
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "save", lambda trainer: None)
    assert cli.main(["train", *TINY, "--steps", "1", "--out", str(tmp_path)]) == 1
    assert f"trained 1 steps, but {tmp_path}/step-00000001 has been removed" in capsys.readouterr().err
    monkeypatch.setattr(Trainer, "save", remove)
    assert cli.main(["train", *TINY, "--steps", "1", "--out", str(tmp_path)]) == 130
    assert "msa train: interrupted; there is no checkpoint yet\n" in capsys.readouterr().err


#: The command, with Ctrl-C as a terminal's processes have it, also where the tests' own process ignores it.
LIKE_A_TERMINALS = (
    "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "runpy.run_module('msa_model', run_name='__main__', alter_sys=True)"
)


@pytest.mark.slow
def test_ctrl_c_ends_the_run_and_its_loaders_in_one_line(tmp_path):
    arguments = [*TINY, "--steps", "100000", "--data.workers", "2", "--out", str(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", LIKE_A_TERMINALS, "train", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    said = ""
    while "loss" not in said:
        assert process.poll() is None, said
        said += process.stderr.read(1)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to every process
    rest = process.communicate(timeout=100)[1]
    assert process.returncode == 130, rest
    assert "Traceback" not in rest
    assert rest.splitlines()[-1] == "msa train: interrupted; there is no checkpoint yet"


def test_help_lists_the_keys(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["train", "--help"])
    assert caught.value.code == 0
    said = capsys.readouterr().out
    assert "--data.hole_ratio" in said
    assert "--preset {paris,celeba,places2,synthetic}" in said
