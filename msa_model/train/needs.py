"""Estimates the memory that a training run needs, and says what would fit into the memory that there is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch

from ..nn.generator import GeneratorConfig
from .config import TrainConfig
from .errors import TrainingError

#: Bytes per value that a network's layers return: what the backward pass keeps, and what exists beside it for a while.
#: Fitted to the measured peaks of steps on the CPU, where the allocator's own gaps count too; a test measures again.
_GENERATOR, _DISCRIMINATOR, _FEATURES = 32.0, 8.0, 10.0
#: The share of it that every step needs, whatever the allocator does.
_SURE = 0.25

#: The number of the discriminator's weights.
DISCRIMINATOR_WEIGHTS = 2_764_737


@dataclasses.dataclass(frozen=True)
class Need:
    """Bytes that a run needs on its device.

    Args:
        fixed: weights, gradients and the optimisers' moments.
        per_image: what every image of the batch adds.
    """

    fixed: float
    per_image: float

    def of(self, batch: int) -> float:
        """Bytes that a run needs, by estimate."""
        return self.fixed + batch * self.per_image

    def at_least(self, batch: int) -> float:
        """Bytes that no such run goes without."""
        return self.fixed + batch * self.per_image * _SURE


def estimate(config: TrainConfig) -> Need:
    """Estimates what a run needs, without building anything."""
    generator, discriminator = config.generator, config.loss.adversarial > 0
    weights = generator_weights(generator)
    # A weight has a gradient and two moments of Adam.
    fixed = 4.0 * (weights * (5 if config.ema else 4) + DISCRIMINATOR_WEIGHTS * (4 if discriminator else 1))
    side = float(config.data.size)
    bytes_ = _GENERATOR * _generator_activations(generator, side)
    if discriminator:
        bytes_ += _DISCRIMINATOR * (64 / 4 + 128 / 16 + 256 / 64 + 512 / 64) * side**2
    if config.loss.vgg != "none":
        fixed += 4 * 1.74e6  # VGG-16 up to its third pooling
        bytes_ += _FEATURES * (2 * 64 + 2 * 128 / 4 + 3 * 256 / 16) * side**2
    if config.precision != "float32":
        bytes_ *= 0.6
    batches = 1 + 4 * config.data.workers  # that are loaded ahead
    return Need(fixed, bytes_ + batches * 13 * side**2)


def generator_weights(config: GeneratorConfig) -> float:
    """The number of a generator's weights; `torch.device("meta")` would take seconds to count them."""
    total = 0.0
    for level in range(1, config.depth + 1):
        kernel = {1: 7, 2: 5, 3: 5}.get(level, 3)
        before, width = config.encoder_width(level - 1), config.encoder_width(level)
        total += width * (before * kernel**2 + 1) + (2 * width if level > 1 else 0)
        low = width if level == config.depth else config.decoder_width(level + 1)
        out = config.decoder_width(level)
        total += out * ((low + before) * 9 + 1) + (2 * out if level > 1 else 0)
    for level in config.attention_levels:
        channels = config.decoder_width(level)
        hidden = 2 * channels * config.se_ratio
        total += 4 * channels * hidden + hidden + 2 * channels + channels * (2 * channels + 1)
    return total


def _generator_activations(config: GeneratorConfig, side: float) -> float:
    """The number of values in the outputs of the generator's layers, per image."""
    levels = range(1, config.depth + 1)
    encoder = sum(config.encoder_width(i) * (side / 2**i) ** 2 for i in levels)
    decoder = sum(config.decoder_width(i) * (side / 2 ** (i - 1)) ** 2 for i in levels)
    return encoder + decoder


def free_memory(device: torch.device) -> float:
    """Bytes that this process can still take on a device; infinite where that is unknown."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        kib = {line.split(":")[0]: int(line.split()[1]) for line in lines}
        free = (kib["MemAvailable"] + kib["SwapFree"]) * 1024
    except (OSError, KeyError, ValueError, IndexError):
        return float("inf")
    return min(free, _free_in_group(), _free_addresses())


def _free_in_group() -> float:
    """What the limit of the control group leaves, as containers have one."""
    try:
        group = next(line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
        folder = Path("/sys/fs/cgroup") / group.strip("/")
        limit, used = ((folder / name).read_text() for name in ("memory.max", "memory.current"))
        cached = next(line for line in (folder / "memory.stat").read_text().splitlines() if line.startswith("file "))
        return int(limit) - int(used) + int(cached.split()[1])
    except (OSError, ValueError, StopIteration):
        return float("inf")


def _free_addresses() -> float:
    """What ``ulimit -v`` leaves."""
    try:
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except (ImportError, OSError, ValueError):
        return float("inf")
    return float("inf") if limit == resource.RLIM_INFINITY else max(0.0, limit - used)


def refuse_what_cannot_fit(config: TrainConfig, device: torch.device) -> None:
    """Refuses a run that needs more memory than there is.

    Raises:
        TrainingError: it does; the message says what would fit.
    """
    if estimate(config).at_least(config.batch) > (free := free_memory(device)):
        raise TrainingError(explain(config, device, free))


def explain(config: TrainConfig, device: torch.device, free: float) -> str:
    """Says in one line what a run needs and what would fit.

    Args:
        config: the run.
        device: where it trains.
        free: bytes that are free for it.
    """
    need = estimate(config).of(config.batch)
    asked = (
        f"batch {config.batch}, data.size {config.data.size}, generator.base_width {config.generator.base_width} and "
        f"generator.depth {config.generator.depth} need about {_gib(need)}"
    )
    return f"not enough memory on {device}: {asked}, {_gib(free)} are free; by estimate {_what_fits(config, free)}"


def _what_fits(config: TrainConfig, free: float) -> str:
    """The largest batch that fits; else the largest size, else the largest base_width."""

    def fits(changed: TrainConfig, batch: int) -> bool:
        return estimate(changed).of(batch) <= 0.9 * free

    need = estimate(config)
    batch = min(config.batch, int((0.9 * free - need.fixed) // need.per_image))
    # Batch norm needs two values; a batch of one image is for images that leave more at the bottleneck.
    least = 1 if config.data.size > 2**config.generator.depth else 2
    if batch == config.batch:
        batch = batch * 3 // 4  # the estimate was wrong, so it is not repeated
    if batch >= least:
        return f"batch {batch} fits"
    step = 2**config.generator.depth
    size = step * _largest(lambda n: fits(_with_size(config, n * step), 2), config.data.size // step)
    if size >= 32:
        return f"batch 2 with data.size {size} fits"
    small = _with_size(config, min(config.data.size, 64))
    width = _largest(lambda n: fits(_with_width(small, n), 2), config.generator.base_width - 1)
    if width:
        return f"batch 2 with data.size {small.data.size} and generator.base_width {width} fits"
    return "nothing fits"


def _largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest whole number up to `most` that fits, 0 if none does."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _with_size(config: TrainConfig, size: int) -> TrainConfig:
    return dataclasses.replace(config, data=dataclasses.replace(config.data, size=size))


def _with_width(config: TrainConfig, width: int) -> TrainConfig:
    return dataclasses.replace(config, generator=dataclasses.replace(config.generator, base_width=width))


def _gib(size: float) -> str:
    for unit in ("MiB", "GiB", "TiB"):
        size /= 2**20 if unit == "MiB" else 2**10
        if size < 1000:
            return f"{size:.0f} MiB" if unit == "MiB" else f"{size:.1f} {unit}"
    return "more than 1000 TiB"
