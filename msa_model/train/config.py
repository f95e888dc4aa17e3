"""The configuration of a training run, its presets, and how a command line is read into one."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import re
from pathlib import Path
from typing import Literal

from ..nn.generator import GeneratorConfig


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Images and masks.

    Args:
        images: a folder of images, any nesting, or "synthetic" for rendered building facades; or a list of these. Every
            entry of a list gives the same number of images, so an entry that is listed twice gives twice as many.
        masks: a folder of mask files (white = hole), or "brush" for the built-in free-form brush.
        invert_masks: black is the hole in mask files.
        geometry: how photographs become squares: "paris" and "places2" (shorter side to 350, random crop), "celeba"
            (shorter side to 256, centre crop); in proportion for other sizes than 256.
        hole_ratio: range of the share of hole pixels, for the brush.
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
    """Weights and options of the loss, Eq. 22 (see `msa_model.InpaintingLoss`).

    Args:
        vgg: file of torchvision's VGG-16 weights, or "none" to train without the perceptual and style terms.
        vgg_input: "imagenet" normalises the features' input, "none" feeds [0, 1] as the released code does.
        variant: "paper" compares the prediction with the truth, "released" also the composite.
        perceptual: weight of the perceptual term.
        style: weight of the style term.
        adversarial: weight of the adversarial term; 0 trains without the discriminator.
        total_variation: weight of the total variation of the composite's hole.
        hole: weight of the difference in the hole.
        valid: weight of the difference in valid pixels.
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
    """Options of a training run. The defaults are the paper's (Section 4.2) where it names a value.

    Args:
        out: folder of the run, for checkpoints and TensorBoard events.
        data: images and masks.
        loss: weights and options of the loss.
        generator: options of the generator.
        steps: length of the run, in steps of the whole batch.
        batch: images per step and process.
        lr_generator: Adam's rate of the generator; by default the paper's rate of the stage.
        lr_discriminator: Adam's rate of the discriminator.
        schedule: "constant" as in the paper; "cosine" lowers the rates to a hundredth by the last step.
        fine_tune: train the second stage: generator at 5e-5 by default, batch-norm statistics frozen. Needs `init`.
        init: file of a generator's weights to start from.
        resume: continue from the newest checkpoint in `out`, if there is one. False: refuse a folder with checkpoints.
        precision: "float32", or autocast to "bfloat16" or "float16" (with loss scaling).
        compile: compile generator and discriminator with torch.compile; "reduce-overhead" uses CUDA graphs.
        ema: decay of an exponential moving average of the generator's weights; 0 keeps none.
        sync_norm: take batch statistics over all processes.
        seed: of weights, data and masks.
        device: "auto", "cpu", "cuda" or "cuda:i"; under torchrun every process takes its own GPU.
        save_every: steps between checkpoints.
        keep: how many checkpoints to keep.
        log_every: steps between TensorBoard scalars.
        images_every: steps between TensorBoard images; 0 writes none.
        max_bad_steps: the run stops after this many steps that are not finite; such steps are skipped and counted.
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

        texts = {"out": self.out, "init": self.init, "data.masks": self.data.masks, "loss.vgg": self.loss.vgg}
        images = [self.data.images] if isinstance(self.data.images, str) else self.data.images
        for name, text in [*texts.items(), *(("data.images", name) for name in images)]:
            if "\0" in (text or ""):
                refuse(f"{name} must be a path, which has no NUL character, got {text!r}")
        if not self.out.strip():
            refuse(f"out must name a folder, got {self.out!r}")
        if not 0 <= self.seed < 2**63:
            refuse(f"seed must be between 0 and 2^63 - 1, got {self.seed}")
        if self.data.workers < 0:
            refuse(f"data.workers must be 0 or more, got {self.data.workers}")
        if self.images_every < 0:
            refuse(f"images_every must be 0 or more, got {self.images_every}")
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
        """Adam's rate of the generator: the given one, else the paper's for the stage."""
        return self.lr_generator if self.lr_generator is not None else (5e-5 if self.fine_tune else 2e-4)


def changes(before: dict, after: dict, prefix: str = "") -> list[str]:
    """Lists the differences of two configurations (nested dicts), a line per key: "batch: 4, now 8"."""
    lines: list[str] = []
    for name in before.keys() | after.keys():
        old, new = before.get(name), after.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            lines += changes(old, new, f"{prefix}{name}.")
        elif old != new:
            lines.append(f"{prefix}{name}: {old}, now {new}")
    return sorted(lines)


#: What `--preset` sets; a configuration file overrides it, and the command line overrides both.
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
    """Reads a configuration from a command line.

    Later ones override earlier ones: `--preset NAME`, `--config FILE.yaml`, `--key value`.

    Args:
        argv: the arguments.
        prog: the command's name, for the help text.

    Raises:
        ValueError: a key is unknown (the message suggests the nearest one), a value has the wrong type, or values
            contradict one another.
        SystemExit: after ``--help`` and ``--print_config``.
    """
    from jsonargparse import ArgumentError, ArgumentParser, Namespace

    parser = ArgumentParser(prog=prog, exit_on_error=False, description="Trains the multistage attention network.")
    parser.add_argument("--preset", choices=PRESETS, help="defaults for a data set")
    parser.add_argument("--config", action="config", help="YAML file with the keys below")
    parser.add_class_arguments(TrainConfig, as_group=False)
    _refuse_special_files(argv)
    preset = next((b for a, b in itertools.pairwise(argv) if a == "--preset"), "")
    preset = next((a.split("=", 1)[1] for a in argv if a.startswith("--preset=")), preset)
    parser.set_defaults(_flat(PRESETS.get(preset, {})))
    try:
        parsed = parser.instantiate(parser.parse_args(argv))
    except ArgumentError as error:
        raise ValueError(_with_nearest(str(error), _keys(TrainConfig))) from error
    values = {name: value for name, value in vars(parsed).items() if name not in ("preset", "config")}
    return TrainConfig(**{name: value for name, value in values.items() if not isinstance(value, Namespace)})


def _refuse_special_files(argv: list[str]) -> None:
    """Refuses a pipe or a device as a configuration file: to read it could wait for ever."""
    options = ("--config", "--data", "--loss", "--generator")
    given = [pair for pair in itertools.pairwise(argv) if pair[0] in options]
    given += [(name, value) for name, _, value in (text.partition("=") for text in argv) if name in options and value]
    for name, value in given:
        if "\0" not in value and Path(value).exists() and not Path(value).is_file():
            raise ValueError(f"msa train: {name[2:]} must be a regular file, which {value} is not")


def _flat(nested: dict, prefix: str = "") -> dict:
    """Flattens nested dicts: {"data": {"size": 1}} → {"data.size": 1}."""
    result: dict = {}
    for name, value in nested.items():
        result |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return result


def _keys(config: type, prefix: str = "") -> list[str]:
    """Lists the keys of a configuration: "data.size", …"""
    keys: list[str] = []
    nested: dict[str, type] = {"data": DataConfig, "loss": LossConfig, "generator": GeneratorConfig}
    for field in dataclasses.fields(config):
        is_nested = config is TrainConfig and field.name in nested
        keys += _keys(nested[field.name], f"{field.name}.") if is_nested else [prefix + field.name]
    return keys


def _with_nearest(message: str, known: list[str]) -> str:
    """Puts the message in one line and, if it names an unknown key, suggests the nearest known one."""
    line = " ".join(message.split())
    if not any(phrase in line for phrase in ("nrecognized", "not expected", "does not accept")):
        return line
    tails = {key.rsplit(".", 1)[-1]: key for key in known} | {key: key for key in known}
    for word in re.findall(r"[\w.]+", line):
        if word not in tails and (near := difflib.get_close_matches(word, tails, n=1, cutoff=0.75)):
            return f"{line}; did you mean {tails[near[0]]}?"
    return line
