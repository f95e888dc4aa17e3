"""`msa ablation`: it trains, compares, and says which variants it leaves out."""

import json

import pytest
from PIL import Image

from msa_model import cli

from ..train.tiny import TINY

TWO_STEPS = [*TINY, "--steps", "2", "--loss.adversarial", "0"]  # without the discriminator, which takes most time


def test_it_trains_compares_and_notes_what_it_left_out(tmp_path, capsys):
    variants = "ours,no-perceptual-no-style,no-attention,region-norm"
    arguments = ["--only", variants, "--count", "3", "--shown", "2", *TWO_STEPS, "--out", str(tmp_path)]
    assert cli.main(["ablation", *arguments]) == 0
    seen = capsys.readouterr()
    assert "no-perceptual-no-style is the same as ours" in seen.err
    rows = json.loads((tmp_path / "ablation.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["ours", "no-attention", "region-norm"]
    assert all(row["images"] == 3 and row["figures"]["standard"]["psnr"] > 5 for row in rows)
    assert all(row["method"] in seen.out for row in rows)
    assert Image.open(tmp_path / "ablation.png").size == (5 * 36, 2 * 36 + 28)


def test_unknown_names_are_refused(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["ablation", "--only", "ours,theirs", *TWO_STEPS])
    assert caught.value.code == 2
    assert "unknown variant 'theirs'; known are ours, adversarial-0" in capsys.readouterr().err
    assert cli.main(["ablation", "--stepz", "3", *TWO_STEPS]) == 2
    assert capsys.readouterr().err == "msa ablation: error: unrecognized arguments: --stepz 3; did you mean steps?\n"


def test_a_folder_with_longer_runs_is_refused(tmp_path, capsys):
    for steps in ("2", "1"):
        code = cli.main(
            ["ablation", "--only", "ours", "--count", "1", *TWO_STEPS, "--steps", steps, "--out", str(tmp_path)]
        )
    assert code == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"msa ablation: error: {tmp_path}/ours has 2 steps of training already, and 1 are wanted: name another folder "
        "(--out), or --steps 2"
    )
