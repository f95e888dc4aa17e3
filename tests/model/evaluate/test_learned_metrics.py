"""LPIPS against torchmetrics, and FID against its formula."""

import numpy as np
import pytest
import torch
from torch import nn

from msa_model.evaluate import learned_metrics
from msa_model.evaluate.fills import FILLS
from msa_model.evaluate.measure import evaluate_bin

SIZE = 64
BIN = (0.1, 0.2)


def noise(seed=0, size=SIZE):
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def hole(rows, size=SIZE):
    """The top rows are hole."""
    valid = np.ones((size, size), dtype=bool)
    valid[:rows] = False
    return valid


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
    rows = evaluate_bin(
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
    (alone,) = evaluate_bin({"telea": FILLS["telea"]}, BIN, pairs[:1], protocols=["standard"], inception=Colours())
    assert alone.fid is None
