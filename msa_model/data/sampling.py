"""The order of the images, and the loader: every batch is a function of (seed, epoch, step) alone."""

from __future__ import annotations

import functools
import logging
import signal
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

if TYPE_CHECKING:
    from .training_data import InpaintingData

_LOG = logging.getLogger("msa_model.data")

# The first key of a `random_stream` says what the numbers are for.
ORDER, IMAGE, REPLACEMENT, MASK, FIXED_MASK = range(5)


def random_stream(seed: int, *key: int) -> np.random.Generator:
    """Makes the random generator of a (seed, key): independent of all others, and the same on every machine."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=key)))


class StepSampler(Sampler[list[tuple[int, int]]]):
    """Yields this rank's part of every global batch: a list of ``(index, draw)`` per step.

    Every epoch is another permutation of the images; those that do not fill a last global batch are left out of that
    epoch. ``draw`` is the epoch, so that an image is cropped and masked anew each time. The batch of a step depends on
    (seed, epoch, step) alone: a run that starts at step t continues as if it had begun at 0, and the batches of all
    ranks, concatenated in their order, are the batch of one process with ``batch_size * world_size``.

    Args:
        length: number of images.
        batch_size: images per step and rank.
        seed: 0 or more.
        start_step: the first step to yield.
        steps: length of the whole run: the sampler ends before this step. None: it never ends.
        rank, world_size: this process among how many.

    Raises:
        ValueError: fewer images than one global batch; an impossible number.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int = 0,
        start_step: int = 0,
        steps: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 1 or world_size < 1 or not 0 <= rank < world_size or start_step < 0 or seed < 0:
            raise ValueError(
                f"msa_model.data: batch_size and world_size must be positive, rank below world_size, seed and"
                f" start_step not negative; got {batch_size=}, {world_size=}, {rank=}, {seed=}, {start_step=}"
            )
        self.global_batch = batch_size * world_size
        if length < self.global_batch:
            made_of = f" ({batch_size} on each of {world_size} processes)" if world_size > 1 else ""
            raise ValueError(
                f"msa_model.data: {length} image{'s' * (length != 1)} cannot fill a batch of {self.global_batch}"
                + made_of
            )
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.start_step, self.steps, self.rank = start_step, steps, rank

    @property
    def steps_per_epoch(self) -> int:
        return self.length // self.global_batch

    def batch(self, step: int) -> list[tuple[int, int]]:
        """The ``(index, draw)`` of this rank at a step."""
        epoch, position = divmod(step, self.steps_per_epoch)
        start = position * self.global_batch + self.rank * self.batch_size
        return [(index, epoch) for index in self._order(epoch)[start : start + self.batch_size].tolist()]

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        step = self.start_step
        while self.steps is None or step < self.steps:
            yield self.batch(step)
            step += 1

    def __len__(self) -> int:
        """The number of steps that are left.

        Raises:
            TypeError: the sampler is endless; torch's loader expects this type.
        """
        if self.steps is None:
            raise TypeError("a StepSampler without steps has no length")
        return max(0, self.steps - self.start_step)

    def _order(self, epoch: int) -> np.ndarray:
        return _permutation(self.seed, epoch, self.length)


@functools.lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, length: int) -> np.ndarray:
    return random_stream(seed, ORDER, epoch).permutation(length)


class Skipped:
    """Collects the skipped files that this process knows of: warns once per file, raises where there are too many.

    Args:
        limits: kind of file -> (number of files, how many may be unreadable); a kind without an entry has no limit.

    Attributes:
        lines: kind -> one line per file, which names it.
    """

    def __init__(self, limits: dict[str, tuple[int, int]]) -> None:
        self.limits = limits
        self.lines: dict[str, list[str]] = {}

    def __len__(self) -> int:
        return sum(map(len, self.lines.values()))

    def add(self, reports: list[str]) -> None:
        """Adds the "skipped" entries of a batch.

        Raises:
            ValueError: more files of a kind than its limit.
        """
        for report in filter(None, "\n".join(reports).split("\n")):
            kind, line = report.split("\t", 1)
            lines = self.lines.setdefault(kind, [])
            if line not in lines:
                lines.append(line)
                _LOG.warning("msa_model.data: skipped %s", line)
                self.check(kind, lines)

    def check(self, kind: str, lines: list[str]) -> None:
        """Compares the number of lines with the limit of their kind.

        Raises:
            ValueError: there are more.
        """
        total, limit = self.limits.get(kind, (0, len(lines)))
        if len(lines) > limit:
            more = f"; … and {len(lines) - 3} more" if len(lines) > 3 else ""
            raise ValueError(
                f"msa_model.data: {len(lines)} of {total} {kind} files cannot be used, {limit} may be (max_corrupt): "
                f"{'; '.join(lines[:3])}{more}"
            )


class CountingLoader(DataLoader[dict[str, Any]]):
    """A `DataLoader` that counts the files that any worker skipped: ``loader.skipped``."""

    dataset: _ErrorsAsItems

    @property
    def skipped(self) -> Skipped:
        return self.dataset.data.skipped

    # torch declares its own iterator class, but promises and uses no more than an iterator.
    def __iter__(self) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        for batch in super().__iter__():
            if "error" in batch:
                raise ValueError(batch["error"][0])
            self.skipped.add(batch["skipped"])
            yield batch


class _ErrorsAsItems(Dataset[dict[str, Any]]):
    """Returns an error as an item. Raised in a worker, it would reach the main process inside a traceback."""

    def __init__(self, data: InpaintingData) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitems__(self, addresses: list[tuple[int, int]]) -> list[dict]:
        try:
            return [self.data[address] for address in addresses]
        except ValueError as error:
            return [{"error": str(error)}]


def make_loader(data: InpaintingData, sampler: StepSampler, workers: int) -> CountingLoader:
    """Makes a loader.

    Args:
        data: an `InpaintingData`.
        sampler: a `StepSampler`, which gives the order.
        workers: processes that load, with one thread each; 0 loads in this process.

    Returns:
        A `DataLoader` of dicts: image (N, 3, H, W) float32 in [0, 1], mask (N, 1, H, W) bool (True = valid), index (N,)
        int64, skipped (N strings, see `InpaintingData`). Pinned memory where CUDA is available. ``loader.skipped``
        counts the skipped files.

    Raises:
        ValueError: a negative number of workers. While iterating: too many files that cannot be used.
    """
    if workers < 0:
        raise ValueError(f"msa_model.data: workers must be 0 or more, got {workers}")
    return CountingLoader(
        _ErrorsAsItems(data),
        batch_sampler=sampler,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_start_worker,
    )


def _start_worker(_: int) -> None:
    torch.set_num_threads(1)
    if "cv2" in sys.modules:
        sys.modules["cv2"].setNumThreads(0)
    # Ctrl-C reaches every process of the terminal. The main process ends the workers, without a traceback from each.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.excepthook = _report


def _report(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """Reports an error of a worker, unless it says that the main process has gone while it took a batch."""
    if not issubclass(kind, EOFError | ConnectionError):
        sys.__excepthook__(kind, error, trace)
