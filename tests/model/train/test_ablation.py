"""The ablation: every variant differs in what it says, and the command ends in a table and a picture."""

import json

import pytest
from PIL import Image

from msa_model import ablation
from msa_model.config import parse

TINY = [
    *("--preset", "synthetic", "--data.size", "32", "--generator.base_width", "4", "--generator.depth", "4"),
    *("--batch", "2", "--data.workers", "0", "--device", "cpu", "--images_every", "0", "--steps", "2"),
]


@pytest.mark.parametrize("name", ablation.VARIANTS)
def test_a_variant_differs_in_what_it_says(name):
    config = parse(["--loss.vgg", "weights.pth"])
    changed = ablation.variant(config, name)
    assert changed.out == f"runs/train/{name}"
    assert ablation.differs(config, name) == (name != "ours")
    for key, value in ablation.VARIANTS[name].items():
        part, field = key.split(".")
        assert getattr(getattr(changed, part), field) == ((4,) if value == "first" else value)


def test_the_command_trains_compares_and_says_what_it_left_out(tmp_path, capsys):
    variants = "ours,no-perceptual-no-style,no-attention,region-norm"
    assert ablation.main(["--only", variants, "--count", "3", "--shown", "2", *TINY, "--out", str(tmp_path)]) == 0
    seen = capsys.readouterr()
    assert "no-perceptual-no-style is the same as ours" in seen.err
    rows = json.loads((tmp_path / "ablation.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["ours", "no-attention", "region-norm"]
    assert all(row["images"] == 3 and row["figures"]["standard"]["psnr"] > 5 for row in rows)
    assert all(row["method"] in seen.out for row in rows)
    assert Image.open(tmp_path / "ablation.png").size == (5 * 36, 2 * 36 + 28)


def test_unknown_names_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        ablation.main(["--only", "ours,theirs", *TINY])
    assert "unknown variant 'theirs'; known are ours, adversarial-0" in capsys.readouterr().err
    assert ablation.main(["--stepz", "3", *TINY]) == 2
    assert "did you mean steps?" in capsys.readouterr().err
