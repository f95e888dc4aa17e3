"""`msa evaluate`: what it writes, and every wrong argument."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import msa_model
from msa_model import cli
from msa_model.cli.evaluate import METHODS
from msa_model.evaluate import learned_metrics, report
from msa_model.evaluate.fills import FILLS

SIZE = 64


def noise(seed=0, size=SIZE):
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def hole(rows, size=SIZE):
    """The top rows are hole."""
    valid = np.ones((size, size), dtype=bool)
    valid[:rows] = False
    return valid


@pytest.fixture(scope="module")
def alexnet(tmp_path_factory):
    """A file of random weights in torchvision's layout."""
    torch.manual_seed(1)
    weights = nn.Sequential(*learned_metrics._alexnet()[0]).state_dict()
    path = tmp_path_factory.mktemp("backbone") / "alex.pth"
    torch.save({f"features.{key}": tensor for key, tensor in weights.items()}, path)
    return path


@pytest.fixture
def no_plot(monkeypatch):
    """Leaves out the plot, which takes most of the time of a small evaluation."""
    monkeypatch.setattr(report, "_plot", lambda rows, protocols, paper: b"")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    msa_model.Generator(base_width=4, depth=4).save(path)
    return path


def run(*arguments):
    return cli.main(["evaluate", *map(str, arguments), "--device", "cpu"])


def test_synthetic_facades_and_brush(tmp_path, weights, capsys):
    arguments = ("--synthetic", 2, "--size", SIZE, "--bins", "10-20", "50-60", "--weights", weights)
    assert run(*arguments, "-o", tmp_path / "a") == 0
    said = capsys.readouterr()
    assert "holes 10-20%, 2 images" in said.out
    assert "(R, G, B) applied to (B, G, R)" in said.out  # the oddity of the paper's script is mentioned
    assert said.err == "" or "evaluate" in said.err  # a progress bar
    content = json.loads((tmp_path / "a/evaluation.json").read_text())
    methods = ["mean-colour", "telea", "navier-stokes", "biharmonic", "tiny"]
    assert [(row["method"], row["low"]) for row in content["results"]] == [
        (m, low) for low in (0.1, 0.5) for m in methods
    ]
    assert content["arguments"]["seed"] == 0
    assert content["paper_table_4"] == []
    with open(tmp_path / "a/evaluation.csv") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 2 * 2 * 5
    by_key = {(row["method"], row["low"]): row for row in content["results"]}
    for line in lines:
        row = by_key[line["method"], float(line["low"])]
        assert float(line["psnr"]) == row["figures"][line["protocol"]]["psnr"]
        assert int(line["images"]) == 2
    with Image.open(tmp_path / "a/evaluation.png") as plot:
        assert min(plot.size) > 500

    def figures(folder):
        rows = json.loads((folder / "evaluation.json").read_text())["results"]
        return [(row["method"], row["low"], row["figures"]) for row in rows]

    assert run(*arguments, "-q", "-o", tmp_path / "b") == 0
    assert figures(tmp_path / "a") == figures(tmp_path / "b")
    assert run(*arguments, "-q", "-o", tmp_path / "c", "--seed", 1) == 0
    assert figures(tmp_path / "a") != figures(tmp_path / "c")


@pytest.fixture
def folders(tmp_path):
    """Two images of other sizes and three masks, holes 15 %, 15 % and all."""
    (tmp_path / "images/sub").mkdir(parents=True)
    (tmp_path / "masks").mkdir()
    Image.fromarray(noise(1, 100)).save(tmp_path / "images/a.png")
    Image.fromarray(noise(2, 150)).save(tmp_path / "images/sub/b.jpg")
    for name, rows in (("1", 15), ("2", 15), ("3", 100)):
        Image.fromarray(~hole(rows, 100)).save(tmp_path / f"masks/{name}.png")
    return tmp_path


def in_folders(folders, *arguments):
    given = ("--images", folders / "images", "--masks", folders / "masks", "--methods", "telea", "--size", SIZE)
    return run(*given, "-o", folders / "out", *arguments)


def test_folders_with_the_figures_of_the_paper(folders, capsys, alexnet):
    assert in_folders(folders, "--dataset", "celeba", "--lpips", alexnet) == 0
    out, err = capsys.readouterr()
    assert "holes 10-20%, 2 images" in out
    assert "holes 30-40%, " not in out
    assert "note: no mask with holes of 30-40%" in err
    assert "note: 1 of 3 masks left out" in err
    assert "LPIPS" in out
    line = next(line for line in out.splitlines() if "Table 4: Ours" in line)
    assert line.split()[-3:] == ["32.42", "0.9529", "0.00630"]
    content = json.loads((folders / "out/evaluation.json").read_text())
    assert content["results"][0]["lpips"] > 0
    assert content["paper_table_4"][3]["figures"]["psnr"] == 32.42


def test_masks_and_images_that_cannot_be_read_are_named(folders, capsys, no_plot):
    (folders / "images/broken.png").write_text("no image")
    (folders / "masks/broken.png").write_text("no mask")
    assert in_folders(folders) == 1
    said = capsys.readouterr()
    errors = [line for line in said.err.splitlines() if "error:" in line]
    assert len(errors) == 2
    assert "masks/broken.png" in errors[0]
    assert "images/broken.png" in errors[1]
    assert "holes 10-20%, 2 images" in said.out


def test_invert_mask(folders, capsys, no_plot):
    assert in_folders(folders, "--invert-mask", "--bins", "80-90") == 0
    assert "holes 80-90%, 2 images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--weights", "gone.safetensors"), 1, "gone.safetensors: no such weights file"),
        (("--weights", "{folder}/images/a.png"), 1, "cannot be loaded as weights"),
        (("--images", "{folder}/gone"), 1, "gone: no such folder of images"),
        (("--masks", "{folder}/gone"), 1, "gone: no such folder of masks"),
        (("--images", "{folder}/empty"), 1, "empty: is empty, without image"),
        (("--masks", "{folder}/empty"), 1, "empty: is empty, without mask"),
        (("--bins", "40-50"), 1, "none of the 3 masks has a share of hole pixels in any of the ranges"),
        (("--methods",), 2, "nothing to measure: give --weights FILE (or demo) or --methods"),
        (("--size", "50"), 2, "SSIM window of 51x51 pixels, which does not fit into the images; use --size 51"),
        (("--size", "10", "--protocols", "standard"), 2, "SSIM window of 11x11"),
        (("--dataset", "synthetic"), 2, "--dataset synthetic goes with --synthetic N"),
        (("--lpips", "gone.pth"), 1, "--lpips gone.pth: no such weights file; nothing is downloaded"),
        (("--lpips", "{folder}/images/a.png"), 1, "is not a file of weights that torch.load reads"),
        (("-o", "{folder}/images/a.png"), 1, "cannot write there"),
    ],
)
def test_one_clear_message(folders, capsys, arguments, code, said):
    (folders / "empty").mkdir()
    assert in_folders(folders, *(text.format(folder=folders) for text in arguments)) == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("msa evaluate: error: ")
    assert said in lines[0]
    assert not list((folders / "out").glob("*")) if (folders / "out").exists() else True


def test_the_methods_are_all_classical_fills():
    assert tuple(FILLS) == METHODS


def test_fid_without_torch_fidelity_says_so(folders, capsys, monkeypatch):
    import torchmetrics.image.fid

    monkeypatch.setattr(torchmetrics.image.fid, "_TORCH_FIDELITY_AVAILABLE", False)
    (folders / "inception.pth").touch()
    assert in_folders(folders, "--fid", folders / "inception.pth") == 1
    assert "pip install torch-fidelity" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--images", "a", "--synthetic", "3"), "not allowed with"),
        ((), "one of the arguments --images --synthetic is required"),
        (("--synthetic", "0"), "must be a whole number of at least 1"),
        (("--synthetic", "2", "--seed=-1"), "must be a whole number of at least 0"),
        (("--synthetic", "2", "--bins", "20-10"), "must be LOW-HIGH in percent"),
        (("--synthetic", "2", "--methods", "magic"), "invalid choice"),
    ],
)
def test_wrong_usage(arguments, said, capsys):
    with pytest.raises(SystemExit) as exit_:
        run(*arguments, "-o", "out")
    assert exit_.value.code == 2
    assert said in capsys.readouterr().err


def test_weights_with_equal_names_are_told_apart(folders, weights, tmp_path, no_plot):
    (tmp_path / "other").mkdir()
    torch.manual_seed(1)
    msa_model.Generator(base_width=4, depth=4).save(tmp_path / "other/tiny.safetensors")
    assert in_folders(folders, "-q", "--methods", "--weights", weights, tmp_path / "other/tiny.safetensors") == 0
    rows = json.loads((folders / "out/evaluation.json").read_text())["results"]
    assert sorted(row["method"] for row in rows) == sorted(
        str(path.with_suffix("")) for path in (weights, tmp_path / "other/tiny.safetensors")
    )
