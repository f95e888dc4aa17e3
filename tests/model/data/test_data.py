"""Images, masks, their order and what happens to damaged files."""

import itertools
import logging

import numpy as np
import pytest
import torch
from PIL import Image

from msa_model import data as d
from msa_model.images import ImageFileError
from msa_model.sampling import random_stream


def rng(*key):
    return random_stream(0, 9, *key)


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path, **options)
    return path


def flat(value, height=40, width=40):
    return np.full((height, width, 3), value)


def ramp(height, width):
    """Red tells the column, green the row, in shares of the extent."""
    red, green = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return np.stack([red, green, np.zeros_like(red)], -1)


@pytest.fixture
def photos(tmp_path):
    """Twelve PNGs, each of one grey."""
    for number in range(12):
        save(tmp_path / "photos" / f"{number:02}.png", flat(20 * number))
    return tmp_path / "photos"


def damaged_files(folder):
    """Three files no reader can read: cut off, empty, and text under a picture's name."""
    whole = save(folder / "cut.jpg", np.random.default_rng(0).integers(0, 256, (64, 64, 3)))
    whole.write_bytes(whole.read_bytes()[:400])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_text("not a picture")
    return {"cut.jpg", "empty.png", "text.png"}


def failure(data, batch_size, workers):
    """The message with which a loader stops. (No `pytest.raises`: what it keeps would keep the workers alive.)"""
    try:
        for _ in d.make_loader(data, d.StepSampler(len(data), batch_size, steps=3), workers):
            pass
    except ValueError as error:
        return str(error)
    return "no failure"


# ---- image sources -------------------------------------------------------------------------------------------------


def test_files_at_any_depth_sorted_hidden_and_other_ones_left_out(tmp_path):
    for name in ("b/c/2.PNG", "a.jpg", "b/1.jpeg", "z.webp", "b/3.bmp", ".hidden.png", ".cache/4.png"):
        save(tmp_path / name, flat(9))
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "b" / "loop").symlink_to(tmp_path, target_is_directory=True)
    names = [str(path.relative_to(tmp_path)) for path in d.ImageFolder(tmp_path, 32, "celeba").paths]
    assert names == ["a.jpg", "b/1.jpeg", "b/3.bmp", "b/c/2.PNG", "z.webp"]


@pytest.mark.parametrize(
    ("preset", "size", "height", "width", "shares"),
    [
        ("celeba", 256, 218, 178, (1.0, 178 / 218)),  # the whole width, and the middle of the height
        ("paris", 256, 537, 936, (256 / 350 * 537 / 936, 256 / 350)),
        ("places2", 64, 256, 256, (256 / 350, 256 / 350)),
        ("paris", 128, 1000, 1500, (256 / 350 * 2 / 3, 256 / 350)),  # large: read at a fraction of its size
    ],
)
def test_geometry_of_the_presets(tmp_path, preset, size, height, width, shares):
    save(tmp_path / "a.jpg", ramp(height, width), quality=98, subsampling=0)
    source = d.ImageFolder(tmp_path, size, preset)
    middle = source.load(0)
    assert middle.shape == (size, size, 3)
    assert middle.dtype == np.uint8
    for channel, share in enumerate(shares):  # evaluation: centred, and as wide as the resize to the shorter side says
        profile = middle[..., channel].astype(float).mean(axis=channel)
        assert abs(profile.mean() - 127.5) < 2.5
        assert abs((profile[-1] - profile[0]) / 255 - share * (size - 1) / size) < 0.02
    crops = [source.load(0, rng(draw)).astype(float) for draw in range(30)]
    starts = {(round(crop[0, 0, 0]), round(crop[0, 0, 1])) for crop in crops}
    assert len(starts) == 1 if preset == "celeba" else len(starts) > 15
    for crop in crops:  # the scale is the same wherever the crop is
        assert abs((crop[size // 2, -1, 0] - crop[size // 2, 0, 0]) / 255 - shares[0] * (size - 1) / size) < 0.03
    assert np.array_equal(crops[3], source.load(0, rng(3)))


def test_flip_only_in_training_and_only_if_asked_for(tmp_path):
    save(tmp_path / "a.png", ramp(64, 64))
    plain, flipping = (d.ImageFolder(tmp_path, 32, "celeba", flip) for flip in (False, True))
    middle = plain.load(0)
    assert np.array_equal(flipping.load(0), middle)
    assert all(np.array_equal(plain.load(0, rng(i)), middle) for i in range(10))
    flips = sum(np.array_equal(flipping.load(0, rng(i)), middle[:, ::-1]) for i in range(40))
    assert 10 < flips < 30
    assert flips + sum(np.array_equal(flipping.load(0, rng(i)), middle) for i in range(40)) == 40


def test_every_mode_becomes_rgb_and_orientation_is_applied(tmp_path):
    base = Image.fromarray(ramp(40, 40).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: shown, the stored left edge is at the top
    base.save(tmp_path / "turned.jpg", exif=exif, quality=98, subsampling=0)
    for mode in ("L", "1", "P", "RGBA", "LA"):
        base.convert(mode).save(tmp_path / f"{mode}.png")
    base.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=98)
    Image.fromarray(np.full((40, 40), 0x8000, np.uint16)).save(tmp_path / "deep.png")
    source = d.ImageFolder(tmp_path, 40, "celeba")
    loaded = {path.stem: source.load(i) for i, path in enumerate(source.paths)}
    assert all(pixels.shape == (40, 40, 3) for pixels in loaded.values())
    assert loaded["turned"][0, 20, 0] < 12 < 240 < loaded["turned"][-1, 20, 0]
    assert np.array_equal(loaded["RGBA"], np.asarray(base))
    assert np.array_equal(loaded["L"], np.repeat(np.asarray(base.convert("L"))[..., None], 3, axis=2))
    assert set(np.unique(loaded["deep"])) == {128}
    assert abs(loaded["cmyk"].astype(int) - np.asarray(base)).mean() < 12


def test_mixed_sources_take_turns_and_the_smaller_ones_begin_again():
    from msa_model.facades import render_facade

    few, many = d.Facades(16, 2, first_seed=100), d.Facades(16, 5, first_seed=200)
    mixed = d.MixedImages([few, many])
    assert len(mixed) == 10
    wanted = [100, 200, 101, 201, 100, 202, 101, 203, 100, 204]
    for index, number in enumerate(wanted):
        assert np.array_equal(mixed.load(index), render_facade(16, number))
    with pytest.raises(IndexError):
        mixed.load(10)


def test_facades_count_from_their_first_seed():
    from msa_model.facades import render_facade

    source = d.Facades(32, length=5, first_seed=100)
    assert len(source) == 5
    assert np.array_equal(source.load(3, rng(0)), render_facade(32, 103))
    with pytest.raises(IndexError, match="only 0 to 4"):
        source.load(5)
    assert len(d.Facades(32)) == 100_000


# ---- mask sources --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", d.RATIO_BINS)
def test_brush_masks_hit_their_bin_and_fill_it(ratio):
    low, high = ratio
    masks = [d.BrushMasks(ratio).load(None, rng(i), 96, 128) for i in range(40)]
    assert all(mask.shape == (96, 128) and mask.dtype == bool for mask in masks)
    shares = np.array([1 - mask.mean() for mask in masks])
    assert ((shares > low) & (shares <= high)).all()
    assert abs(shares.mean() - (low + high) / 2) < 0.25 * (high - low)  # not all of them at its lower end
    assert len({mask.tobytes() for mask in masks}) == 40


def test_numbered_brush_masks_are_fixed():
    masks = d.BrushMasks((0.2, 0.3))
    first, second = (masks.load(i, None, 64, 64) for i in (0, 1))
    assert np.array_equal(first, masks.load(0, None, 64, 64))
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, d.BrushMasks((0.2, 0.3), seed=1).load(0, None, 64, 64))
    for size, ratio in itertools.product((2, 4, 8), ((0, 1), (0.0, 0.5), (0.5, 1.0))):
        mask = d.BrushMasks(ratio).load(7, None, size, size)
        assert mask.any()
        assert not mask.all()


@pytest.fixture
def corner(tmp_path):
    """A folder with one mask, white in its upper left quarter."""
    pixels = np.zeros((8, 8), np.uint8)
    pixels[:4, :4] = 255
    save(tmp_path / "masks" / "a.png", pixels)
    return tmp_path / "masks"


def test_white_is_the_hole_unless_inverted(corner):
    mask = d.MaskFolder(corner).load(0, None, 8, 8)
    assert mask.dtype == bool
    assert not mask[:4, :4].any()
    assert mask.sum() == 48
    assert np.array_equal(d.MaskFolder(corner, invert=True).load(0, None, 8, 8), ~mask)


def test_drawn_masks_come_in_four_rotations_numbered_ones_in_none(corner):
    source = d.MaskFolder(corner)
    upright = source.load(0, None, 8, 8)
    drawn = [source.load(None, rng(i), 8, 8) for i in range(80)]
    counts = [sum(np.array_equal(mask, np.rot90(upright, turns)) for mask in drawn) for turns in range(4)]
    assert sum(counts) == 80
    assert min(counts) > 8
    assert np.array_equal(source.load(5, rng(1), 8, 8), upright)  # over again past the last file
    for height, width in ((16, 8), (6, 20)):  # resized to the nearest pixel, turned or not
        for i in range(12):
            mask = source.load(None, rng(i), height, width)
            assert mask.shape == (height, width)
            assert mask.sum() == 0.75 * height * width
            assert {mask[0, 0], mask[0, -1], mask[-1, 0], mask[-1, -1]} == {False, True}


def test_mask_files_of_a_ratio_are_found_by_measuring(tmp_path, caplog):
    for percent in range(0, 100, 5):
        pixels = np.zeros((20, 100), np.uint8)
        pixels[:, :percent] = 255
        save(tmp_path / f"{percent:02}.png", pixels)
    (tmp_path / "broken.png").write_bytes(b"")
    source = d.MaskFolder(tmp_path, ratio=(0.1, 0.2))
    assert [path.stem for path in source.paths] == ["15", "20"]  # above the lower bound, up to the upper
    assert [path.stem for path in d.MaskFolder(tmp_path, True, (0.1, 0.2)).paths] == ["80", "85"]
    assert "broken.png" in caplog.text
    with pytest.raises(ValueError, match=r"none of the 21 masks has a hole ratio in \(0.96, 1\]; 1 cannot be read"):
        d.MaskFolder(tmp_path, ratio=(0.96, 1))


# ---- both together -------------------------------------------------------------------------------------------------


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


def test_blank_and_unreadable_masks_are_passed_over(corner, photos):
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


def test_evaluation_pairs_are_fixed_and_leave_out_what_cannot_be_read(photos, corner, caplog):
    save(corner / "b.png", np.full((8, 8), 255))
    names = damaged_files(photos)
    source = d.ImageFolder(photos, 16, "paris")
    pairs = d.evaluation_pairs(source, d.MaskFolder(corner))
    assert len(pairs) == 15
    items = list(pairs)
    assert [item["index"] for item in items] == [i for i, path in enumerate(source.paths) if path.name not in names]
    assert len(pairs.skipped) == len(caplog.records) == 3
    for item in items:  # mask i for image i, over again, as they are in the files
        assert item["mask"].float().mean() == (0.75, 0.0)[item["index"] % 2]
        assert np.array_equal((item["image"].numpy() * 255).round().transpose(1, 2, 0), source.load(item["index"]))
    with pytest.raises(ImageFileError, match=r"empty\.png"):
        pairs[[path.name for path in source.paths].index("empty.png")]
    brush = d.evaluation_pairs(source, d.BrushMasks((0.1, 0.2)))
    assert torch.equal(brush[2]["mask"], brush[2]["mask"])
    assert not torch.equal(brush[2]["mask"], brush[3]["mask"])


# ---- order ---------------------------------------------------------------------------------------------------------


def test_an_epoch_takes_every_image_once_and_epochs_differ():
    sampler = d.StepSampler(24, 4, seed=3, steps=18)
    assert len(sampler) == 18
    batches = list(sampler)
    epochs = [list(itertools.chain(*batches[6 * e : 6 * e + 6])) for e in range(3)]
    for number, epoch in enumerate(epochs):
        assert sorted(index for index, _ in epoch) == list(range(24))
        assert {draw for _, draw in epoch} == {number}
    orders = {
        tuple(index for index, _ in epoch) for epoch in [*epochs, list(itertools.chain(*d.StepSampler(24, 4, steps=6)))]
    }
    assert len(orders) == 4  # another order each epoch, and with another seed


def test_what_does_not_fill_a_batch_waits_for_another_epoch():
    batches = list(d.StepSampler(11, 4, steps=400))
    assert all(len({index for index, _ in batches[i] + batches[i + 1]}) == 8 for i in range(0, 400, 2))
    counts = np.bincount([index for index, _ in itertools.chain(*batches)], minlength=11)
    assert counts.min() > 110  # of 200 epochs, 8/11 each


@pytest.mark.parametrize("start", [0, 1, 5, 6, 17, 1000])
def test_resuming_goes_on_with_the_same_batches(start):
    whole = d.StepSampler(25, 4, seed=8)  # endless
    wanted = list(itertools.islice(whole, start, start + 9))
    assert list(d.StepSampler(25, 4, seed=8, start_step=start, steps=start + 9)) == wanted
    with pytest.raises(TypeError):
        len(whole)


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_together_make_the_batch_of_one_process(world):
    ranks = [d.StepSampler(50, 4, 2, 3, 20, rank, world) for rank in range(world)]
    one = d.StepSampler(50, 4 * world, 2, 3, 20)
    assert len(one) == 17
    for parts, whole in zip(zip(*ranks, strict=True), one, strict=True):
        assert list(itertools.chain(*parts)) == whole


# ---- messages ------------------------------------------------------------------------------------------------------


def test_messages(tmp_path, photos):
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


def test_loader_benchmark_runs():
    from benchmarks import loader

    rows = loader.measure(32, 2, 0, seconds=0.05, photos=2, masks=2)
    assert len(rows) == 3
    assert all(row["images_per_s"] > 0 for row in rows)
