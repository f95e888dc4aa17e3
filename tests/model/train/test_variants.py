"""The variants of the ablation study, and the images that they are compared on."""

import numpy as np
import pytest

from msa_model.data import BrushMasks, Facades
from msa_model.data.facades import render_facade
from msa_model.train.ablation import held_out
from msa_model.train.config import parse
from msa_model.train.variants import VARIANTS, differs, variant

from .tiny import config


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_changes_the_options_that_it_lists(name):
    config = parse(["--loss.vgg", "weights.pth"])
    changed = variant(config, name)
    assert changed.out == f"runs/train/{name}"
    assert differs(config, name) == (name != "ours")
    for key, value in VARIANTS[name].items():
        part, field = key.split(".")
        assert getattr(getattr(changed, part), field) == ((4,) if value == "first" else value)


def test_images_are_facades_that_training_never_draws_or_a_folders(tmp_path):
    first, second = held_out(config("unused"), None, 2)
    assert np.array_equal(second[0], render_facade(32, 1_000_000_001))
    assert len(Facades(32)) < 1_000_000_000  # the numbers that training draws from
    assert np.array_equal(first[1], BrushMasks((0.2, 0.3), seed=1).load(0, None, 32, 32))
    (tmp_path / "broken.png").write_text("no image")
    with pytest.raises(ValueError, match=r"no image can be read: .*broken\.png"):
        held_out(config("unused"), str(tmp_path), 2)
