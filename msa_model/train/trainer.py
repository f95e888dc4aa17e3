"""Training (SPEC 7): one step, and the loop around it. torchrun and DistributedDataParallel make it several processes.

The host waits for the device only where something is logged: whether a step was finite is decided on the device, which
then skips the update itself (Adam's `found_inf`), and is counted there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from . import checkpoints
from .config import TrainConfig, changes
from .discriminator import Discriminator
from .generator import Generator
from .losses import InpaintingLoss
from .normalization import RegionNorm2d
from .vgg import VGG16Features

AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class TrainingError(Exception):
    """What stops a run, in one line."""


@dataclasses.dataclass(frozen=True)
class Processes:
    """This process among those of the run; torchrun sets the environment that says so."""

    rank: int = 0
    world: int = 1
    device: torch.device = dataclasses.field(default_factory=lambda: torch.device("cpu"))

    @classmethod
    def start(cls, device: str) -> Processes:
        """Joins the process group where there is one."""
        world, local = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
        on_cuda = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
        if on_cuda and not torch.cuda.is_available():
            raise TrainingError(f"device {device}: torch finds no GPU")
        where = (
            torch.device("cuda", local) if on_cuda and ":" not in device else torch.device(device if on_cuda else "cpu")
        )
        if on_cuda:
            torch.cuda.set_device(where)
        if world > 1 and not dist.is_initialized():
            # torchrun's agent keeps its store across restarts, with the addresses of dead workers in it (torch 2.13).
            store, rank, _ = next(dist.rendezvous("env://"))
            attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            store = dist.PrefixStore(f"attempt-{attempt}", store)
            dist.init_process_group("nccl" if on_cuda else "gloo", store=store, rank=rank, world_size=world)
        return cls(int(os.environ.get("RANK", "0")), world, where)

    def stop(self) -> None:
        if self.world > 1 and dist.is_initialized():
            dist.destroy_process_group()


class Trainer:
    """Networks, optimisers and the step.

    Args:
        config: the run.
        processes: this process among those of the run.

    The generator is updated before the discriminator (Section 4.2).
    """

    def __init__(self, config: TrainConfig, processes: Processes | None = None) -> None:
        self.config, self.processes = config, processes or Processes()
        self.device = self.processes.device
        torch.manual_seed(config.seed)
        layout = {"device": self.device, "memory_format": torch.channels_last}
        self.generator = Generator(**dataclasses.asdict(config.generator))
        if config.init:
            self._start_from(config.init)
        self.discriminator = Discriminator()
        self._choose_statistics()
        self.generator.to(**layout)
        self.discriminator.to(**layout)
        loss = dataclasses.asdict(config.loss)
        vgg, vgg_input = loss.pop("vgg"), loss.pop("vgg_input")
        vgg = None if vgg == "none" else VGG16Features(vgg, normalization=vgg_input).to(**layout)
        self.loss = InpaintingLoss(vgg, **loss).to(self.device)
        self._rates = config.generator_rate, config.lr_discriminator
        # Fused Adam reads found_inf on the device: a step that is not finite changes nothing.
        self.optimizers = {
            "generator": torch.optim.Adam(self.generator.parameters(), lr=config.generator_rate, fused=True),
            "discriminator": torch.optim.Adam(self.discriminator.parameters(), lr=config.lr_discriminator, fused=True),
        }
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "float16")
        self.ema = None
        if config.ema:
            average = get_ema_multi_avg_fn(config.ema)
            self.ema = AveragedModel(self.generator, multi_avg_fn=average, use_buffers=True)
        self.step_number = 0
        self.bad_steps = torch.zeros((), device=self.device)  # updates that were skipped
        self._not_finite: dict[str, Tensor] = {}  # how often each term was not
        self._networks = {"generator": self._wrap(self.generator), "discriminator": self._wrap(self.discriminator)}
        self.train_mode()

    def _wrap(self, network: nn.Module) -> nn.Module:
        if self.processes.world > 1:
            ids = [self.device.index] if self.device.type == "cuda" else None
            network = DistributedDataParallel(network, device_ids=ids)
        if self.config.compile != "no":
            network = torch.compile(network, mode=None if self.config.compile == "default" else self.config.compile)
        return network

    def _start_from(self, path: str) -> None:
        weights = Generator.load(path)
        if weights.config != self.generator.config:
            theirs, ours = (dataclasses.asdict(c) for c in (weights.config, self.generator.config))
            differing = ", ".join(f"{k}={theirs[k]!r} (here {ours[k]!r})" for k in theirs if theirs[k] != ours[k])
            raise TrainingError(f"init {path} is another generator: {differing}")
        self.generator.load_state_dict(weights.state_dict())

    def _choose_statistics(self) -> None:
        """Whether normalisation takes its statistics over all processes."""
        for module in self.generator.modules():
            if isinstance(module, RegionNorm2d):
                module.sync = self.config.sync_norm
        several = self.config.sync_norm and self.processes.world > 1
        if several and any(isinstance(module, nn.BatchNorm2d) for module in self.generator.modules()):
            if self.device.type != "cuda":
                raise TrainingError(
                    "sync_norm of batch norm needs CUDA, as torch's SyncBatchNorm does; region norm does not"
                )
            self.generator = nn.SyncBatchNorm.convert_sync_batchnorm(self.generator)

    def train_mode(self) -> None:
        """Training mode; batch-norm statistics stay as they are in the fine-tuning stage."""
        self.generator.train()
        self.discriminator.train()
        if self.config.fine_tune:
            for module in self.generator.modules():
                if isinstance(module, (nn.modules.batchnorm._BatchNorm, RegionNorm2d)):
                    module.eval()

    # ---- one step --------------------------------------------------------------------------------------------------

    def step(self, image: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """One update of the generator, then one of the discriminator.

        Args:
            image: (N, 3, H, W) in [0, 1]; mask: (N, 1, H, W) bool, True = valid; both on the device.

        Returns:
            The loss terms, scalars on the device; reading one waits for the device.
        """
        autocast = (
            torch.autocast(self.device.type, AUTOCAST[self.config.precision])
            if self.config.precision in AUTOCAST
            else contextlib.nullcontext()
        )
        for optimizer, rate in zip(self.optimizers.values(), self._rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * self._decay()
        adversarial = self.config.loss.adversarial > 0
        # The discriminator's own weights need no gradient here; unwrapped, as DDP would wait for one.
        self.discriminator.requires_grad_(False)
        with autocast:
            prediction = self._networks["generator"](image, mask)
            logits = self.discriminator(prediction) if adversarial else None
            total, terms = self.loss.generator_loss(prediction, image, mask, logits)
        self._update("generator", total)
        if adversarial:
            self.discriminator.requires_grad_(True)
            with autocast:
                real, fake = self._networks["discriminator"](torch.cat([image, prediction.detach()])).chunk(2)
                terms["discriminator"] = self.loss.discriminator_loss(real, fake)
            self._update("discriminator", terms["discriminator"])
        self.scaler.update()
        if self.ema is not None:
            self.ema.update_parameters(self.generator)
        for name, term in terms.items():
            bad = (~torch.isfinite(term.detach())).float()
            self._not_finite[name] = self._not_finite.get(name, 0) + bad
        self.step_number += 1
        return {"total": total.detach()} | {name: term.detach() for name, term in terms.items()}

    def _decay(self) -> float:
        """Factor of the learning rates at this step."""
        if self.config.schedule == "constant":
            return 1.0
        return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, self.step_number / self.config.steps)))

    def _update(self, name: str, loss: Tensor) -> None:
        optimizer = self.optimizers[name]
        optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        if self.scaler.is_enabled():
            self.scaler.step(
                optimizer
            )  # skips what overflowed, which is how it finds its scale; only the loss tells more
            self.bad_steps += (~torch.isfinite(loss.detach())).float()
            return
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        bad = 1 - torch.isfinite(nn.utils.get_total_norm(gradients)).float()
        optimizer.found_inf = bad
        optimizer.step()
        self.bad_steps += bad

    def stop_if_not_finite(self) -> None:
        """Waits for the device.

        Raises:
            TrainingError: too many steps so far had to be skipped; names the terms that were not finite.
        """
        if (bad := int(self.bad_steps.item())) >= self.config.max_bad_steps:
            terms = [name for name, count in self._not_finite.items() if count.item() > 0]
            what = f"the terms {', '.join(terms)}" if terms else "gradients"
            raise TrainingError(
                f"{bad} updates were not finite and skipped, by step {self.step_number}; {what} were not"
            )

    # ---- checkpoints -----------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Writes the checkpoint of this step (the first process only)."""
        if self.processes.rank == 0:
            checkpoints.save(Path(self.config.out), self.step_number, self._write, self.config.keep)

    def _write(self, folder: Path) -> None:
        from safetensors.torch import save_file

        self.generator.save(folder / "generator.safetensors")
        if self.ema is not None:
            self.ema.module.save(folder / "ema.safetensors")
        weights = {name: t.detach().contiguous() for name, t in self.discriminator.state_dict().items()}
        save_file(weights, folder / "discriminator.safetensors")
        state = {
            "step": self.step_number,
            "config": json.dumps(dataclasses.asdict(self.config)),
            "bad_steps": self.bad_steps.item(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "scaler": self.scaler.state_dict(),
            "averaged": self.ema.n_averaged.item() if self.ema is not None else 0,
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }
        torch.save(state, folder / "state.pt")

    def resume(self) -> list[str] | None:
        """Continues from the newest checkpoint of the run's folder, under this configuration.

        Returns:
            What differs from the configuration that wrote it, a line per key; None where there is no checkpoint.

        Raises:
            checkpoints.CheckpointError: unreadable, or of another architecture.
        """
        steps = checkpoints.steps_in(Path(self.config.out))
        if not steps:
            return None
        folder = checkpoints.path_of(Path(self.config.out), steps[-1])
        state = checkpoints.load_state(folder)
        checkpoints.fit(self.generator, checkpoints.load_weights(folder, "generator"), f"{folder}'s generator")
        weights = checkpoints.load_weights(folder, "discriminator")
        checkpoints.fit(self.discriminator, weights, f"{folder}'s discriminator")
        if self.ema is not None:
            checkpoints.fit(self.ema.module, checkpoints.load_weights(folder, "ema"), f"{folder}'s ema")
            self.ema.n_averaged.fill_(state["averaged"])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["rng"])
        if state["cuda_rng"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"], self.device)
        self.step_number = state["step"]
        self.bad_steps.fill_(state["bad_steps"])
        return changes(json.loads(state["config"]), json.loads(json.dumps(dataclasses.asdict(self.config))))
