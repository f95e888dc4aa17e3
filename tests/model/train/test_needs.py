"""Memory: what a run needs by estimate, what is refused, and what would fit."""

import re
import resource
import subprocess
import sys
import textwrap

import pytest
import torch

from msa_model import Discriminator, Generator
from msa_model.train import needs, trainer
from msa_model.train.config import parse
from msa_model.train.errors import TrainingError
from msa_model.train.run import run

from .tiny import TINY, config

GIB = 2**30
CPU = torch.device("cpu")


@pytest.mark.parametrize("more", [{}, {"base_width": 5, "depth": 3, "attention_levels": (2,)}])
def test_weights_are_counted_exactly(more):
    generator = Generator(**more)
    assert needs.generator_weights(generator.config) == sum(p.numel() for p in generator.parameters())
    assert sum(p.numel() for p in Discriminator().parameters()) == needs.DISCRIMINATOR_WEIGHTS


#: Prints the peak of two steps, and what was estimated for them, in bytes.
MEASURED = """
    import resource, sys, torch
    from msa_model.train import needs
    from msa_model.train.config import parse
    from msa_model.train.trainer import Trainer

    small = parse({tiny!r})
    Trainer(small).step(torch.rand(2, 3, 32, 32), torch.rand(2, 1, 32, 32) > 0.3)  # loads code, starts threads
    config = parse([*{tiny!r}, *sys.argv[1:]])
    before = int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
    trainer, n, side = Trainer(config), config.batch, config.data.size
    for _ in range(2):
        trainer.step(torch.rand(n, 3, side, side), torch.rand(n, 1, side, side) > 0.3)
    need = needs.estimate(config)
    # Not ru_maxrss, which a process takes over from the one that started it.
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    peak = int(status["VmHWM"].split()[0]) * 1024 - before
    print(peak, need.at_least(n), need.of(n))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_estimate_is_near_the_measured_peak():
    given = ["--generator.base_width", "24", "--generator.depth", "6", "--data.size", "256", "--loss.adversarial", "0"]
    script = textwrap.dedent(MEASURED).format(tiny=TINY)
    printed = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, *given], capture_output=True, text=True, check=True
    ).stdout
    peak, least, estimate = map(float, printed.split())
    assert least < peak  # so that no run that would fit is refused
    assert 0.75 * peak < estimate < 2.2 * peak


@pytest.mark.parametrize(
    ("arguments", "fits"),
    [
        (["--generator.base_width", "100000"], r"batch 2 with data\.size 32 and generator\.base_width \d+ fits"),
        (["--data.size", "100000"], r"batch 2 with data\.size \d+ fits"),
        (["--batch", "90000"], r"batch \d+ fits"),
    ],
)
def test_what_cannot_fit_is_refused_before_it_is_tried(tmp_path, monkeypatch, arguments, fits):
    monkeypatch.setattr(needs, "free_memory", lambda device: 2.0 * GIB)
    monkeypatch.setattr(trainer, "Trainer", None)  # nothing is built
    with pytest.raises(TrainingError) as caught:
        run(config(tmp_path, *arguments))
    message = str(caught.value)
    assert re.fullmatch(
        r"not enough memory on cpu: batch \d+, data.size \d+, generator.base_width \d+ and generator.depth 4 need "
        rf"about .+ [MGT]iB, 2\.0 GiB are free; by estimate {fits}",
        message,
    )
    advised = dict(re.findall(r"(batch|data\.size|generator\.base_width) (\d+)", message.split("by estimate")[1]))
    changed = parse([*TINY, *arguments, *(text for name in advised for text in (f"--{name}", advised[name]))])
    assert 0.5 * GIB < needs.estimate(changed).of(changed.batch) < 2 * GIB  # fits, and is not much too small


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes\nmore"),
        RuntimeError("DataLoader worker (pid 5) is killed by signal: Killed. "),
    ],
)
def test_memory_that_runs_out_in_a_step_is_one_line(tmp_path, monkeypatch, error):
    def step(*arguments):
        raise error

    monkeypatch.setattr(trainer.Trainer, "step", step)
    with pytest.raises(TrainingError, match=r"not enough memory on cpu: batch 8, .*; by estimate batch \d fits$"):
        run(config(tmp_path, "--steps", "1", "--batch", "8"))


def test_sizes_are_readable():
    sizes = [5 * 2**20, 1.5 * GIB, 4096 * GIB, 1e30]
    assert list(map(needs._gib, sizes)) == ["5 MiB", "1.5 GiB", "4.0 TiB", "more than 1000 TiB"]


def test_a_limit_of_addresses_counts(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda which: (64 * GIB, 64 * GIB))
    assert 0 < needs.free_memory(CPU) < 64 * GIB
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1, 1))
    assert needs.free_memory(CPU) == 0
