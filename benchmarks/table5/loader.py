"""``python -m benchmarks.table5.loader``: images per second, with masks, of the training loader.

Three sources: rendered facades with brush masks; a folder of JPEG photographs of Paris StreetView's size with brush
masks; the same with a folder of PNG masks of NVIDIA's size. The folders are made for the run and deleted after it. The
target is 40 images/s at batch 6 on two cores.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from .. import measure, model, results
from ..tables import table

SIZE, BATCH, WORKERS, TARGET = 256, 6, 2, 40.0
PHOTO, MASK = (936, 537), 512  # width and height of a Paris StreetView image; side of NVIDIA's masks
PHOTOS, MASKS = 24, 12  # files in the folders; a batch may need more photographs


def write_folders(root: Path, photos: int, masks: int) -> None:
    """Writes root/photos, JPEG files of facades with noise, which makes them as large, and root/masks, PNG files."""
    rng = np.random.default_rng(0)
    (root / "photos").mkdir()
    for number in range(photos):
        facade = Image.fromarray(model.render_facade(PHOTO[1], number)).resize(PHOTO)
        pixels = np.asarray(facade) + rng.normal(0, 6, (PHOTO[1], PHOTO[0], 3))
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(root / f"photos/{number:04}.jpg", quality=90)
    (root / "masks").mkdir()
    for number in range(masks):
        valid = model.spread_mask(MASK, MASK, (0.01, 0.6), rng)[0].numpy()
        Image.fromarray(np.where(valid, 0, 255).astype(np.uint8)).save(root / f"masks/{number:04}.png")


def rate(data: model.InpaintingData, batch: int, seconds: float) -> float:
    """Returns the images per second of a loader whose workers run and whose buffers have been emptied."""
    batches = iter(model.make_loader(data, model.StepSampler(len(data), batch), WORKERS))
    for _ in range(4 * WORKERS + 1):  # the workers have loaded some batches before the clock starts
        next(batches)
    start, count = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < seconds:
        count += len(next(batches)["image"])
    return count / elapsed


def rows(size: int, batch: int, seconds: float) -> list[measure.Row]:
    """Measures every source for some seconds; returns one row of results for each."""
    with tempfile.TemporaryDirectory() as folder:
        write_folders(Path(folder), max(PHOTOS, batch), MASKS)
        images = model.ImageFolder(Path(folder) / "photos", size, "paris", flip=True)
        sources = {
            "facades, brush": (model.Facades(size), model.BrushMasks()),
            "JPEG folder, brush": (images, model.BrushMasks()),
            "JPEG folder, mask folder": (images, model.MaskFolder(Path(folder) / "masks")),
        }
        rates = {name: rate(model.InpaintingData(*source), batch, seconds) for name, source in sources.items()}
    return [{"suite": "loader", "case": name, "images_per_s": round(found, 1)} for name, found in rates.items()]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.table5.loader", description=__doc__.split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=8, help="per source (default 8)")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/loader-cpu.json")
    arguments = parser.parse_args(argv)
    found = rows(SIZE, BATCH, arguments.seconds)
    print(table(["source", "images/s", "target"], ([row["case"], row["images_per_s"], TARGET] for row in found)))
    if arguments.save:
        device = torch.device("cpu")
        facts = measure.facts(device) | {"size": SIZE, "batch": BATCH, "workers": WORKERS, "target": TARGET}
        print(results.write("loader", device, facts, found))
    return 0 if all(row["images_per_s"] >= TARGET for row in found) else 1


if __name__ == "__main__":
    sys.exit(main())
