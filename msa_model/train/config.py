"""Everything that a training run depends on, its presets, and how a command line becomes one."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import re
from typing import Literal

from .generator import GeneratorConfig


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Images and masks.

    Args:
        images: a folder of images, any nesting, or "synthetic" for rendered building facades. Of a list of them each
            gives as many images as any other; one that is named twice gives twice as many.
        masks: a folder of mask files (white = hole), or "brush" for the built-in free-form brush.
        invert_masks: mask files have black = hole.
        geometry: how photographs become squares: "paris" and "places2" (shorter side to 350, random crop), "celeba"
            (shorter side to 256, centre crop); for sides other than 256 in proportion.
        hole_ratio: range of the brush's share of hole pixels.
        size: side of the training images in pixels.
        workers: processes that load; 0 loads in the training process.
    """

    images: list[str] | str = "synthetic"
    masks: str = "brush"
    invert_masks: bool = False
    geometry: Literal["paris", "celeba", "places2"] = "paris"
    hole_ratio: tuple[float, float] = (0.01, 0.6)
    size: int = 256
    workers: int = 2


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Weights of Eq. 22 and how its gaps are settled (see :class:`msa_model.InpaintingLoss`).

    Args:
        vgg: torchvision's VGG-16 weights, or "none" to train without the perceptual and style terms.
        vgg_input: "imagenet" normalises the features' input, "none" feeds [0, 1] as the released code does.
        variant: "paper" compares the prediction with the truth, "released" the composite too.
        perceptual, style, adversarial, total_variation, hole, valid: the weights; adversarial = 0 trains without the
            discriminator.
    """

    vgg: str = ""
    vgg_input: Literal["imagenet", "none"] = "imagenet"
    variant: Literal["paper", "released"] = "paper"
    perceptual: float = 0.05
    style: float = 120.0
    adversarial: float = 0.1
    total_variation: float = 0.1
    hole: float = 6.0
    valid: float = 1.0


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A training run; the defaults are the paper's (Section 4.2) where it says something.

    Args:
        out: folder of the run: checkpoints, TensorBoard events, the configuration.
        data, loss, generator: see there.
        steps: length of the run, in steps of the whole batch.
        batch: images per step and process.
        lr_generator, lr_discriminator: Adam's rates.
        schedule: "constant", the paper's; "cosine" lets the rates fall to a hundredth by the last step.
        fine_tune: the second stage: generator at 5e-5 (unless given) and batch-norm statistics frozen. Needs `init`.
        init: a generator's weights to start from.
        resume: continue from the newest checkpoint in `out`, if there is one.
        precision: "float32", or autocast to "bfloat16" or "float16" (with loss scaling).
        compile: compile generator and discriminator with torch.compile; "reduce-overhead" uses CUDA graphs.
        ema: decay of an exponential moving average of the generator's weights; 0: none.
        sync_norm: batch statistics over all processes.
        seed: of weights, data and masks.
        device: "auto", "cpu" or "cuda"; under torchrun every process takes its own GPU.
        save_every, keep: steps between checkpoints, and how many of them stay.
        log_every, images_every: steps between TensorBoard scalars, and image grids; 0: none.
        max_bad_steps: non-finite steps (skipped and counted) after which the run stops.
    """

    out: str = "runs/train"
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    generator: GeneratorConfig = dataclasses.field(default_factory=GeneratorConfig)
    steps: int = 500_000
    batch: int = 6
    lr_generator: float | None = None
    lr_discriminator: float = 2e-5
    schedule: Literal["constant", "cosine"] = "constant"
    fine_tune: bool = False
    init: str | None = None
    resume: bool = True
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    compile: Literal["no", "default", "reduce-overhead"] = "no"
    ema: float = 0.0
    sync_norm: bool = False
    seed: int = 0
    device: str = "auto"
    save_every: int = 1000
    keep: int = 3
    log_every: int = 50
    images_every: int = 500
    max_bad_steps: int = 20

    def __post_init__(self) -> None:
        def refuse(what: str) -> None:
            raise ValueError(f"msa train: {what}")

        for name in ("steps", "batch", "save_every", "keep", "log_every", "max_bad_steps"):
            if getattr(self, name) < 1:
                refuse(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.ema < 1:
            refuse(f"ema must be in [0, 1), got {self.ema}")
        if self.data.size < 1:
            refuse(f"data.size must be positive, got {self.data.size}")
        if not self.data.images:
            refuse("data.images names no images")
        low, high = self.data.hole_ratio
        if not 0 <= low < high <= 1:
            refuse(f"data.hole_ratio must be 0 <= low < high <= 1, got {low}, {high}")
        if self.fine_tune and not self.init:
            refuse("fine_tune needs init, the generator's weights to start from")
        if not self.loss.vgg:
            refuse(
                "loss.vgg must name torchvision's VGG-16 weights (vgg16-397923af.pth), or be 'none' to train without "
                "the perceptual and style terms"
            )

    @property
    def generator_rate(self) -> float:
        """Adam's rate of the generator: as given, else the paper's of the stage."""
        return self.lr_generator if self.lr_generator is not None else (5e-5 if self.fine_tune else 2e-4)


def changes(before: dict, after: dict, prefix: str = "") -> list[str]:
    """What differs between two configurations as nested dicts, a line per key: "batch: 4, now 8"."""
    lines = []
    for name in before.keys() | after.keys():
        old, new = before.get(name), after.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            lines += changes(old, new, f"{prefix}{name}.")
        elif old != new:
            lines.append(f"{prefix}{name}: {old}, now {new}")
    return sorted(lines)


#: What `--preset` sets; the command line and a configuration file go over it.
PRESETS: dict[str, dict] = {
    "paris": {"data": {"geometry": "paris"}},
    "celeba": {"data": {"geometry": "celeba"}},
    "places2": {"data": {"geometry": "places2"}},
    "synthetic": {
        "data": {"images": "synthetic", "size": 128},
        "generator": {"base_width": 24, "depth": 6},
        "loss": {"vgg": "none"},
        "steps": 20_000,
        "lr_generator": 1e-3,
        "lr_discriminator": 1e-4,
    },
}


def parse(argv: list[str], prog: str = "msa train") -> TrainConfig:
    """The configuration of a command line: `--preset NAME`, then `--config FILE.yaml`, then `--key value`.

    Raises:
        ValueError: unknown keys (with the nearest known one), wrong types, impossible combinations.
        SystemExit: after ``--help`` and ``--print_config``.
    """
    from jsonargparse import ArgumentError, ArgumentParser, Namespace

    parser = ArgumentParser(prog=prog, exit_on_error=False, description="Trains the multistage attention network.")
    parser.add_argument("--preset", choices=PRESETS, help="defaults for a data set")
    parser.add_argument("--config", action="config", help="YAML file with the keys below")
    parser.add_class_arguments(TrainConfig, as_group=False)
    preset = next((b for a, b in itertools.pairwise(argv) if a == "--preset"), None)
    preset = next((a.split("=", 1)[1] for a in argv if a.startswith("--preset=")), preset)
    parser.set_defaults(_flat(PRESETS.get(preset, {})))
    try:
        parsed = parser.parse_args(argv)
        values = parser.instantiate(parsed)
    except ArgumentError as error:
        raise ValueError(_with_nearest(f"{prog}: {error}", _keys(TrainConfig))) from error
    values = {name: value for name, value in vars(values).items() if name not in ("preset", "config")}
    return TrainConfig(**{name: value for name, value in values.items() if not isinstance(value, Namespace)})


def _flat(nested: dict, prefix: str = "") -> dict:
    result = {}
    for name, value in nested.items():
        result |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return result


def _keys(config: type, prefix: str = "") -> list[str]:
    keys = []
    nested = {"data": DataConfig, "loss": LossConfig, "generator": GeneratorConfig}
    for field in dataclasses.fields(config):
        is_nested = config is TrainConfig and field.name in nested
        keys += _keys(nested[field.name], f"{field.name}.") if is_nested else [prefix + field.name]
    return keys


def _with_nearest(message: str, known: list[str]) -> str:
    """The message in one line, with the known key nearest to one that it calls unknown."""
    line = " ".join(message.split())
    if not any(phrase in line for phrase in ("nrecognized", "not expected", "does not accept")):
        return line
    tails = {key.rsplit(".", 1)[-1]: key for key in known} | {key: key for key in known}
    for word in re.findall(r"[\w.]+", line):
        if word not in tails and (near := difflib.get_close_matches(word, tails, n=1, cutoff=0.75)):
            return f"{line}; did you mean {tails[near[0]]}?"
    return line
