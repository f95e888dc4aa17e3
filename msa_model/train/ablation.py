"""``msa ablation``: what each choice of the paper is worth (Section 5.3.2, Fig. 10).

Every variant is a training run of its own that differs from the given configuration in one thing; afterwards all of
them fill the same holes of images that none has seen, for a table and a sheet of pictures.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import numpy as np

from .checkpoints import CheckpointError, path_of
from .config import TrainConfig, parse

#: Name -> what differs, by key of the configuration. "one stage" keeps the first of the configuration's levels.
VARIANTS: dict[str, dict[str, object]] = {
    "ours": {},
    "adversarial-0": {"loss.adversarial": 0.0},
    "adversarial-0.001": {"loss.adversarial": 0.001},
    "adversarial-1": {"loss.adversarial": 1.0},
    "no-perceptual-no-style": {"loss.perceptual": 0.0, "loss.style": 0.0},
    "no-attention": {"generator.attention_levels": ()},
    "one-stage": {"generator.attention_levels": "first"},
    "released-attention": {"generator.variant": "released"},
    "renormalized": {"generator.renormalize": True},
    "region-norm": {"generator.norm": "region"},
}


def variant(config: TrainConfig, name: str) -> TrainConfig:
    """The configuration of a variant, in a folder of its own below the run's."""
    changed = dataclasses.replace(config, out=str(Path(config.out) / name))
    for key, value in VARIANTS[name].items():
        part, field = key.split(".")
        if value == "first":
            value = getattr(config, part).attention_levels[:1]
        changed = dataclasses.replace(changed, **{part: dataclasses.replace(getattr(changed, part), **{field: value})})
    return changed


def differs(config: TrainConfig, name: str) -> bool:
    """Whether the variant is another network or loss than the configuration itself."""
    changed = variant(config, name)
    without_features = config.loss.vgg == "none" and set(VARIANTS[name]) == {"loss.perceptual", "loss.style"}
    return not without_features and (changed.generator, changed.loss) != (config.generator, config.loss)


def held_out(config: TrainConfig, folder: str | None, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(image, mask) pairs, (H, W, 3) uint8 and (H, W) bool, that training has not seen."""
    from .data import BrushMasks, Facades, ImageFolder
    from .evaluation_inputs import FIRST_HELD_OUT_FACADE

    size = config.data.size
    if folder is None:
        images = Facades(size, count, FIRST_HELD_OUT_FACADE)
    else:
        images = ImageFolder(folder, size, config.data.geometry)
    masks = BrushMasks((0.2, 0.3), seed=1)
    return [(images.load(i, None), masks.load(i, None, size, size)) for i in range(min(count, len(images)))]


def sheet(columns: dict[str, list[np.ndarray]], path: Path) -> None:
    """Writes a picture of the columns' images (H, W, 3) uint8, side by side below their names."""
    from PIL import Image, ImageDraw, ImageFont

    height, width = next(iter(columns.values()))[0].shape[:2]
    gap, title = 4, 28
    rows = max(map(len, columns.values()))
    canvas = Image.new("RGB", (len(columns) * (width + gap), rows * (height + gap) + title), "white")
    draw = ImageDraw.Draw(canvas)
    for x, (name, images) in enumerate(columns.items()):
        font = ImageFont.load_default(size=max(8, min(14, 2 * width // max(8, len(name)))))
        draw.text((x * (width + gap) + width // 2, title // 2), name, fill="black", anchor="mm", font=font)
        for y, image in enumerate(images):
            canvas.paste(Image.fromarray(image), (x * (width + gap), title + y * (height + gap)))
    canvas.save(path)


def compare(config: TrainConfig, names: list[str], pairs: list[tuple[np.ndarray, np.ndarray]], shown: int) -> str:
    """Measures the trained variants; writes ablation.json and ablation.png, and returns the table."""
    from .evaluation import evaluate_bin, network_fill
    from .evaluation_report import table
    from .fills import composite
    from .generator import Generator

    generators = {}
    for name in names:
        folder = path_of(Path(variant(config, name).out), config.steps)
        generators[name] = Generator.load(folder / "generator.safetensors")
    methods = {name: network_fill(generator) for name, generator in generators.items()}
    rows = evaluate_bin(methods, (0.2, 0.3), pairs, protocols=("standard",))
    facts = {"config": dataclasses.asdict(config), "rows": [dataclasses.asdict(row) for row in rows]}
    (Path(config.out) / "ablation.json").write_text(json.dumps(facts, indent=1) + "\n")
    holed = [np.where(valid[..., None], image, np.uint8(255)) for image, valid in pairs[:shown]]
    columns = {"input": holed}
    for name, fill in methods.items():
        black = [np.where(valid[..., None], image, np.uint8(0)) for image, valid in pairs[:shown]]
        columns[name] = [
            composite(image, valid, fill(input_, valid))
            for (image, valid), input_ in zip(pairs[:shown], black, strict=True)
        ]
    columns["truth"] = [image for image, _ in pairs[:shown]]
    sheet(columns, Path(config.out) / "ablation.png")
    return table(rows, ["standard"])


def main(argv: list[str]) -> int:
    """``msa ablation``; returns the exit code."""
    from .training import TrainingError
    from .training_run import run

    parser = argparse.ArgumentParser(
        prog="msa ablation",
        description=__doc__.split("\n\n")[1],
        epilog="Everything else is an option of 'msa train', for all variants.",
    )
    parser.add_argument(
        "--only", default=",".join(VARIANTS), help=f"variants, separated by commas; all: {', '.join(VARIANTS)}"
    )
    parser.add_argument(
        "--held_out", metavar="FOLDER", help="images to measure on; default: facades training never draws"
    )
    parser.add_argument("--count", type=int, default=20, help="how many of them")
    parser.add_argument("--shown", type=int, default=4, help="rows of the picture")
    arguments, rest = parser.parse_known_args(argv)
    names = arguments.only.split(",")
    if unknown := [name for name in names if name not in VARIANTS]:
        parser.error(f"unknown variant {unknown[0]!r}; known are {', '.join(VARIANTS)}")
    try:
        config = parse(rest, "msa ablation")
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    for name in [name for name in names if name != "ours" and not differs(config, name)]:
        print(f"msa ablation: {name} is the same as ours with this configuration, and left out", file=sys.stderr)
        names.remove(name)
    try:
        pairs = held_out(config, arguments.held_out, arguments.count)
        for name in names:
            print(f"msa ablation: {name}", file=sys.stderr)
            run(variant(config, name))
        print(compare(config, names, pairs, arguments.shown))
    except (TrainingError, CheckpointError, ValueError, OSError) as error:
        print(f"msa ablation: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    print(f"picture: {config.out}/ablation.png   figures: {config.out}/ablation.json")
    return 0
