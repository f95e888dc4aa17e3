"""Training: the step, exact resumption after a kill, several processes, and steps that are not finite."""

import dataclasses
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch
from safetensors.torch import load_file

from msa_model import checkpoints
from msa_model.config import parse
from msa_model.facades import render_facade
from msa_model.training import Trainer, TrainingError
from msa_model.training_run import run, training_data

TINY = [
    *("--preset", "synthetic", "--data.size", "32", "--generator.base_width", "4", "--generator.depth", "4"),
    *("--batch", "2", "--data.workers", "0", "--device", "cpu", "--log_every", "1", "--images_every", "0"),
]


def config(out, *more):
    return parse([*TINY, "--out", str(out), *more])


def batch(count=2, size=32):
    return torch.rand(count, 3, size, size), torch.rand(count, 1, size, size) > 0.3


def weights(out, step, name="generator"):
    return load_file(checkpoints.path_of(out, step) / f"{name}.safetensors")


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def test_losses_fall(tmp_path):
    trainer = Trainer(config(tmp_path, "--steps", "40"))
    image, mask = batch(4)
    totals = [trainer.step(image, mask)["total"].item() for _ in range(40)]
    assert sum(totals[-5:]) < 0.7 * sum(totals[:5])


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_steps_are_finite(tmp_path, precision):
    trainer = Trainer(config(tmp_path, "--precision", precision))
    before = trainer.generator.state_dict()["encoder.0.conv.weight"].clone()
    for _ in range(3):
        terms = trainer.step(*batch())
    assert all(torch.isfinite(term) for term in terms.values())
    assert not torch.equal(before, trainer.generator.state_dict()["encoder.0.conv.weight"])


def test_a_run_writes_checkpoints_that_inpaint_and_events(tmp_path):
    from msa_model import Generator

    run(config(tmp_path, "--steps", "4", "--save_every", "2", "--keep", "1", "--images_every", "2", "--ema", "0.9"))
    assert checkpoints.steps_in(tmp_path) == [4]
    assert any((tmp_path / "events").iterdir())
    folder = checkpoints.path_of(tmp_path, 4)
    for name in ("generator", "ema"):
        assert Generator.load(folder / f"{name}.safetensors")(*batch()).shape == (2, 3, 32, 32)
    latest, average = weights(tmp_path, 4), weights(tmp_path, 4, "ema")
    assert not torch.equal(latest["encoder.0.conv.weight"], average["encoder.0.conv.weight"])


def test_a_resumed_run_says_what_is_not_as_before(tmp_path, capsys):
    run(config(tmp_path, "--steps", "1"))
    run(config(tmp_path, "--steps", "1"))
    assert "not as before" not in capsys.readouterr().err
    run(config(tmp_path, "--steps", "2", "--lr_generator", "0.5", "--data.images", "[synthetic, synthetic]"))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("msa train: ")]
    assert lines == [
        "msa train: continuing after step 1",
        "msa train: not as before: data.images: synthetic, now ['synthetic', 'synthetic']",
        "msa train: not as before: lr_generator: 0.001, now 0.5",
        "msa train: not as before: steps: 1, now 2",
    ]


#: Results do not depend on the machine's speed, but on the number of threads, which the tests set to one.
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def test_folders_and_vgg_weights_are_trained_on(tmp_path):
    from PIL import Image

    from msa_model.masks import free_form_mask
    from msa_model.vgg import VGG16Features

    (tmp_path / "photos").mkdir()
    (tmp_path / "masks").mkdir()
    for i in range(3):
        Image.fromarray(render_facade(64, i)).save(tmp_path / "photos" / f"{i}.jpg")
        hole = ~free_form_mask(64, 64, (0.2, 0.3), i)[0].numpy()
        Image.fromarray(hole).save(tmp_path / "masks" / f"{i}.png")
    torch.save(VGG16Features(None).state_dict(), tmp_path / "vgg.pth")
    folders = ["--data.images", str(tmp_path / "photos"), "--data.masks", str(tmp_path / "masks")]
    trainer = run(config(tmp_path / "run", *folders, "--loss.vgg", str(tmp_path / "vgg.pth"), "--steps", "2"))
    terms = trainer.step(*batch())
    assert {"perceptual", "style"} <= terms.keys()
    assert all(torch.isfinite(term) for term in terms.values())
    item = training_data(trainer.config)[0, 0]
    assert item["image"].shape == (3, 32, 32)
    assert 0.05 < 1 - item["mask"].float().mean() < 0.6  # white is hole


def command(out, *more):
    return [sys.executable, "-W", "ignore", "-m", "msa_model", "train", *TINY, "--out", str(out), *more]


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(tmp_path):
    length = ["--steps", "6", "--save_every", "3", "--ema", "0.9"]
    run(config(tmp_path / "whole", *length))
    # The second half is slow enough to be killed in: the run is longer, and stopped by hand.
    long = command(tmp_path / "killed", "--steps", "100000", *length[2:])
    process = subprocess.Popen(long, env=ENVIRONMENT, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not checkpoints.steps_in(tmp_path / "killed") and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    steps = checkpoints.steps_in(tmp_path / "killed")
    assert steps
    for step in steps[1:]:  # what came after the first checkpoint before the signal did
        for file in (folder := checkpoints.path_of(tmp_path / "killed", step)).iterdir():
            file.unlink()
        folder.rmdir()
    subprocess.run(command(tmp_path / "killed", *length), env=ENVIRONMENT, check=True, capture_output=True)
    for name in ("generator", "discriminator", "ema"):
        assert_same(weights(tmp_path / "whole", 6, name), weights(tmp_path / "killed", 6, name))
    states = [checkpoints.load_state(checkpoints.path_of(tmp_path / name, 6)) for name in ("whole", "killed")]
    for optimizer in ("generator", "discriminator"):
        moments = [state["optimizers"][optimizer]["state"] for state in states]
        for index in moments[0]:
            assert_same(moments[0][index], moments[1][index])


def torchrun(script, out, *options):
    path = out / "script.py"
    out.mkdir(exist_ok=True)
    path.write_text(textwrap.dedent(script))
    launcher = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    result = subprocess.run(
        [*launcher, *options, str(path)], env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]


GRADIENTS = """
    import dataclasses, torch
    from msa_model.config import parse
    from msa_model.training import Processes, Trainer
    config = parse({arguments!r})
    processes = Processes.start("cpu")
    trainer = Trainer(config, processes)
    image, mask = torch.load({batch!r})
    part = slice(processes.rank, processes.rank + 1)
    trainer.step(image[part], mask[part])
    if processes.rank == 0:
        networks = (trainer.generator, trainer.discriminator)
        torch.save([[p.grad for p in network.parameters()] for network in networks], {result!r})
    processes.stop()
"""


@pytest.mark.slow
def test_two_processes_have_the_gradients_of_one_with_the_joined_batch(tmp_path):
    arguments = [*TINY, "--generator.norm", "region", "--sync_norm", "true", "--out", str(tmp_path)]
    torch.save(batch(2), tmp_path / "batch.pt")
    trainer = Trainer(parse(arguments))
    trainer.step(*torch.load(tmp_path / "batch.pt"))
    files = {"batch": str(tmp_path / "batch.pt"), "result": str(tmp_path / "gradients.pt")}
    torchrun(GRADIENTS.format(arguments=arguments, **files), tmp_path)
    joined = torch.load(tmp_path / "gradients.pt")
    for network, gradients in zip((trainer.generator, trainer.discriminator), joined, strict=True):
        for (name, parameter), theirs in zip(network.named_parameters(), gradients, strict=True):
            largest = max(parameter.grad.abs().max().item(), 1e-3)
            torch.testing.assert_close(
                theirs, parameter.grad, rtol=1e-3, atol=1e-4 * largest, msg=lambda m, n=name: f"{n}: {m}"
            )


KILLED = """
    import os, signal, sys
    from msa_model import training, training_run
    step = training.Trainer.step

    def step_or_die(self, *batch):
        last = os.environ["RANK"] == "1" and self.step_number == 3 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
        if {kill} and last:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, *batch)

    training.Trainer.step = step_or_die
    sys.exit(training_run.main({arguments!r}))
"""


@pytest.mark.slow
def test_a_killed_worker_restarts_and_ends_where_it_would_have(tmp_path):
    results = []
    for kill in (False, True):
        out = tmp_path / f"kill-{kill}"
        arguments = [*TINY, "--steps", "4", "--save_every", "2", "--out", str(out)]
        torchrun(KILLED.format(kill=kill, arguments=arguments), out, "--max-restarts=1")
        results.append(weights(out, 4))
    assert_same(*results)


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_step_that_is_not_finite_is_skipped_and_counted(tmp_path, precision):
    trainer = Trainer(config(tmp_path, "--max_bad_steps", "4", "--precision", precision))
    image, mask = batch()
    trainer.step(image, mask)
    before = {name: p.detach().clone() for name, p in trainer.generator.named_parameters()}
    trainer.step(image * float("nan"), mask)
    assert trainer.bad_steps == 2  # generator and discriminator
    trainer.stop_if_not_finite()
    assert_same(before, {name: p.detach() for name, p in trainer.generator.named_parameters()})
    trainer.step(image * float("nan"), mask)
    with pytest.raises(
        TrainingError, match=r"4 updates were not finite and skipped, by step 3; the terms .*valid.* were not"
    ):
        trainer.stop_if_not_finite()


def test_fine_tuning_freezes_the_statistics(tmp_path):
    first = Trainer(config(tmp_path))
    first.step(*batch())
    first.generator.save(tmp_path / "first.safetensors")
    trainer = Trainer(config(tmp_path, "--fine_tune", "true", "--init", str(tmp_path / "first.safetensors"),
                             "--lr_generator", "5e-5"))  # fmt: skip
    before = {name: t.clone() for name, t in trainer.generator.state_dict().items()}
    assert_same(before, first.generator.state_dict())
    trainer.step(*batch())
    after = trainer.generator.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before if "running" in name)
    assert not torch.equal(before["encoder.1.conv.weight"], after["encoder.1.conv.weight"])


def test_weights_of_another_generator_are_refused(tmp_path):
    Trainer(config(tmp_path)).generator.save(tmp_path / "first.safetensors")
    with pytest.raises(TrainingError, match=r"is another generator: base_width=4 \(here 8\)"):
        Trainer(config(tmp_path, "--init", str(tmp_path / "first.safetensors"), "--generator.base_width", "8"))


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path):
    run(config(tmp_path, "--steps", "1"))
    with pytest.raises(
        checkpoints.CheckpointError, match=r"generator is of another architecture: of another shape: .*wanted"
    ):
        run(config(tmp_path, "--steps", "2", "--generator.base_width", "8"))


def test_processes_are_one_without_torchrun():
    from msa_model.training import Processes

    assert dataclasses.asdict(Processes.start("cpu")) == {"rank": 0, "world": 1, "device": torch.device("cpu")}
