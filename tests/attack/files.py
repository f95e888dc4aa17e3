"""Folders of odd files, given to ``msa inpaint``, ``msa evaluate`` and the loader of training.

A case passes if nothing hangs and nothing ends with a traceback; if every file is either used or named in exactly one
line of limited length without control characters; if every good file is used; if the exit code says whether a file was
left out; if the valid pixels in lossless formats keep their bits; and if nothing is written outside the output folder.
"""

import atexit
import functools
import json
import os
import shutil
import tempfile
from pathlib import Path

import matplotlib.backends.backend_agg  # noqa: F401  (here, so that no child has to import it)
import numpy as np
import torch
import torchmetrics.functional.image  # noqa: F401
from PIL import Image

from msa_model import Generator, cli
from msa_model.cli import commands
from msa_model.data import image_files, image_sources, mask_sources, sampling, training_data

from . import boxed, odd_files

SIZE = 16  # pixels: of what evaluation and training load


@functools.cache
def weights() -> Path:
    """Makes the weights of a very small generator, once per process, and imports what the children would import."""
    torch.set_num_threads(1)  # a forked child has no pool of threads
    Image.init()
    commands._parser()
    torch.manual_seed(0)
    folder = Path(tempfile.mkdtemp(prefix="msa-attack-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    Generator(base_width=2, depth=2, attention_levels=()).save(folder / "weights.safetensors")
    return folder / "weights.safetensors"


def fill_folder(rng: np.random.Generator, folder: Path, suffixes: list[str]) -> dict[str, bool | None]:
    """Fills a folder.

    Returns:
        Path below the folder -> whether the file is good; None for a damaged one, which may still be readable.
    """
    made: dict[str, bool | None] = {}
    for number in range(int(rng.integers(1, 25))):
        suffix = str(rng.choice(suffixes))
        name = odd_files.name_of(rng, number, suffix)
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = rng.choice(["good", "damaged", "wrong", "special", "other suffix"], p=[0.4, 0.25, 0.15, 0.15, 0.05])
        if kind == "special":
            odd_files.SPECIAL[str(rng.choice(list(odd_files.SPECIAL)))](path)
            made[name] = False
        elif kind == "other suffix":  # the content decides, not the name
            path.write_bytes(odd_files.good(rng, str(rng.choice(suffixes))))
            made[name] = True
        else:
            draw, made[name] = {
                "good": (functools.partial(odd_files.good, suffix=suffix), True),
                "damaged": (odd_files.damaged, None),
                "wrong": (odd_files.wrong, False),
            }[str(kind)]
            path.write_bytes(draw(rng))
    if rng.random() < 0.2:  # a folder with the name of an image, and files that are left out
        (folder / "folder.png").mkdir()
        (folder / "folder.png" / "notes.txt").write_text("text")
        (folder / ".hidden.png").write_bytes(b"")
    return made


def fill_masks(rng: np.random.Generator, folder: Path, images: dict[str, bool | None]) -> dict[str, bool | None]:
    """Fills a folder with a mask of each image, most of them good. Returns image -> whether its mask is good."""
    made: dict[str, bool | None] = {}
    for name in images:
        path = folder / name
        path = path.with_suffix(".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        draw = rng.random()
        if draw < 0.05:
            made[name] = False  # no mask
        elif draw < 0.15:
            odd_files.SPECIAL[str(rng.choice(list(odd_files.SPECIAL)))](path)
            made[name] = False
        elif draw < 0.25:
            path.write_bytes(odd_files.damaged(rng))
            made[name] = None
        else:
            Image.fromarray(rng.random((SIZE, SIZE)) < rng.choice([0.0, 0.1, 0.5, 1.0])).save(path)
            made[name] = True
    return made


def snapshot(folder: Path, without: Path) -> dict[str, tuple]:
    """Lists everything below a folder but `without`: path -> kind, size, time of the last change."""
    found = {}
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if Path(parent, name) != without]
        for name in [*folders, *names]:
            status = os.lstat(os.path.join(parent, name))
            times = () if name in folders else (status.st_size, status.st_mtime_ns)
            found[os.path.join(parent, name)] = (status.st_mode, *times)
    return found


def named(lines: list[str], name: str) -> int:
    """Counts the errors that name a file."""
    token = f"/{Path(name).name[:5]}"  # "/f012-"
    return sum(token in line for line in lines)


def case(rng: np.random.Generator, folder: Path) -> str:
    weights()
    kind = str(rng.choice(["inpaint", "evaluate", "training"], p=[0.6, 0.2, 0.2]))
    {"inpaint": inpaint, "evaluate": evaluate, "training": training}[kind](rng, folder)
    return kind


def inpaint(rng: np.random.Generator, folder: Path) -> None:
    images, masks, out = folder / "images", folder / "masks", folder / "out"
    good = fill_folder(rng, images, list(odd_files.GOOD))
    good_mask = fill_masks(rng, masks, good)
    arguments = ["inpaint", str(images), str(masks), "-o", str(out), "--weights", str(weights()), "--device", "cpu"]
    before = snapshot(folder, out)
    outcome = boxed.run(lambda: cli.main([*arguments, *["--compare"] * bool(rng.random() < 0.3)]))
    boxed.check_lines(outcome, "inpaint")
    assert outcome.out == "", f"wanted nothing on stdout, got {outcome.out!r}"
    assert snapshot(folder, out) == before, "wanted nothing changed outside the output folder"
    assert not [path for path in out.rglob("*") if path.suffix == ".part"], "wanted no half a file"
    errors = [line for line in outcome.lines if ": error: " in line]
    failed = 0
    for name, is_good in good.items():
        count, done = named(errors, name), (out / name).is_file()
        failed += not done
        # An image and its mask share their number; only one of them is named, as the image is not read without a mask.
        assert count == (not done), f"{name!r}: wanted a result or one line, got {done} and {count}: {outcome.err}"
        if is_good and good_mask[name]:
            assert done, f"{name!r} and its mask are good, wanted a result: {outcome.err}"
            check_pixels(images / name, (masks / name).with_suffix(".png"), out / name)
        if is_good is False or good_mask[name] is False:
            assert not done, f"{name!r} or its mask cannot be read, wanted no result"
    wanted = 1 if failed else 0
    assert outcome.code == wanted, f"wanted exit code {wanted}, got {outcome.code}: {outcome.err}"


def check_pixels(image: Path, mask: Path, result: Path) -> None:
    """Compares the valid pixels of formats without loss."""
    before, after = image_files.read(image), image_files.read(result)
    if before.format == "JPEG" or image_files.FORMATS[result.suffix.lower()] != before.format:
        return
    if before.format == "WEBP" and not before.encoding["lossless"]:
        return
    if before.image.mode != after.image.mode:
        return
    hole, _ = image_files.read_hole(mask, before.image.size)
    old, new = (np.asarray(picture.image)[~hole] for picture in (before, after))
    assert np.array_equal(old, new), f"{image.name!r}: wanted the valid pixels unchanged"


def evaluate(rng: np.random.Generator, folder: Path) -> None:
    images, out = folder / "images", folder / "out"
    suffixes = [suffix for suffix in odd_files.GOOD if suffix in image_sources.SUFFIXES]
    good = fill_folder(rng, images, suffixes)
    before = snapshot(folder, out)
    arguments = ["evaluate", "--images", str(images), "--methods", "mean-colour", "--protocols", "standard", "-q"]
    arguments += ["--size", str(SIZE), "--bins", "10-50", "-o", str(out), "--device", "cpu"]
    outcome = boxed.run(lambda: cli.main(arguments))
    boxed.check_lines(outcome, "evaluate")
    assert snapshot(folder, out) == before, "wanted nothing changed outside the output folder"
    errors = [line for line in outcome.lines if ": error: " in line]
    counts = {name: named(errors, name) for name in good}
    for name, is_good in good.items():
        wanted = (0, 1) if is_good is None else (int(not is_good),)
        assert counts[name] in wanted, f"{name!r}: wanted {wanted} lines, got {counts[name]}: {outcome.err}"
    left = len(good) - sum(counts.values())
    assert outcome.code == (1 if sum(counts.values()) else 0), f"got exit code {outcome.code}: {outcome.err}"
    if left:
        rows = json.loads((out / "evaluation.json").read_text())["results"]
        measured = [row["images"] for row in rows]
        assert measured == [left], f"wanted {left} images measured, got {measured}"


def training(rng: np.random.Generator, folder: Path) -> None:
    suffixes = [suffix for suffix in odd_files.GOOD if suffix in image_sources.SUFFIXES]
    good = fill_folder(rng, folder / "images", suffixes)
    with_masks = rng.random() < 0.5
    if with_masks:
        fill_masks(rng, folder / "masks", dict.fromkeys(good))
        Image.fromarray(np.eye(SIZE) > 0).save(folder / "masks" / "one that is good.png")
    before = snapshot(folder, folder)

    def load() -> int:
        source = image_sources.ImageFolder(folder / "images", SIZE, "celeba")
        masks = mask_sources.MaskFolder(folder / "masks") if with_masks else mask_sources.BrushMasks()
        data = training_data.InpaintingData(source, masks, seed=int(rng.integers(1000)), max_corrupt=len(good))
        loader = sampling.make_loader(data, sampling.StepSampler(len(data), 1, steps=len(data)), workers=0)
        try:
            seen = sorted(int(index) for batch in loader for index in batch["index"])
        except ValueError as error:
            seen = [str(error)]
        print(json.dumps({"paths": list(map(str, source.paths)), "seen": seen, "lines": data.skipped.lines}))
        return 0

    outcome = boxed.run(load)
    assert snapshot(folder, folder) == before
    told = outcome.err.splitlines()
    assert all(line.isprintable() and len(line) < 1100 for line in told), f"wanted printable lines: {outcome.err!r}"
    found = json.loads(outcome.out)
    lines = [line for kind, entries in found["lines"].items() if kind == "image" for line in entries]
    if found["seen"] and isinstance(found["seen"][0], str):  # nothing could be used
        assert found["seen"][0].isprintable()
        assert not any(good[os.path.relpath(path, folder / "images")] for path in found["paths"]), found["seen"][0]
        return
    for number, path in enumerate(found["paths"]):
        name = os.path.relpath(path, folder / "images")
        is_good, count = good[name], named(lines, name)
        assert count in ((0, 1) if is_good is None else (int(not is_good),)), f"{name!r}: {count} lines: {lines}"
        if is_good:
            assert number in found["seen"], f"{name!r} is good, wanted it loaded"
