"""The configuration of a training run and its messages."""

import dataclasses
import os

import pytest

from msa_model.train.config import PRESETS, TrainConfig, parse

SYNTHETIC = ["--preset", "synthetic"]


def test_the_command_line_goes_over_the_file_over_the_preset(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("steps: 12\nbatch: 3\ngenerator:\n  base_width: 8\n")
    config = parse([*SYNTHETIC, "--config", str(file), "--batch", "2", "--data.hole_ratio", "[0.1, 0.2]"])
    assert (config.steps, config.batch, config.generator.base_width) == (12, 2, 8)
    assert config.generator.depth == PRESETS["synthetic"]["generator"]["depth"]
    assert config.data.hole_ratio == (0.1, 0.2)


def test_images_are_one_source_or_a_list(tmp_path):
    assert parse(SYNTHETIC).data.images == "synthetic"
    assert parse([*SYNTHETIC, "--data.images", "photos"]).data.images == "photos"
    assert parse([*SYNTHETIC, "--data.images", "[synthetic, photos]"]).data.images == ["synthetic", "photos"]
    file = tmp_path / "run.yaml"
    file.write_text("data:\n  images: [synthetic, synthetic, photos]\n")
    assert parse([*SYNTHETIC, "--config", str(file)]).data.images == ["synthetic", "synthetic", "photos"]


def test_defaults_are_the_papers():
    config = parse(["--loss.vgg", "none"])
    assert (config.batch, config.data.size, config.generator_rate, config.lr_discriminator) == (6, 256, 2e-4, 2e-5)
    loss = dataclasses.asdict(config.loss)
    weights = {"perceptual": 0.05, "style": 120, "adversarial": 0.1, "total_variation": 0.1, "hole": 6, "valid": 1}
    assert {name: loss[name] for name in weights} == weights
    assert dataclasses.replace(config, fine_tune=True, init="weights").generator_rate == 5e-5
    assert all(parse(["--preset", name, "--loss.vgg", "none"]) for name in PRESETS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stepz", "3"], "did you mean steps?"),
        (["--data.sise", "3"], "did you mean data.size?"),
        (["--steps", "many"], "steps"),
        (["--precision", "float8"], "precision"),
        (["--steps", "0"], "steps must be at least 1, got 0"),
        (["--out", ""], "out must name a folder, got ''"),
        (["--out", "a\0b"], r"out must be a path, which has no NUL character, got 'a\\x00b'"),
        (["--data.images", "[synthetic, 'a\0b']"], "NUL|special characters"),
        (["--seed", "-1"], r"seed must be between 0 and 2\^63 - 1, got -1"),
        (["--seed", str(2**64)], "seed must be between 0"),
        (["--data.workers", "-1"], "workers must be 0 or more, got -1"),
        (["--images_every", "-1"], "images_every must be 0 or more, got -1"),
        (["--ema", "1"], r"ema must be in \[0, 1\), got 1"),
        (["--data.images", "[]"], "data.images names no images"),
        (["--data.hole_ratio", "[0.5, 0.1]"], "data.hole_ratio must be 0 <= low < high <= 1"),
        (["--fine_tune", "true"], "fine_tune needs init"),
        (["--loss.vgg", ""], "loss.vgg must name torchvision's VGG-16 weights"),
        (["--generator.depth", "1"], "depth must be between 2 and 12, got 1"),
    ],
)
def test_bad_values_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        parse([*SYNTHETIC, *arguments])


def test_an_unknown_key_of_a_file_is_named_with_the_nearest(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("data:\n  sizee: 64\n")
    with pytest.raises(ValueError, match=r"sizee.*did you mean data\.size\?"):
        parse([*SYNTHETIC, "--config", str(file)])


@pytest.mark.parametrize("form", [["--config", "{}"], ["--config={}"], ["--data", "{}"]])
def test_a_pipe_is_not_read_as_a_configuration(tmp_path, form):
    os.mkfifo(tmp_path / "run.yaml")
    with pytest.raises(ValueError, match=r"must be a regular file, which .*run\.yaml is not"):
        parse([*SYNTHETIC, *(text.format(tmp_path / "run.yaml") for text in form)])


def test_impossible_combinations_are_refused_without_a_command_line_too():
    with pytest.raises(ValueError, match="batch must be at least 1"):
        TrainConfig(batch=0)
