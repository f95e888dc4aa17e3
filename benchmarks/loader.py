"""``python -m benchmarks.loader``: images per second, with masks, that the training loader gives.

Three sources: rendered facades with brush masks; a folder of JPEG photographs of Paris StreetView's size with brush
masks; the same with a folder of PNG masks of NVIDIA's size. The folders are made for the run and thrown away. The
issue's target is 40 images/s at batch 6 on two cores.
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

from msa_model.data import BrushMasks, Facades, ImageFolder, InpaintingData, MaskFolder, StepSampler, make_loader
from msa_model.facades import render_facade
from msa_model.masks import spread_mask

from . import harness

TARGET = 40.0
PHOTO, MASK = (936, 537), 512  # width and height of a Paris StreetView image; side of NVIDIA's masks


def write_folders(root: Path, photos: int, masks: int) -> tuple[Path, Path]:
    """Folders of JPEG photographs (facades with noise, so that they weigh what photographs do) and of PNG masks."""
    folders = root / "photos", root / "masks"
    for folder in folders:
        folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(photos):
        facade = Image.fromarray(render_facade(PHOTO[1], number)).resize(PHOTO)
        pixels = np.asarray(facade) + rng.normal(0, 6, (PHOTO[1], PHOTO[0], 3))
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folders[0] / f"{number:04}.jpg", quality=90)
    for number in range(masks):
        valid = spread_mask(MASK, MASK, (0.01, 0.6), rng)[0].numpy()
        Image.fromarray(np.where(valid, 0, 255).astype(np.uint8)).save(folders[1] / f"{number:04}.png")
    return folders


def rate(data: InpaintingData, batch: int, workers: int, seconds: float) -> float:
    """Images per second of a loader once its workers run and their buffers have been emptied."""
    sampler = StepSampler(len(data), batch)
    batches = iter(make_loader(data, sampler, workers))
    # What the workers have loaded ahead before the clock starts is taken first.
    for _ in range(4 * workers + 1):
        next(batches)
    start, count = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < seconds:
        count += len(next(batches)["image"])
    return count / elapsed


def measure(size: int, batch: int, workers: int, seconds: float, photos: int = 48, masks: int = 24) -> list[dict]:
    """One row per source: its name and images per second."""
    with tempfile.TemporaryDirectory() as folder:
        photo_folder, mask_folder = write_folders(Path(folder), max(photos, batch), masks)
        images = ImageFolder(photo_folder, size, "paris", flip=True)
        sources = {
            "facades, brush": InpaintingData(Facades(size), BrushMasks()),
            "JPEG folder, brush": InpaintingData(images, BrushMasks()),
            "JPEG folder, mask folder": InpaintingData(images, MaskFolder(mask_folder)),
        }
        return [
            {"source": name, "images_per_s": round(rate(data, batch, workers, seconds), 1)}
            for name, data in sources.items()
        ]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loader", description=__doc__.split("\n\n")[0])
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=6)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=8, help="per source (default 8)")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/loader-cpu.json")
    arguments = parser.parse_args(argv)
    rows = measure(arguments.size, arguments.batch, arguments.workers, arguments.seconds)
    print(f"{arguments.size}x{arguments.size}, batch {arguments.batch}, {arguments.workers} workers")
    print(f"{'source':28}{'images/s':>10}{'target':>10}")
    for row in rows:
        print(f"{row['source']:28}{row['images_per_s']:10.1f}{TARGET:10.0f}")
    if arguments.save:
        settings = {"size": arguments.size, "batch": arguments.batch, "workers": arguments.workers}
        path = harness.save("loader", torch.device("cpu"), settings | {"target": TARGET, "rows": rows})
        print(path, file=sys.stderr)
    return 0 if all(row["images_per_s"] >= TARGET for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
