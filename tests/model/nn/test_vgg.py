"""The VGG-16 features against a plain stack of convolutions, and the files that they are read from."""

import pytest
import torch
import torch.nn.functional as F

from msa_model import InpaintingLoss
from msa_model.nn.vgg import VGG16Features


def slow_features(vgg, image, normalization="imagenet"):
    """pool1 … pool3 from the weights by their torchvision names."""
    if normalization == "imagenet":
        mean, std = (torch.tensor(v, dtype=image.dtype) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
        image = (image - mean[:, None, None]) / std[:, None, None]
    weights, pools = vgg.state_dict(), []
    for block in ((0, 2), (5, 7), (10, 12, 14)):
        for i in block:
            image = F.conv2d(image, weights[f"features.{i}.weight"], weights[f"features.{i}.bias"], padding=1).clamp(0)
        pools.append(image := F.max_pool2d(image, 2))
    return pools


@pytest.fixture(scope="module")
def vgg_file(tmp_path_factory):
    """A file of torchvision's layout: more features, and a classifier, beyond what is needed."""
    torch.manual_seed(1)
    weights, width = {}, 3
    for i, next_width in {0: 64, 2: 64, 5: 128, 7: 128, 10: 256, 12: 256, 14: 256, 17: 512}.items():
        weights[f"features.{i}.weight"] = torch.randn(next_width, width, 3, 3) * (2 / (9 * width)) ** 0.5
        weights[f"features.{i}.bias"] = torch.randn(next_width) * 0.1
        width = next_width
    weights |= {"classifier.0.weight": torch.zeros(2, 3), "classifier.0.bias": torch.zeros(2)}
    path = tmp_path_factory.mktemp("vgg") / "vgg16.pth"
    torch.save(weights, path)
    return path


@pytest.mark.parametrize("normalization", ["imagenet", "none"])
def test_features_follow_from_the_weights_of_the_file(vgg_file, normalization):
    vgg = VGG16Features(vgg_file, normalization=normalization).double()
    image = torch.rand(2, 3, 19, 26, dtype=torch.double)
    pools = vgg(image)
    assert [tuple(pool.shape) for pool in pools] == [(2, 64, 9, 13), (2, 128, 4, 6), (2, 256, 2, 3)]
    weights = torch.load(vgg_file, weights_only=True)
    assert all(torch.equal(t.float(), weights[name]) for name, t in vgg.state_dict().items())
    for found, wanted in zip(pools, slow_features(vgg, image, normalization), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


def test_features_are_frozen_and_stay_in_evaluation_mode():
    loss = InpaintingLoss(VGG16Features(None)).train()
    assert not any(p.requires_grad for p in loss.parameters())
    assert not any(module.training for module in loss.vgg.modules())
    assert list(loss.vgg.state_dict()) == [
        f"features.{i}.{name}" for i in (0, 2, 5, 7, 10, 12, 14) for name in ("weight", "bias")
    ]
    image = torch.rand(1, 3, 8, 8)
    kept = image.clone()
    loss.vgg(image)
    assert torch.equal(image, kept)  # whatever happens in place


def test_wrong_vgg_files_are_named(vgg_file, tmp_path):
    where = r"wanted is torchvision's vgg16-397923af\.pth"
    with pytest.raises(FileNotFoundError, match=rf"msa_model.VGG16Features: no weights at .*missing\.pth; {where}"):
        VGG16Features(tmp_path / "missing.pth")
    junk = tmp_path / "junk.pth"
    junk.write_bytes(b"no weights at all")
    with pytest.raises(ValueError, match=rf"junk\.pth is not a file of weights that torch\.load reads .*{where}"):
        VGG16Features(junk)
    torch.save({"features.0.weight": "text"}, junk)
    with pytest.raises(ValueError, match=rf"does not hold a state dict; {where}"):
        VGG16Features(junk)
    weights = torch.load(vgg_file, weights_only=True)
    del weights["features.7.bias"]
    weights["features.0.weight"] = torch.zeros(64, 1, 3, 3)
    torch.save(weights, junk)
    wrong = (
        r"missing: features\.7\.bias; of another shape: features\.0\.weight \(64, 1, 3, 3\) \(wanted \(64, 3, 3, 3\)\)"
    )
    with pytest.raises(ValueError, match=rf"is not VGG-16's: {wrong}; {where}"):
        VGG16Features(junk)
    with pytest.raises(ValueError, match="normalization must be 'imagenet' or 'none', got 'caffe'"):
        VGG16Features(None, normalization="caffe")


class Bomb:
    def __reduce__(self):
        return (print, ("code in a weights file was run",))


def test_code_in_a_vgg_file_is_not_run(tmp_path, capfd):
    torch.save({"features.0.weight": Bomb()}, tmp_path / "bomb.pth")
    with pytest.raises(ValueError, match=r"not a file of weights"):
        VGG16Features(tmp_path / "bomb.pth")
    assert "was run" not in capfd.readouterr().out
