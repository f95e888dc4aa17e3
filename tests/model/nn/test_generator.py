"""The generator against Tables 1 and 2, its masks, sizes and files."""

import pytest
import torch
from torch import nn

from msa_model import Generator, free_form_mask
from msa_model.nn.attention_block import AttentionBlock

TINY = dict(base_width=4, depth=4, attention_levels=(3, 2))


def example(n=2, h=48, w=40, hole=0.3, seed=0):
    torch.manual_seed(seed)
    return torch.rand(n, 3, h, w), torch.rand(n, 1, h, w) > hole


def test_layers_are_those_of_table_2():
    generator = Generator()
    found = [
        (layer.conv.kernel_size[0], layer.conv.stride[0], layer.conv.padding[0], layer.conv.weight.shape[1::-1])
        for layer in generator.encoder
    ]
    assert found == [
        (7, 2, 3, (3, 64)),
        (5, 2, 2, (64, 128)),
        (5, 2, 2, (128, 256)),
        (3, 2, 1, (256, 512)),
        *[(3, 2, 1, (512, 512))] * 4,
    ]
    widths = {level: tuple(layer.conv.weight.shape[1::-1]) for level, layer in generator.decoder.items()}
    assert widths == {
        **{str(level): (1024, 512) for level in (8, 7, 6, 5)},
        "4": (768, 256),
        "3": (384, 128),
        "2": (192, 64),
        "1": (67, 3),
    }
    assert all(layer.conv.bias is not None for layer in [*generator.encoder, *generator.decoder.values()])
    normed = [isinstance(layer.norm, nn.BatchNorm2d) for layer in [*generator.encoder, *generator.decoder.values()]]
    assert normed == [False, *[True] * 14, False]
    assert list(generator.attention) == ["4", "3"]
    assert sum(p.numel() for p in generator.parameters()) == 33_686_356


@pytest.mark.parametrize("variant", ["paper", "released"])
@pytest.mark.parametrize("mask_reduction", ["nearest", "all_valid"])
def test_fused_and_reference_operators_agree_in_outputs_and_gradients(variant, mask_reduction):
    torch.manual_seed(1)
    fused = Generator(**TINY, variant=variant, mask_reduction=mask_reduction).double()
    plain = Generator(**TINY, variant=variant, mask_reduction=mask_reduction, backend="reference").double()
    plain.load_state_dict(fused.state_dict())
    image, mask = example()
    outputs = [network(image.double(), mask) for network in (fused, plain)]
    torch.testing.assert_close(*outputs, rtol=1e-9, atol=1e-9)
    for output in outputs:
        output.square().sum().backward()
    for (name, ours), theirs in zip(fused.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=1e-8, msg=name)


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (17, 1), (16, 16), (33, 47)])
def test_any_size_is_accepted(size):
    generator = Generator(**TINY).eval()
    image, mask = example(1, *size)
    with torch.no_grad():
        output = generator(image, mask)
    assert output.shape == image.shape
    assert torch.isfinite(output).all()


@pytest.mark.parametrize("fill", [0, 1])
def test_all_hole_and_no_hole_give_finite_gradients(fill):
    generator = Generator(**TINY)
    image, _ = example(2, 32, 32)
    generator(image, torch.full((2, 1, 32, 32), float(fill))).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in generator.parameters())


def test_values_in_holes_do_not_change_the_prediction():
    generator = Generator(**TINY).eval()
    image, mask = example()
    with torch.no_grad():
        expected = generator(image, mask)
        for junk in (float("nan"), float("inf"), 1e9):
            assert torch.equal(generator(torch.where(mask, image, junk), mask), expected)


def test_padding_is_hole_so_a_crop_of_a_padded_image_is_the_same():
    generator = Generator(**TINY | dict(attention_levels=())).eval()
    image, mask = example(1, 30, 27)
    wide_image, wide_mask = torch.zeros(1, 3, 32, 32), torch.zeros(1, 1, 32, 32, dtype=torch.bool)
    wide_image[..., :30, :27], wide_mask[..., :30, :27] = image, mask
    with torch.no_grad():
        assert torch.equal(generator(image, mask), generator(wide_image, wide_mask)[..., :30, :27])


def test_stage_masks_are_the_images_own_mask_reduced():
    mask = torch.ones(1, 1, 8, 8, dtype=torch.bool)
    mask[..., 1, 1] = False  # not on the nearest grid of factor 4
    nearest = Generator(**TINY)._stage_mask(mask, 4)
    strict = Generator(**TINY, mask_reduction="all_valid")._stage_mask(mask, 4)
    assert nearest.all()
    assert strict.flatten().tolist() == [False, True, True, True]


def test_one_value_per_channel_cannot_be_trained_on():
    generator = Generator(**TINY)
    with pytest.raises(ValueError, match="single value per channel"):
        generator(*example(1, 16, 16))
    generator(*example(2, 16, 16))
    generator.eval()(*example(1, 16, 16))


def test_one_value_per_channel_trains_on_frozen_statistics():
    generator = Generator(**TINY)
    for module in generator.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    generator(*example(1, 16, 16)).sum().backward()
    assert generator.encoder[0].conv.weight.grad.isfinite().all()


def test_autocast_and_channels_last_keep_the_prediction():
    generator = Generator(**TINY).eval().to(memory_format=torch.channels_last)
    image, mask = example()
    with torch.no_grad():
        exact = generator(image, mask)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = generator(image.contiguous(memory_format=torch.channels_last), mask)
    assert (rounded.float() - exact).abs().max() < 0.05 * exact.abs().max()


def test_save_and_load_keep_configuration_weights_and_buffers(tmp_path):
    generator = Generator(**TINY, scale=5.0, renormalize=True)
    generator(*example())  # moves the batch norm statistics
    path = tmp_path / "generator.safetensors"
    generator.save(path)
    again = Generator.load(path)
    assert again.config == generator.config
    assert not again.training
    for name, value in generator.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    assert Generator.load(path, backend="reference").config.backend == "reference"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_weights_saved_in_half_precision_load_as_float32_with_their_statistics_exact(tmp_path):
    generator = Generator(**TINY)
    generator(*example())
    whole, half = tmp_path / "whole.safetensors", tmp_path / "half.safetensors"
    generator.save(whole)
    generator.save(half, dtype=torch.float16)
    assert half.stat().st_size < 0.6 * whole.stat().st_size
    again = Generator.load(half)
    for name, weight in again.named_parameters():
        assert torch.equal(weight, generator.get_parameter(name).half().float()), name
    for name, statistic in again.named_buffers():
        assert torch.equal(statistic, generator.get_buffer(name)), name


def test_load_names_what_is_wrong(tmp_path):
    from safetensors.torch import save_file

    with pytest.raises(FileNotFoundError, match="no weights at"):
        Generator.load(tmp_path / "missing.safetensors")
    junk = tmp_path / "junk.safetensors"
    junk.write_bytes(b"not a safetensors file")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        Generator.load(junk)
    foreign = tmp_path / "foreign.safetensors"
    save_file({"x": torch.zeros(1)}, foreign)
    with pytest.raises(ValueError, match=r"was not written by Generator\.save"):
        Generator.load(foreign)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base_width": 0}, "base_width must be positive"),
        ({"depth": 1}, "depth must be between"),
        ({"variant": "other"}, "variant must be 'paper' or 'released'"),
        ({"mask_reduction": "max"}, "mask_reduction must be"),
        ({"depth": 4, "attention_levels": (5,)}, "attention_levels must be decoder levels between 2 and depth=4"),
    ],
)
def test_impossible_configurations_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Generator(**options)


def test_inputs_that_do_not_fit_are_refused():
    generator = Generator(**TINY)
    with pytest.raises(ValueError, match=r"image must have shape \(N, 3, H, W\), got \(2, 4, 8, 8\)"):
        generator(torch.rand(2, 4, 8, 8), torch.ones(2, 1, 8, 8))
    with pytest.raises(ValueError, match=r"mask must have shape \(2, 1, 8, 8\)"):
        generator(torch.rand(2, 3, 8, 8), torch.ones(1, 1, 8, 8))


def test_attention_block_follows_its_equations():
    torch.manual_seed(0)
    block = AttentionBlock(4, se_ratio=0.5)
    x, mask = torch.randn(2, 4, 6, 5), torch.rand(2, 1, 6, 5) > 0.4
    both = torch.cat([x, block.attention(x, mask)], 1)
    first, _, second, _ = block.squeeze_excitation.blocks
    weights = torch.sigmoid(second(torch.relu(first(both.mean((2, 3))))))
    torch.testing.assert_close(block(x, mask), block.combiner(both * weights[:, :, None, None]))
    assert first.weight.shape == (4, 8)


@pytest.mark.parametrize("ratio", [(0.01, 0.1), (0.1, 0.2), (0.3, 0.4), (0.5, 0.6)])
def test_brush_masks_hit_the_ratio_and_follow_the_seed(ratio):
    masks = [free_form_mask(96, 128, ratio, seed) for seed in range(20)]
    for mask in masks:
        assert mask.shape == (1, 96, 128)
        assert ratio[0] <= 1 - mask.float().mean().item() <= ratio[1]
    assert torch.equal(masks[3], free_form_mask(96, 128, ratio, 3))
    assert not torch.equal(masks[3], masks[4])
    with pytest.raises(ValueError, match="ratio must be"):
        free_form_mask(8, 8, (0.5, 0.4))
