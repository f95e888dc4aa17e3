"""The training loop: loads data, runs steps, logs, and writes checkpoints."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from ..data.image_sources import Facades, ImageFolder, ImageSource, MixedImages
from ..data.mask_sources import BrushMasks, MaskFolder, MaskSource
from ..data.sampling import StepSampler, make_loader
from ..data.training_data import InpaintingData
from ..memory import is_out_of_memory
from . import checkpoints, needs
from .config import TrainConfig
from .errors import TrainingError
from .folder_lock import FolderLock
from .processes import Processes
from .trainer import Trainer


def training_data(config: TrainConfig) -> InpaintingData:
    """Opens the images and masks of a configuration."""
    data = config.data
    sources: list[ImageSource] = [
        Facades(data.size) if name == "synthetic" else ImageFolder(name, data.size, data.geometry)
        for name in ([data.images] if isinstance(data.images, str) else data.images)
    ]
    images = sources[0] if len(sources) == 1 else MixedImages(sources)
    masks: MaskSource = (
        BrushMasks(data.hole_ratio) if data.masks == "brush" else MaskFolder(data.masks, data.invert_masks)
    )
    return InpaintingData(images, masks, seed=config.seed)


def batches(config: TrainConfig, trainer: Trainer) -> Iterator[dict]:
    """Yields the batches from the trainer's step to the last step of the run."""
    processes = trainer.processes
    data = training_data(config)
    sampler = StepSampler(
        len(data),
        config.batch,
        seed=config.seed,
        start_step=trainer.step_number,
        steps=config.steps,
        rank=processes.rank,
        world_size=processes.world,
    )
    yield from make_loader(data, sampler, config.data.workers)


def run(config: TrainConfig) -> Trainer:
    """Trains to the configuration's last step, from the newest checkpoint if it resumes.

    Earlier checkpoints stay, whatever the error. A lock keeps other trainings out of the folder until this one ends.

    Returns:
        The trainer, after its last step.

    Raises:
        TrainingError: training cannot start, memory runs out, or too many steps are not finite.
        CheckpointError: a checkpoint cannot be written or read.
        ValueError: the data cannot be used.
    """
    processes = Processes.start(config.device)
    free = needs.free_memory(processes.device)  # before the run takes any
    try:
        with _own_folder(config, processes):
            return _run(config, processes)
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise TrainingError(needs.explain(config, processes.device, free)) from error
        if str(error).startswith("msa_ops::"):  # such as a backend that cannot run here
            raise TrainingError(str(error).splitlines()[0]) from error
        raise
    finally:
        processes.stop()


@contextlib.contextmanager
def _own_folder(config: TrainConfig, processes: Processes) -> Iterator[None]:
    """Locks the folder of the run, for all its processes.

    Raises:
        TrainingError: another training uses it, it cannot be written, or its checkpoints would be mixed with new ones.
    """
    folder, lock, problem = Path(config.out), None, ""
    if processes.rank == 0:
        try:
            lock = FolderLock(folder)
            if lock.problem:
                _say(processes, lock.problem)
        except TrainingError as error:
            problem = str(error)
    if problem := processes.from_first(problem):
        raise TrainingError(problem)
    try:
        if not config.resume and (steps := checkpoints.steps_in(folder)):
            raise TrainingError(
                f"{folder} holds checkpoints of another run, the newest of step {steps[-1]}, and resume is false: name "
                "another folder (--out), continue that run (--resume true), or remove its checkpoints"
            )
        if processes.rank == 0:
            checkpoints.clean(folder)
        yield
    finally:
        if lock is not None:
            lock.release()


def _run(config: TrainConfig, processes: Processes) -> Trainer:
    from tqdm import tqdm

    needs.refuse_what_cannot_fit(config, processes.device)
    trainer = Trainer(config, processes)
    changes = trainer.resume() if config.resume else None
    if changes is not None:
        _say(processes, f"continuing after step {trainer.step_number}")
        if trainer.resumed_unchecked:
            _say(processes, "an older version wrote this checkpoint, without checksums: damage to it would not show")
        for line in changes:
            _say(processes, f"not as before: {line}")
    log = _Log(config, trainer)
    start, first = time.monotonic(), trainer.step_number
    bar = tqdm(total=config.steps, initial=first, desc="training", unit="step", disable=processes.rank > 0)
    with bar, log:
        for batch in batches(config, trainer):
            image = batch["image"].to(trainer.device, memory_format=torch.channels_last, non_blocking=True)
            mask = batch["mask"].to(trainer.device, non_blocking=True)
            terms = trainer.step(image, mask)
            bar.update()
            done = trainer.step_number
            if done % config.log_every == 0 or done == config.steps:
                per_second = (done - first) * config.batch * processes.world / (time.monotonic() - start)
                bar.set_postfix_str(log.scalars(terms, per_second))
                trainer.stop_if_not_finite()
            if config.images_every and done % config.images_every == 0:
                log.images(image, mask)
            if done % config.save_every == 0 or done == config.steps:
                trainer.save()
    return trainer


def _say(processes: Processes, text: str) -> None:
    """Prints a line in the first process."""
    if processes.rank == 0:
        print(f"msa train: {text}", file=sys.stderr)


class _Log:
    """Writes TensorBoard events in the first process."""

    def __init__(self, config: TrainConfig, trainer: Trainer) -> None:
        self.trainer, self.writer = trainer, None
        if trainer.processes.rank == 0:
            from torch.utils.tensorboard import SummaryWriter

            # Later events than the step at which this run starts are of a run that was interrupted.
            self.writer = SummaryWriter(Path(config.out) / "events", purge_step=trainer.step_number + 1)
            self.writer.add_text("config", str(dataclasses.asdict(config)), trainer.step_number)

    def __enter__(self) -> _Log:
        return self

    def __exit__(self, *error: object) -> None:
        if self.writer is not None:
            self.writer.close()

    def scalars(self, terms: dict[str, Tensor], per_second: float) -> str:
        """Writes the terms of a step; returns the line for the progress bar. Waits for the device."""
        values = {name: term.item() for name, term in terms.items()}
        if self.writer is not None:
            for name, value in (values | {"images_per_second": per_second}).items():
                self.writer.add_scalar(name, value, self.trainer.step_number)
            self.writer.add_scalar("bad_steps", self.trainer.bad_steps.item(), self.trainer.step_number)
        return f"loss {values['total']:.3f}, {per_second:.1f} images/s"

    def images(self, image: Tensor, mask: Tensor, count: int = 4) -> None:
        """Writes input with holes, prediction, composite and truth of the first images of the batch, side by side."""
        if self.writer is None:
            return
        image, mask = image[:count], mask[:count]
        generator = self.trainer.generator
        generator.eval()
        with torch.no_grad():
            prediction = generator(image, mask).clamp(0, 1).float()
        self.trainer.train_mode()
        columns = torch.where(mask, image, 1.0), prediction, torch.where(mask, image, prediction), image
        grid = torch.cat([torch.cat(list(column), dim=1) for column in columns], dim=2)
        self.writer.add_image("holes, prediction, composite, truth", grid, self.trainer.step_number)
