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

TARGET = 40.0
PHOTO, MASK = (936, 537), 512  # width and height of a Paris StreetView image; side of NVIDIA's masks


def write_folders(root: Path, photos: int, masks: int) -> tuple[Path, Path]:
    """Writes a folder of JPEG photographs (facades with noise, whose files are as large) and one of PNG masks."""
    folders = root / "photos", root / "masks"
    for folder in folders:
        folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(photos):
        facade = Image.fromarray(model.render_facade(PHOTO[1], number)).resize(PHOTO)
        pixels = np.asarray(facade) + rng.normal(0, 6, (PHOTO[1], PHOTO[0], 3))
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folders[0] / f"{number:04}.jpg", quality=90)
    for number in range(masks):
        valid = model.spread_mask(MASK, MASK, (0.01, 0.6), rng)[0].numpy()
        Image.fromarray(np.where(valid, 0, 255).astype(np.uint8)).save(folders[1] / f"{number:04}.png")
    return folders


def rate(data: model.InpaintingData, batch: int, workers: int, seconds: float) -> float:
    """Returns the images per second of a loader whose workers run and whose buffers have been emptied."""
    batches = iter(model.make_loader(data, model.StepSampler(len(data), batch), workers))
    # The workers have loaded some batches before the clock starts.
    for _ in range(4 * workers + 1):
        next(batches)
    start, count = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < seconds:
        count += len(next(batches)["image"])
    return count / elapsed


def rows(
    size: int, batch: int, workers: int, seconds: float, photos: int = 48, masks: int = 24
) -> list[dict[str, object]]:
    """Measures every source for some seconds; returns one row of results for each."""
    with tempfile.TemporaryDirectory() as folder:
        photo_folder, mask_folder = write_folders(Path(folder), max(photos, batch), masks)
        images = model.ImageFolder(photo_folder, size, "paris", flip=True)
        sources = {
            "facades, brush": model.InpaintingData(model.Facades(size), model.BrushMasks()),
            "JPEG folder, brush": model.InpaintingData(images, model.BrushMasks()),
            "JPEG folder, mask folder": model.InpaintingData(images, model.MaskFolder(mask_folder)),
        }
        return [
            {"suite": "loader", "case": name, "images_per_s": round(rate(data, batch, workers, seconds), 1)}
            for name, data in sources.items()
        ]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.table5.loader", description=__doc__.split("\n\n")[0])
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=6)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=8, help="per source (default 8)")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/loader-cpu.json")
    arguments = parser.parse_args(argv)
    found = rows(arguments.size, arguments.batch, arguments.workers, arguments.seconds)
    print(f"{arguments.size}x{arguments.size}, batch {arguments.batch}, {arguments.workers} workers")
    print(f"{'source':28}{'images/s':>10}{'target':>10}")
    for row in found:
        print(f"{row['case']:28}{row['images_per_s']:10.1f}{TARGET:10.0f}")
    if arguments.save:
        device = torch.device("cpu")
        settings = {"size": arguments.size, "batch": arguments.batch, "workers": arguments.workers, "target": TARGET}
        print(results.write("loader", device, measure.facts(device) | settings, found), file=sys.stderr)
    return 0 if all(row["images_per_s"] >= TARGET for row in found) else 1


if __name__ == "__main__":
    sys.exit(main())
