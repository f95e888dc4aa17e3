"""One training step, and its checkpoints. torchrun and DistributedDataParallel distribute it over several processes.

The host waits for the device only to log. The device itself finds out whether a step is finite, skips the update if it
is not (Adam's `found_inf`), and counts such steps.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..memory import is_out_of_memory
from ..nn.discriminator import Discriminator
from ..nn.generator import Generator
from ..nn.losses import InpaintingLoss
from ..nn.normalization import RegionNorm2d
from ..nn.vgg import VGG16Features
from . import checkpoints
from .config import TrainConfig, changes
from .errors import TrainingError
from .processes import Processes

AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class Trainer:
    """Holds networks and optimisers, and runs training steps.

    The generator is updated before the discriminator (Section 4.2).

    Args:
        config: the run.
        processes: this process among those of the run; None: the only one, on the CPU.

    Raises:
        TrainingError: `config.init` is another generator, or `sync_norm` needs CUDA.
        FileNotFoundError: there are no VGG-16 weights at the path in the configuration.
        ValueError: the file of the weights is of another kind.
    """

    def __init__(self, config: TrainConfig, processes: Processes | None = None) -> None:
        self.config, self.processes = config, processes or Processes()
        self.device = self.processes.device
        torch.manual_seed(config.seed)
        layout: dict[str, Any] = {"device": self.device, "memory_format": torch.channels_last}
        self.generator = Generator(**dataclasses.asdict(config.generator))
        if config.init:
            self._start_from(config.init)
        self.discriminator = Discriminator()
        self._choose_statistics()
        self.generator.to(**layout)
        self.discriminator.to(**layout)
        loss = dataclasses.asdict(config.loss)
        path, vgg_input = loss.pop("vgg"), loss.pop("vgg_input")
        vgg = None if path == "none" else VGG16Features(path, normalization=vgg_input).to(**layout)
        self.loss = InpaintingLoss(vgg, **loss).to(self.device)
        self._rates = config.generator_rate, config.lr_discriminator
        # Fused Adam reads found_inf on the device, so that a step that is not finite changes nothing.
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
        self.resumed_unchecked = False  # whether the run continues from a checkpoint that has no checksums
        self.bad_steps = torch.zeros((), device=self.device)  # updates that were skipped
        self._not_finite: dict[str, Tensor] = {}  # term -> in how many steps it was not finite
        self._networks = {"generator": self._wrap(self.generator), "discriminator": self._wrap(self.discriminator)}
        self.train_mode()

    def _wrap(self, network: nn.Module) -> Callable[..., Any]:
        """Distributes and compiles a network, as the configuration asks."""
        if self.processes.world > 1:
            ids = [self.device.index] if self.device.type == "cuda" else None
            network = DistributedDataParallel(network, device_ids=ids)
        if self.config.compile != "no":
            return torch.compile(network, mode=None if self.config.compile == "default" else self.config.compile)
        return network

    def _start_from(self, path: str) -> None:
        """Loads the weights to start from."""
        weights = Generator.load(path)
        if weights.config != self.generator.config:
            theirs, ours = (dataclasses.asdict(c) for c in (weights.config, self.generator.config))
            differing = ", ".join(f"{k}={theirs[k]!r} (here {ours[k]!r})" for k in theirs if theirs[k] != ours[k])
            raise TrainingError(f"init {path} is another generator: {differing}")
        self.generator.load_state_dict(weights.state_dict())

    def _choose_statistics(self) -> None:
        """Lets normalisation take its statistics over all processes if the configuration asks for it."""
        for module in self.generator.modules():
            if isinstance(module, RegionNorm2d):
                module.sync = self.config.sync_norm
        several = self.config.sync_norm and self.processes.world > 1
        if several and any(isinstance(module, nn.BatchNorm2d) for module in self.generator.modules()):
            if self.device.type != "cuda":
                raise TrainingError(
                    "sync_norm of batch norm needs CUDA, as torch's SyncBatchNorm does; region norm does not"
                )
            self.generator = cast(Generator, nn.SyncBatchNorm.convert_sync_batchnorm(self.generator))

    def train_mode(self) -> None:
        """Sets training mode; in the fine-tuning stage the statistics of the normalisation stay frozen."""
        self.generator.train()
        self.discriminator.train()
        if self.config.fine_tune:
            for module in self.generator.modules():
                if isinstance(module, (nn.modules.batchnorm._BatchNorm, RegionNorm2d)):
                    module.eval()

    # ---- one step --------------------------------------------------------------------------------------------------

    def step(self, image: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Updates the generator, then the discriminator.

        Args:
            image: (N, 3, H, W) in [0, 1], on the device.
            mask: (N, 1, H, W) bool, True = valid, on the device.

        Returns:
            The loss terms by name, scalars on the device; to read one waits for the device.
        """
        autocast = (
            torch.autocast(self.device.type, AUTOCAST[self.config.precision])
            if self.config.precision in AUTOCAST
            else contextlib.nullcontext()
        )
        for optimizer, rate in zip(self.optimizers.values(), self._rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * self._decay()
        adversarial = self.config.loss.adversarial > 0
        # The discriminator's weights need no gradient here; its DDP wrapper would wait for one, so it is not used.
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
        """The factor of the learning rates at this step."""
        if self.config.schedule == "constant":
            return 1.0
        return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, self.step_number / self.config.steps)))

    def _update(self, name: str, loss: Tensor) -> None:
        """Runs the backward pass and the optimiser's step of a network."""
        optimizer = self.optimizers[name]
        optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        if self.scaler.is_enabled():
            # The scaler skips steps whose gradients overflow, and finds its scale in this way. So only a loss that is
            # not finite shows that something is wrong.
            self.scaler.step(optimizer)
            self.bad_steps += (~torch.isfinite(loss.detach())).float()
            return
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        bad = 1 - torch.isfinite(nn.utils.get_total_norm(gradients)).float()
        cast(Any, optimizer).found_inf = bad
        optimizer.step()
        self.bad_steps += bad

    def stop_if_not_finite(self) -> None:
        """Checks how many updates have been skipped so far. Waits for the device.

        Raises:
            TrainingError: there are too many; the message names the terms that were not finite.
        """
        if (bad := int(self.bad_steps.item())) >= self.config.max_bad_steps:
            terms = [name for name, count in self._not_finite.items() if count.item() > 0]
            what = f"the terms {', '.join(terms)}" if terms else "gradients"
            raise TrainingError(
                f"{bad} updates were not finite and skipped, by step {self.step_number}; {what} were not"
            )

    # ---- checkpoints -----------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Writes the checkpoint of this step, in the first process only."""
        if self.processes.rank == 0:
            checkpoints.save(Path(self.config.out), self.step_number, self._write, self.config.keep)

    def _write(self, folder: Path) -> None:
        """Writes the files of a checkpoint."""
        from safetensors.torch import save_file

        self.generator.save(folder / "generator.safetensors")
        if self.ema is not None:
            cast(Generator, self.ema.module).save(folder / "ema.safetensors")
        weights = {name: t.detach().contiguous() for name, t in self.discriminator.state_dict().items()}
        save_file(weights, folder / "discriminator.safetensors")
        state = {
            "step": self.step_number,
            "checksums": True,  # so that a checkpoint that lost them is not taken for one of an older version
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
            The differences from the configuration that wrote it, a line per key; None if there is no checkpoint.

        Raises:
            CheckpointError: the checkpoint is damaged, cannot be read, or is of another architecture.
        """
        steps = checkpoints.steps_in(Path(self.config.out))
        if not steps:
            return None
        folder = checkpoints.path_of(Path(self.config.out), steps[-1])
        self.resumed_unchecked = not checkpoints.check(folder)
        state = checkpoints.load_state(folder)
        try:
            return self._restore(folder, state)
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            raise checkpoints.unusable(folder, error) from error

    def _restore(self, folder: Path, state: dict) -> list[str]:
        """Loads a checkpoint; returns the differences of the configurations."""
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
