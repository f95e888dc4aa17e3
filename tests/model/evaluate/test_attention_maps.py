"""Attention maps: the right places for any generator, and colours that tell places apart."""

import numpy as np
import pytest
import torch

import msa_model
from msa_model.evaluate import attention_maps as maps


def make_generator(**config):
    return msa_model.Generator(**(dict(base_width=4, depth=4, attention_levels=(3, 2)) | config)).eval()


def picture(height=64, width=64):
    """An image and its mask, 1 = valid."""
    image = torch.rand(1, 3, height, width)
    mask = torch.ones(1, 1, height, width, dtype=torch.bool)
    mask[..., height // 4 : height // 2 + 3, width // 3 : width // 3 * 2 + 1] = False
    return image, mask


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"variant": "released"},
        {"mask_reduction": "all_valid"},
        {"attention_levels": (2,)},
        {"attention_levels": (4, 3, 2), "radius": 0, "scale": 3.0, "renormalize": True},
    ],
)
@pytest.mark.parametrize(("height", "width"), [(64, 64), (50, 37), (20, 90)])
def test_every_hole_cell_looks_at_a_background_cell_of_the_image(config, height, width):
    generator = make_generator(**config)
    image, mask = picture(height, width)
    result, stages = maps.attention_maps(generator, image, mask)
    assert torch.equal(result, msa_model.inpaint(generator, image, mask))
    assert [stage.level for stage in stages] == sorted(generator.config.attention_levels, reverse=True)
    for stage in stages:
        assert stage.factor == 2 ** (stage.level - 1)
        assert stage.index.shape == stage.hole.shape == (-(-height // stage.factor), -(-width // stage.factor))
        assert stage.index.dtype == np.int64
        assert stage.hole.any()
        assert ((stage.index >= 0) == (stage.hole & ~stage.hole.all())).all()
        assert not stage.hole.flatten()[stage.index[stage.index >= 0]].any()


@pytest.mark.parametrize(("height", "width"), [(64, 64), (50, 37)])
def test_the_place_looked_at_is_the_one_whose_features_are_the_same(height, width):
    generator = make_generator(attention_levels=(3,), radius=0)
    image, mask = picture(height, width)
    cells = mask[0, 0, ::4, ::4]
    rows, columns = cells.shape
    background = cells.flatten().nonzero()[:, 0]
    wanted = background[torch.randperm(len(background))[: int((~cells).sum())]]

    def plant(block, inputs):
        features, valid = inputs
        planted = torch.zeros_like(features)
        own = torch.randn(features.shape[1], rows, columns)
        own[:, ~cells] = own.flatten(1)[:, wanted]
        planted[0, :, :rows, :columns] = own  # the rest is padding, to which no index may point
        return planted, valid

    generator.attention["3"].register_forward_pre_hook(plant)
    _, (stage,) = maps.attention_maps(generator, image, mask)
    assert stage.index[stage.hole].tolist() == wanted.tolist()


def test_without_background_no_cell_looks_anywhere():
    generator = make_generator()
    _, stages = maps.attention_maps(generator, torch.rand(1, 3, 32, 32), torch.zeros(1, 1, 32, 32))
    assert all((stage.index == -1).all() and stage.hole.all() for stage in stages)


def test_the_generator_is_left_as_it_was():
    generator = make_generator().train()
    maps.attention_maps(generator, *picture())
    assert generator.training
    assert not any(block._forward_pre_hooks for block in generator.attention.values())


def test_inputs_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="no attention stage"):
        maps.attention_maps(make_generator(attention_levels=()), *picture())
    image, mask = picture()
    with pytest.raises(ValueError, match=r"image must have shape \(1, 3, H, W\)"):
        maps.attention_maps(make_generator(), image.repeat(2, 1, 1, 1), mask.repeat(2, 1, 1, 1))


def test_green_top_left_and_pink_bottom_right():
    red, green, blue = maps.place_colours(0.0, 0.0).astype(int)
    assert green > red + 80
    assert green > blue + 80
    red, green, blue = maps.place_colours(1.0, 1.0).astype(int)
    assert red > green + 80
    assert blue > green + 80


def test_no_two_places_share_a_colour_and_neighbours_are_close():
    square = maps.legend(128, 128).astype(int)
    assert len(np.unique(square.reshape(-1, 3), axis=0)) == 128 * 128
    assert max(np.abs(np.diff(square, axis=axis)).max() for axis in (0, 1)) <= 3


def test_a_map_is_enlarged_to_the_image_and_cropped():
    index = np.full((2, 3), -1)
    index[0, 1], index[1, 2] = 0, 3  # looks at the top left; at the bottom left
    hole = index >= 0
    hole[1, 1] = True  # and one has nowhere to look
    backdrop = np.full((7, 10, 3), 9, dtype=np.uint8)
    shown = maps.colour_map(maps.StageMap(3, 4, index, hole), backdrop)
    assert shown.shape == (7, 10, 3)
    assert (shown[:4, 4:8] == maps.CORNERS[0, 0]).all()
    assert (shown[4:, 8:] == maps.CORNERS[1, 0]).all()
    assert (shown[4:, 4:8] == 64).all()
    assert (shown[:4, :4] == 9).all()
    assert (shown[:, 8:][:4] == 9).all()


def test_opacity_mixes_with_the_backdrop():
    stage = maps.StageMap(1, 1, np.array([[-1, 0]]), np.array([[False, True]]))
    shown = maps.colour_map(stage, np.zeros((1, 2, 3), dtype=np.uint8), opacity=0.5)
    assert shown[0, 1].tolist() == np.rint(maps.CORNERS[0, 0] / 2).tolist()
