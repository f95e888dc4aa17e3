"""The generator with region normalisation."""

import json

import pytest
import torch
from torch import nn

from msa_model import Generator
from msa_model.nn.normalization import RegionNorm2d

TINY = dict(base_width=4, depth=4, attention_levels=(3, 2))


def images(n=2, h=48, w=40, seed=0):
    torch.manual_seed(seed)
    return torch.rand(n, 3, h, w), torch.rand(n, 1, h, w) > 0.4


def test_every_batch_norm_of_the_generator_is_replaced():
    layers = {norm: [type(m) for m in Generator(**TINY, norm=norm).modules()] for norm in ("batch", "region")}
    assert layers["batch"].count(nn.BatchNorm2d) == layers["region"].count(RegionNorm2d) == 2 * TINY["depth"] - 2
    assert nn.BatchNorm2d not in layers["region"]


@pytest.mark.parametrize("mask_reduction", ["nearest", "all_valid"])
def test_regions_are_the_mask_of_the_image_at_each_size_and_holes_stay_zero(mask_reduction):
    generator = Generator(**TINY, norm="region", mask_reduction=mask_reduction)
    image, mask = images(h=32, w=32)
    mask[..., :20, :] = False  # so that several layers still have holes
    seen = []
    for module in generator.modules():
        if isinstance(module, RegionNorm2d):
            module.register_forward_hook(lambda m, args, y: seen.append((*args, y)))
    generator(image, mask)
    scales = [4, 8, 16, 8, 4, 2]  # Encode_2 … Encode_4, Decode_4 … Decode_2
    assert len(seen) == len(scales)
    for scale, (x, known, filled, y) in zip(scales, seen, strict=True):
        assert torch.equal(known, generator._stage_mask(mask, scale))
        assert not (known & ~filled).any()  # what is known is filled
        assert not torch.where(filled, 0.0, x).any()
        assert not torch.where(filled, 0.0, y).any()
    assert not all(filled.all() for _, _, filled, _ in seen)


def test_fused_and_reference_operators_agree():
    torch.manual_seed(1)
    fused = Generator(**TINY, norm="region").double()
    plain = Generator(**TINY, norm="region", backend="reference").double()
    plain.load_state_dict(fused.state_dict())
    # The shortcut for inputs that are masked already is no shortcut in meaning.
    for layer in [*plain.encoder, *plain.decoder.values()]:
        layer.input_is_masked = layer.skip_is_masked = False
    image, mask = images()
    outputs = [network(image.double(), mask) for network in (fused, plain)]
    torch.testing.assert_close(*outputs, rtol=1e-9, atol=1e-9)
    for output in outputs:
        output.square().sum().backward()
    for (name, ours), theirs in zip(fused.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=1e-8, msg=name)


@pytest.mark.parametrize("fill", [0, 1])
@pytest.mark.parametrize("training", [True, False])
def test_all_hole_and_no_hole_give_finite_predictions_and_gradients(fill, training):
    generator = Generator(**TINY, norm="region").train(training)
    image, _ = images(h=32, w=32)
    y = generator(image, torch.full((2, 1, 32, 32), fill))
    y.sum().backward()
    assert torch.isfinite(y).all()
    assert all(torch.isfinite(p.grad).all() for p in generator.parameters() if p.grad is not None)


def test_a_single_value_at_the_bottleneck_is_refused_in_training():
    generator = Generator(**TINY, norm="region")
    with pytest.raises(ValueError, match="region norm cannot be trained on a single value per channel"):
        generator(*images(1, 16, 16))
    assert generator.eval()(*images(1, 16, 16)).shape == (1, 3, 16, 16)


def test_save_and_load_keep_the_norm_and_older_files_have_batch_norm(tmp_path):
    path = tmp_path / "generator.safetensors"
    generator = Generator(**TINY, norm="region")
    generator(*images())  # moves the statistics
    generator.save(path)
    again = Generator.load(path)
    assert again.config == generator.config
    assert torch.equal(again(*images(seed=1)), generator.eval()(*images(seed=1)))

    from safetensors import safe_open
    from safetensors.torch import save_file

    older = Generator(**TINY)
    older.save(path)
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    config = json.loads(metadata["config"])
    del config["norm"]
    save_file(tensors, path, metadata | {"config": json.dumps(config)})
    again = Generator.load(path)
    assert again.config == older.config
    assert torch.equal(again(*images(seed=1)), older.eval()(*images(seed=1)))
    with pytest.raises(ValueError, match=r"msa_model.Generator: norm must be 'batch' or 'region', got 'layer'"):
        Generator(**TINY, norm="layer")
