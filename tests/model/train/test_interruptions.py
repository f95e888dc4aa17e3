"""Runs that are killed and continued, and runs of several processes."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest
import torch

from msa_model.train import checkpoints
from msa_model.train.config import parse
from msa_model.train.processes import Processes
from msa_model.train.run import run
from msa_model.train.trainer import Trainer

from .tiny import TINY, assert_same, batch, config, weights

#: Results depend on the number of threads, which the tests set to one, but not on the speed of the machine.
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def test_a_run_without_torchrun_has_one_process():
    processes = Processes.start("cpu")
    assert (processes.rank, processes.world, processes.device) == (0, 1, torch.device("cpu"))


#: Trains, and kills its own process after step 4.
KILLED = """
    import functools, os, signal, sys
    from msa_model import Discriminator
    from msa_model.train import config, run, trainer

    trainer.Discriminator = functools.partial(Discriminator, base_width=4)
    step = trainer.Trainer.step

    def step_or_die(self, *batch):
        if self.step_number == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, *batch)

    trainer.Trainer.step = step_or_die
    run.run(config.parse({arguments!r}))
"""


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(tmp_path):
    length = ["--steps", "6", "--save_every", "3", "--ema", "0.9"]
    run(config(tmp_path / "whole", *length))
    arguments = [*TINY, "--out", str(tmp_path / "killed"), *length]
    script = textwrap.dedent(KILLED).format(arguments=arguments)
    killed = subprocess.run([sys.executable, "-W", "ignore", "-c", script], env=ENVIRONMENT, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert checkpoints.steps_in(tmp_path / "killed") == [3]
    run(parse(arguments))
    for name in ("generator", "discriminator", "ema"):
        assert_same(weights(tmp_path / "whole", 6, name), weights(tmp_path / "killed", 6, name))
    states = [checkpoints.load_state(checkpoints.path_of(tmp_path / name, 6)) for name in ("whole", "killed")]
    for optimizer in ("generator", "discriminator"):
        moments = [state["optimizers"][optimizer]["state"] for state in states]
        for index in moments[0]:
            assert_same(moments[0][index], moments[1][index])


#: One start of torchrun for both tests of two processes: gradients of a step; a whole run; a run that is killed, and
#: that torchrun starts again. The process group stays, as torchrun's store serves one group per attempt.
TWO_PROCESSES = """
    import functools, os, signal, torch
    from pathlib import Path
    from msa_model import Discriminator
    from msa_model.train import config, processes, run, trainer

    folder = Path({folder!r})
    trainer.Discriminator = functools.partial(Discriminator, base_width=4)
    this = processes.Processes.start("cpu")
    processes.Processes.stop = lambda self: None
    first_attempt = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    step = trainer.Trainer.step

    def step_or_die(self, *batch):
        if self.config.out.endswith("killed") and first_attempt and this.rank == 1 and self.step_number == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, *batch)

    if first_attempt:
        one_step = trainer.Trainer(config.parse({gradients!r}), this)
        image, mask = torch.load(folder / "batch.pt")
        part = slice(this.rank, this.rank + 1)
        one_step.step(image[part], mask[part])
        if this.rank == 0:
            networks = (one_step.generator, one_step.discriminator)
            torch.save([[p.grad for p in network.parameters()] for network in networks], folder / "gradients.pt")
        run.run(config.parse([*{length!r}, "--out", str(folder / "whole")]))
    trainer.Trainer.step = step_or_die
    run.run(config.parse([*{length!r}, "--out", str(folder / "killed")]))
    torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_have_the_gradients_of_one_and_survive_a_killed_worker(tmp_path):
    """Gradients: as one process with the joined batch. Worker: the run ends as one without the kill, bit for bit."""
    gradients = [*TINY, "--generator.norm", "region", "--sync_norm", "true", "--out", str(tmp_path / "unused")]
    length = [*TINY, "--steps", "4", "--save_every", "2"]
    torch.save(batch(2), tmp_path / "batch.pt")
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(TWO_PROCESSES).format(folder=str(tmp_path), gradients=gradients, length=length))
    launcher = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    result = subprocess.run(
        [*launcher, "--max-restarts=1", str(script)], env=ENVIRONMENT, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert "continuing after step 2" in result.stderr  # the kill happened

    trainer = Trainer(parse(gradients))
    trainer.step(*torch.load(tmp_path / "batch.pt"))
    joined = torch.load(tmp_path / "gradients.pt")
    for network, found in zip((trainer.generator, trainer.discriminator), joined, strict=True):
        for (name, parameter), theirs in zip(network.named_parameters(), found, strict=True):
            largest = max(parameter.grad.abs().max().item(), 1e-3)
            torch.testing.assert_close(
                theirs, parameter.grad, rtol=1e-3, atol=1e-4 * largest, msg=lambda m, n=name: f"{n}: {m}"
            )
    assert_same(weights(tmp_path / "whole", 4), weights(tmp_path / "killed", 4))
