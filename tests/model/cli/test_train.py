"""`msa train`: its messages and exit codes."""

import pytest

from msa_model import cli
from msa_model.train import run
from msa_model.train.errors import CheckpointError, TrainingError

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
def test_errors_of_a_run_are_one_line(monkeypatch, capsys, error, code, said):
    def stop(config):
        raise error

    monkeypatch.setattr(run, "run", stop)
    assert cli.main(["train", *TINY, "--out", "runs/x"]) == code
    assert capsys.readouterr().err == f"msa train: {said}\n"


def test_help_lists_the_keys(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["train", "--help"])
    assert caught.value.code == 0
    said = capsys.readouterr().out
    assert "--data.hole_ratio" in said
    assert "--preset {paris,celeba,places2,synthetic}" in said
