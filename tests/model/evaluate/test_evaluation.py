"""`msa evaluate`: what is measured, on which images and holes, and everything that can be wrong with the arguments."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import msa_model
from msa_model import cli, evaluation, evaluation_report, learned_metrics, metrics, paper_figures
from msa_model.evaluation_inputs import Inputs
from msa_model.fills import FILLS

SIZE = 64
BIN = (0.1, 0.2)


def noise(seed=0, size=SIZE):
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def hole(rows, size=SIZE):
    """The top rows are hole."""
    valid = np.ones((size, size), dtype=bool)
    valid[:rows] = False
    return valid


# ---- what is measured ----------------------------------------------------------------------------------------------


def test_means_over_images_of_the_composites():
    pairs = [(noise(i), hole(7 + i)) for i in range(3)]
    seen = []

    def grey(image, valid):
        seen.append((image.copy(), valid))
        return np.full_like(image, 100)  # in valid pixels too: they must not count

    rows = evaluation.evaluate_bin({"grey": grey, "mean-colour": FILLS["mean-colour"]}, BIN, pairs)
    assert [(row.method, row.low, row.high, row.images) for row in rows] == [
        ("grey", *BIN, 3),
        ("mean-colour", *BIN, 3),
    ]
    composites = [np.where(valid[..., None], truth, np.uint8(100)) for truth, valid in pairs]
    for protocol, measures in metrics.PROTOCOLS.items():
        for name, measure in measures.items():
            wanted = np.mean([measure(c, truth) for c, (truth, _) in zip(composites, pairs, strict=True)])
            assert rows[0].figures[protocol][name] == pytest.approx(wanted, rel=1e-12)
    assert all((image[~valid] == 0).all() for image, valid in seen)  # no method sees the truth


def test_results_equal_to_the_truth_are_counted_and_left_out_of_the_psnr():
    flat = np.full((SIZE, SIZE, 3), 90, dtype=np.uint8)
    (row,) = evaluation.evaluate_bin(
        {"mean-colour": FILLS["mean-colour"]}, BIN, [(flat, hole(8)), (noise(), hole(8))], protocols=["standard"]
    )
    (alone,) = evaluation.evaluate_bin(
        {"mean-colour": FILLS["mean-colour"]}, BIN, [(noise(), hole(8))], protocols=["standard"]
    )
    assert row.equal == 1
    assert row.figures["standard"]["psnr"] == alone.figures["standard"]["psnr"]
    assert row.figures["standard"]["l1"] == pytest.approx(alone.figures["standard"]["l1"] / 2)
    (none_left,) = evaluation.evaluate_bin({"mean-colour": FILLS["mean-colour"]}, BIN, [(flat, hole(8))])
    assert none_left.figures["paper"]["psnr"] is None
    assert "equal" in evaluation_report.table([none_left], ["standard", "paper"])


def test_no_pair_gives_no_row():
    assert evaluation.evaluate_bin({"mean-colour": FILLS["mean-colour"]}, BIN, []) == []


def test_a_network_fills_as_inpaint_does(small_generator):
    image, valid = noise(), hole(20)
    filled = evaluation.network_fill(small_generator)(np.where(valid[..., None], image, np.uint8(0)), valid)
    mask = Image.fromarray(~valid)
    assert np.array_equal(filled, np.asarray(msa_model.inpaint(small_generator, Image.fromarray(image), mask)))


def test_a_prediction_that_is_not_finite_is_refused(one_colour):
    with pytest.raises(FloatingPointError, match="not finite"):
        evaluation.network_fill(one_colour((0.5, float("nan"), 0.5)))(noise(), hole(8))


# ---- on what -------------------------------------------------------------------------------------------------------


class Images:
    def __init__(self, count, broken=()):
        self.count, self.broken = count, broken

    def __len__(self):
        return self.count

    def load(self, index, rng=None):
        if index in self.broken:
            raise msa_model.images.ImageFileError(f"image {index}: cannot be read")
        return noise(index)


class Masks:
    """Mask i has `rows[i]` rows of hole."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def load(self, index, rng=None, height=SIZE, width=SIZE):
        return hole(self.rows[index])


def test_masks_belong_to_the_bin_of_their_ratio_and_are_used_over_again():
    bins = [(0.0, 0.25), (0.25, 0.5), (0.75, 1.0)]
    inputs = Inputs(Images(3), Masks([16, 17, 0, 32, 48, 5]), bins, size=SIZE)
    rows = {bin_: [int((~valid[:, 0]).sum()) for _, valid in inputs.pairs(bin_)] for bin_ in bins}
    assert rows == {(0.0, 0.25): [16, 5, 16], (0.25, 0.5): [17, 32, 17], (0.75, 1.0): []}  # (low, high]
    assert [inputs.count(bin_) for bin_ in bins] == [3, 3, 0]
    assert inputs.notes == [
        "2 of 6 masks left out: their holes are in none of the ranges",
        "holes of 0-25%: 2 masks for 3 images, used over again",
        "holes of 25-50%: 2 masks for 3 images, used over again",
    ]


def test_an_unreadable_image_is_left_out_everywhere_and_named_once():
    bins = [(0.0, 0.25), (0.25, 0.5)]
    inputs = Inputs(Images(3, broken=[1]), Masks([10, 20, 11, 21, 12, 22]), bins, size=SIZE)
    for bin_, rows in zip(bins, ([10, 12], [20, 22]), strict=True):
        found = list(inputs.pairs(bin_))
        assert [int((~valid[:, 0]).sum()) for _, valid in found] == rows
        assert [np.array_equal(image, noise(i)) for (image, _), i in zip(found, (0, 2), strict=True)] == [True, True]
    assert inputs.problems == ["image 1: cannot be read"]


def test_no_mask_in_any_bin_is_an_error():
    with pytest.raises(ValueError, match="none of the 2 masks has a share of hole pixels in any of the ranges"):
        Inputs(Images(3), Masks([0, 64]), [(0.1, 0.2)], size=SIZE)


# ---- the paper's figures -------------------------------------------------------------------------------------------


def test_table_4_as_printed():
    """Spot checks, one per data set and metric."""
    assert paper_figures.table_4("paris", 0.1, 0.2)["Ours"] == {"ssim": 0.9327, "psnr": 31.08, "l1": 0.00890}
    assert paper_figures.table_4("celeba", 0.3, 0.4)["PConv"] == {"ssim": 0.8533, "psnr": 26.41, "l1": 0.02277}
    assert paper_figures.table_4("places2", 0.5, 0.6)["EdgeConnect"] == {"ssim": 0.6352, "psnr": 20.18, "l1": 0.05465}
    assert list(paper_figures.table_4("places2", 0.5, 0.6)) == ["PIC", "PConv", "EdgeConnect", "Ours"]
    assert paper_figures.table_4("paris", 0.2, 0.3) == paper_figures.table_4("synthetic", 0.1, 0.2) == {}


# ---- LPIPS and FID -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    """Random weights in torchvision's layout: name -> file."""
    folder = tmp_path_factory.mktemp("backbones")
    torch.manual_seed(1)
    for name, build in (("alex", learned_metrics._alexnet), ("vgg", learned_metrics._vgg16)):
        weights = nn.Sequential(*build()[0]).state_dict()
        content = {f"features.{key}": tensor for key, tensor in weights.items()} | {"classifier.1.bias": torch.ones(3)}
        torch.save(content, folder / f"{name}.pth")
    return folder


@pytest.mark.parametrize("name", ["alex", "vgg"])
def test_lpips_is_that_of_torchmetrics(backbones, name, monkeypatch):
    from torchmetrics.functional.image import lpips as theirs

    ours = learned_metrics.Lpips(backbones / f"{name}.pth")
    assert ours.network == name
    # torchvision's network, without torchvision.
    layers, _ = {"alex": learned_metrics._alexnet, "vgg": learned_metrics._vgg16}[name]()
    network = nn.Sequential(*layers, nn.Identity())
    network.load_state_dict(ours.features.state_dict())
    monkeypatch.setattr(theirs, "_get_tv_model_features", lambda net, pretrained: network)
    reference = theirs._LPIPS(net=name, pnet_rand=True)
    a, b = noise(1), noise(2)
    tensors = (torch.from_numpy(x.transpose(2, 0, 1))[None] / 255 for x in (a, b))
    assert ours.distance(a, b) == pytest.approx(reference(*tensors, normalize=True).item(), rel=1e-5)
    assert ours.distance(a, a) == 0


def test_lpips_files_that_do_not_fit(backbones, tmp_path):
    content = torch.load(backbones / "alex.pth")
    del content["features.3.bias"]
    torch.save(content, tmp_path / "part.pth")
    with pytest.raises(ValueError, match=r"part.pth is not torchvision's: missing: features.3.bias"):
        learned_metrics.Lpips(tmp_path / "part.pth")
    torch.save({"weight": torch.ones(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="neither AlexNet nor VGG-16"):
        learned_metrics.Lpips(tmp_path / "other.pth")
    with pytest.raises(ValueError, match="31x31 pixels is too small"):
        learned_metrics.Lpips(backbones / "alex.pth").distance(noise(size=31), noise(size=31))


class Colours(nn.Module):
    """Mean and deviation per channel: features of an image (N, 3, H, W) uint8."""

    num_features = 6

    def forward(self, images):
        pixels = images.float().flatten(2) / 255
        return torch.cat([pixels.mean(2), pixels.std(2)], dim=1)


def test_fid_is_the_distance_of_two_gaussians():
    from scipy.linalg import sqrtm

    truths = [(noise(i) * (0.3 + 0.1 * i)).astype(np.uint8) for i in range(8)]
    pairs = [(truth, hole(10 + i)) for i, truth in enumerate(truths)]
    rows = evaluation.evaluate_bin(
        {"mean-colour": FILLS["mean-colour"], "grey": lambda image, valid: np.full_like(image, 200)},
        BIN,
        pairs,
        protocols=["standard"],
        inception=Colours(),
    )
    fills = FILLS["mean-colour"], lambda image, valid: np.where(valid[..., None], image, np.uint8(200))
    for row, fill in zip(rows, fills, strict=True):
        features = []
        for images in (truths, [fill(truth, valid) for truth, valid in pairs]):
            batch = torch.from_numpy(np.stack(images).transpose(0, 3, 1, 2))
            features.append(Colours()(batch).double().numpy())
        (m1, c1), (m2, c2) = ((f.mean(0), np.cov(f.T)) for f in features)
        wanted = ((m1 - m2) ** 2).sum() + np.trace(c1 + c2 - 2 * sqrtm(c1 @ c2).real)
        assert row.fid == pytest.approx(wanted, rel=1e-3, abs=1e-6)
    (alone,) = evaluation.evaluate_bin(
        {"telea": FILLS["telea"]}, BIN, pairs[:1], protocols=["standard"], inception=Colours()
    )
    assert alone.fid is None


# ---- the command ---------------------------------------------------------------------------------------------------


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
    assert "(R, G, B) applied to (B, G, R)" in said.out  # the paper's script is odd, and the reader is told
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


def test_folders_beside_the_papers_figures(folders, capsys, backbones):
    assert in_folders(folders, "--dataset", "celeba", "--lpips", backbones / "alex.pth") == 0
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


def test_masks_and_images_that_cannot_be_read_are_named(folders, capsys):
    (folders / "images/broken.png").write_text("no image")
    (folders / "masks/broken.png").write_text("no mask")
    assert in_folders(folders) == 1
    said = capsys.readouterr()
    errors = [line for line in said.err.splitlines() if "error:" in line]
    assert len(errors) == 2
    assert "masks/broken.png" in errors[0]
    assert "images/broken.png" in errors[1]
    assert "holes 10-20%, 2 images" in said.out


def test_invert_mask(folders, capsys):
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


def test_weights_of_one_name_keep_apart(folders, weights, tmp_path):
    (tmp_path / "other").mkdir()
    torch.manual_seed(1)
    msa_model.Generator(base_width=4, depth=4).save(tmp_path / "other/tiny.safetensors")
    assert in_folders(folders, "-q", "--methods", "--weights", weights, tmp_path / "other/tiny.safetensors") == 0
    rows = json.loads((folders / "out/evaluation.json").read_text())["results"]
    assert sorted(row["method"] for row in rows) == sorted(
        str(path.with_suffix("")) for path in (weights, tmp_path / "other/tiny.safetensors")
    )
