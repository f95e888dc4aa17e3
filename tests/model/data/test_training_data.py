"""Items and loaders: what they depend on, and what happens to damaged files."""

import itertools
import logging

import numpy as np
import pytest
import torch

from msa_model import data as d

from .files import damaged_files, save


def failure(data, batch_size, workers):
    """The message with which a loader stops. (No `pytest.raises`: what it keeps would keep the workers alive.)"""
    try:
        for _ in d.make_loader(data, d.StepSampler(len(data), batch_size, steps=3), workers):
            pass
    except ValueError as error:
        return str(error)
    return "no failure"


def test_item_and_its_dependence_on_seed_index_and_draw(tmp_path):
    for number in range(3):
        save(tmp_path / f"{number}.png", np.random.default_rng(number).integers(0, 256, (60, 80, 3)))
    images = d.ImageFolder(tmp_path, 32, "paris")
    data = d.InpaintingData(images, d.BrushMasks((0.2, 0.3)), seed=4)
    item = data[1, 7]
    assert item["image"].shape == (3, 32, 32)
    assert item["image"].dtype == torch.float32
    assert 0 <= item["image"].min() < 0.1 < 0.9 < item["image"].max() <= 1
    assert item["mask"].shape == (1, 32, 32)
    assert item["mask"].dtype == torch.bool
    assert 0.2 < 1 - item["mask"].float().mean() <= 0.3
    assert (item["index"], item["skipped"]) == (1, "")
    again = d.InpaintingData(images, d.BrushMasks((0.2, 0.3)), seed=4)[1, 7]
    assert torch.equal(item["image"], again["image"])
    assert torch.equal(item["mask"], again["mask"])
    for other in (data[1, 8], data[2, 7], d.InpaintingData(images, data.masks, seed=5)[1, 7]):
        assert not torch.equal(item["image"], other["image"])
        assert not torch.equal(item["mask"], other["mask"])


def test_loader_gives_the_same_with_any_number_of_workers():
    data = d.InpaintingData(d.Facades(32, 20), d.BrushMasks((0.2, 0.3)), seed=1)
    runs = [list(d.make_loader(data, d.StepSampler(20, 3, steps=5), workers)) for workers in (0, 2)]
    assert len(runs[0]) == 5
    for here, there in zip(*runs, strict=True):
        assert here["image"].shape == (3, 3, 32, 32)
        for name in ("image", "mask", "index"):
            assert torch.equal(here[name], there[name])
    sampled = [index for index, _ in itertools.chain(*d.StepSampler(20, 3, steps=5))]
    assert torch.cat([batch["index"] for batch in runs[0]]).tolist() == sampled


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_files_are_replaced_counted_and_named_once(photos, workers, caplog):
    names = damaged_files(photos)
    source = d.ImageFolder(photos, 16, "celeba")
    data = d.InpaintingData(source, d.BrushMasks((0.2, 0.3)))
    loader = d.make_loader(data, d.StepSampler(len(data), 5, steps=9), workers)  # three epochs
    with caplog.at_level(logging.WARNING):
        batches = list(loader)
    assert len(data) == 15
    assert all(len(batch["image"]) == 5 for batch in batches)
    assert len(loader.skipped) == 3
    assert {name for name in names if any(name in line for line in loader.skipped.lines["image"])} == names
    assert len(caplog.records) == 3
    assert all(record.getMessage().startswith("msa_model.data: skipped ") for record in caplog.records)
    loaded = torch.cat([batch["index"] for batch in batches])
    assert source.paths[int(loaded[0])].name not in names
    again = d.make_loader(data, d.StepSampler(len(data), 5, steps=9), 0)
    assert torch.equal(loaded, torch.cat([batch["index"] for batch in again]))


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_damaged_files_stop_with_one_line(photos, workers):
    damaged_files(photos)
    data = d.InpaintingData(d.ImageFolder(photos, 16, "celeba"), d.BrushMasks((0.2, 0.3)), max_corrupt=1)
    message = failure(data, 5, workers)
    assert "\n" not in message
    assert message.startswith("msa_model.data: 2 of 15 image files cannot be used, 1 may be (max_corrupt): ")
    assert sum(name in message for name in ("cut.jpg", "empty.png", "text.png")) == 2


@pytest.mark.parametrize("workers", [0, 1])
def test_folders_with_nothing_usable_stop_with_one_line(tmp_path, photos, workers):
    (tmp_path / "bad").mkdir()
    damaged_files(tmp_path / "bad")
    data = d.InpaintingData(d.ImageFolder(tmp_path / "bad", 16, "paris"), d.BrushMasks())
    assert failure(data, 1, workers).startswith("msa_model.data: none of the 3 images can be read; the first: ")
    for name, value in (("hole", 255), ("valid", 0)):
        save(tmp_path / "masks" / f"{name}.png", np.full((8, 8), value))
    data = d.InpaintingData(d.ImageFolder(photos, 16, "paris"), d.MaskFolder(tmp_path / "masks"))
    message = failure(data, 2, workers)
    assert message.startswith("msa_model.data: none of the 2 masks can be used for training: ")
    assert "hole.png: is fully hole" in message
    assert "valid.png: is fully valid" in message


def test_default_limit_is_a_hundredth_and_at_least_ten(photos):
    for length, limit in ((12, 10), (5000, 50)):
        data = d.InpaintingData(d.Facades(16, length), d.BrushMasks())
        assert data.skipped.limits["image"] == (length, limit)
        data.skipped.add([f"image\t{number}.png: broken" for number in range(limit)])
        data.skipped.add(["image\t3.png: broken", ""])  # known by now
        with pytest.raises(
            ValueError, match=rf"{limit + 1} of {length} image files .* 0\.png.*; … and {limit - 2} more$"
        ):
            data.skipped.add(["image\tone-more.png: broken"])


def test_blank_and_unreadable_masks_are_skipped(corner, photos):
    for number in range(30):  # more blank ones than the limit of unreadable ones
        save(corner / f"blank{number}.png", np.full((8, 8), 255 * (number % 2)))
    (corner / "broken.png").write_bytes(b"")
    data = d.InpaintingData(d.ImageFolder(photos, 16, "celeba"), d.MaskFolder(corner))
    loader = d.make_loader(data, d.StepSampler(12, 4, steps=30), 0)
    for batch in loader:
        share = batch["mask"].float().mean(dim=(1, 2, 3))
        assert torch.equal(share, torch.full_like(share, 0.75))
    assert len(loader.skipped.lines["blank mask"]) > 20
    assert len(loader.skipped.lines["mask"]) == 1


def test_wrong_arguments_are_named(tmp_path, photos):
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("")
    cases = {
        r"nowhere: no such folder \(of images\)": lambda: d.ImageFolder(tmp_path / "nowhere", 64, "paris"),
        r"00\.png: is not a folder \(of masks\)": lambda: d.MaskFolder(photos / "00.png"),
        r"empty: is empty, without image ending in \.jpg, \.jpeg, \.png": lambda: d.ImageFolder(
            tmp_path / "empty", 64, "paris"
        ),
        r"texts: holds 1 file, none of them mask ending in \.jpg": lambda: d.MaskFolder(tmp_path / "texts"),
        r"unknown preset 'pariss'; did you mean 'paris'\?": lambda: d.ImageFolder(photos, 64, "pariss"),
        r"size must be positive, got 0": lambda: d.ImageFolder(photos, 0, "paris"),
        r"facades need a size of at least 16": lambda: d.Facades(8),
        r"hole ratio must be 0 <= low < high <= 1, got 0.3, 0.2": lambda: d.BrushMasks((0.3, 0.2)),
        r"3 images cannot fill a batch of 8 \(4 on each of 2 processes\)": lambda: d.StepSampler(3, 4, world_size=2),
        r"1 image cannot fill a batch of 4$": lambda: d.StepSampler(1, 4),
        r"batch_size and world_size must be positive.*rank=2": lambda: d.StepSampler(9, 1, rank=2, world_size=2),
        r"a mask needs an index or a random generator": lambda: d.BrushMasks().load(None, None, 8, 8),
        r"workers must be 0 or more, got -1": lambda: d.make_loader(None, None, -1),
        r"seed must be 0 or more": lambda: d.InpaintingData(d.Facades(16), d.BrushMasks(), seed=-1),
    }
    for message, make in cases.items():
        with pytest.raises(ValueError, match=rf"^msa_model\.data: .*{message}") as caught:
            make()
        assert "\n" not in str(caught.value)
