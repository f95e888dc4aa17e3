"""The processes of a training run."""

from __future__ import annotations

import dataclasses
import os

import torch
import torch.distributed as dist

from ..devices import find_device
from .errors import TrainingError


@dataclasses.dataclass(frozen=True)
class Processes:
    """This process among those of the run.

    Args:
        rank: the number of this process.
        world: the number of processes.
        device: the device of this process.
    """

    rank: int = 0
    world: int = 1
    device: torch.device = dataclasses.field(default_factory=lambda: torch.device("cpu"))

    @classmethod
    def start(cls, device: str) -> Processes:
        """Reads torchrun's environment, and joins the process group if there are several processes.

        Args:
            device: "auto", "cpu", "cuda" or "cuda:i".

        Raises:
            TrainingError: there is no such device.
        """
        world, local = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
        try:
            where = find_device(device)
        except ValueError as error:
            raise TrainingError(f"device {device}: {error}") from error
        on_cuda = where.type == "cuda"
        if on_cuda and where.index is None:
            where = torch.device("cuda", local)
        if on_cuda:
            torch.cuda.set_device(where)
        if world > 1 and not dist.is_initialized():
            # torchrun's agent keeps its store across restarts (torch 2.13), with the addresses of workers that ended.
            # So every attempt gets a prefix of its own.
            store, rank, _ = next(dist.rendezvous("env://"))
            attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            store = dist.PrefixStore(f"attempt-{attempt}", store)
            dist.init_process_group("nccl" if on_cuda else "gloo", store=store, rank=rank, world_size=world)
        return cls(int(os.environ.get("RANK", "0")), world, where)

    def from_first(self, text: str) -> str:
        """Returns the first process's text, in every process of the run."""
        if self.world == 1:
            return text
        texts = [text]
        dist.broadcast_object_list(texts, src=0)
        return texts[0]

    def stop(self) -> None:
        """Leaves the process group."""
        if self.world > 1 and dist.is_initialized():
            dist.destroy_process_group()
