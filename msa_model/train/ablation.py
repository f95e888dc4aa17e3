"""Compares trained variants (Section 5.3.2, Fig. 10) on the same holes of images that none has been trained on."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import numpy as np

from .. import user_files
from ..data.image_sources import FIRST_HELD_OUT_FACADE, Facades, ImageFolder, ImageSource
from ..data.mask_sources import BrushMasks
from ..evaluate.fills import composite
from ..evaluate.measure import evaluate_bin, network_fill
from ..evaluate.pairs import NumberedPairs
from ..evaluate.report import table
from ..evaluate.sheets import columns_sheet
from ..nn.generator import Generator
from . import checkpoints
from .config import TrainConfig
from .variants import variant

HOLES = (0.2, 0.3)  # the range of hole ratios for the comparison


def held_out(config: TrainConfig, folder: str | None, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Loads images that training has not seen, and draws their masks.

    Args:
        config: size and geometry of the images.
        folder: a folder of images; None: rendered facades.
        count: at most this many.

    Returns:
        Pairs of (H, W, 3) uint8 and (H, W) bool, True = valid.

    Raises:
        ValueError: there is no image in the folder, or none can be read.
    """
    size = config.data.size
    images: ImageSource
    if folder is None:
        images = Facades(size, count, FIRST_HELD_OUT_FACADE)
    else:
        images = ImageFolder(folder, size, config.data.geometry)
    numbered = NumberedPairs(images, lambda bin_: BrushMasks(bin_, seed=1), [HOLES], size=size, limit=count)
    pairs = list(numbered.pairs(HOLES))
    if not pairs:
        raise ValueError(f"no image can be read: {numbered.problems[0]}")
    return pairs


def compare(config: TrainConfig, names: list[str], pairs: list[tuple[np.ndarray, np.ndarray]], shown: int) -> str:
    """Measures the trained variants, and writes ablation.json and ablation.png into the configuration's folder.

    Args:
        config: the configuration that the variants differ from.
        names: the variants.
        pairs: images and masks, as `held_out` returns them.
        shown: how many of the pairs the picture shows.

    Returns:
        A table of the figures.

    Raises:
        CheckpointError: a variant's checkpoint is damaged.
    """
    generators = {}
    for name in names:
        folder = checkpoints.path_of(Path(variant(config, name).out), config.steps)
        checkpoints.check(folder)
        generators[name] = Generator.load(folder / "generator.safetensors")
    methods = {name: network_fill(generator) for name, generator in generators.items()}
    rows = evaluate_bin(methods, HOLES, pairs, protocols=("standard",))
    facts = {"config": dataclasses.asdict(config), "rows": [dataclasses.asdict(row) for row in rows]}
    user_files.replace(Path(config.out) / "ablation.json", (json.dumps(facts, indent=1) + "\n").encode())
    pairs = pairs[:shown]
    columns = {"input": [np.where(valid[..., None], image, np.uint8(255)) for image, valid in pairs]}
    for name, fill in methods.items():
        columns[name] = [
            composite(image, valid, fill(np.where(valid[..., None], image, np.uint8(0)), valid))
            for image, valid in pairs
        ]
    columns["truth"] = [image for image, _ in pairs]
    picture = io.BytesIO()
    columns_sheet(columns).save(picture, "png")
    user_files.replace(Path(config.out) / "ablation.png", picture.getvalue())
    return table(rows, ["standard"])
