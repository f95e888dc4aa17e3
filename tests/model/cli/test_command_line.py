"""What all commands share: usage errors, help, and imports that stay light."""

import dataclasses
import subprocess
import sys

import pytest

from msa_model import cli
from msa_model.cli import commands
from msa_model.cli.command import CommandError


@pytest.mark.parametrize(
    "arguments",
    [[], ["paint"], ["inpaint", "a", "b"], ["inpaint", "a", "b", "-o", "c", "--device", "tpu"]],
)
def test_usage_errors(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert "usage: msa" in capsys.readouterr().err


def test_help_lists_every_command_with_an_example(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["--help"])
    assert caught.value.code == 0
    said = " ".join(capsys.readouterr().out.split())  # versions of argparse break lines elsewhere
    for command in cli.COMMANDS:
        assert command.summary in said
        assert command.example in said
        assert command.example.startswith(f"msa {command.name}")


def test_help_and_wrong_usage_do_not_wait_for_torch():
    """One process for all commands; the help of a training configuration needs its dataclasses, hence torch."""
    code = """
import sys
import msa_model
from msa_model.cli import COMMANDS, main
for command in COMMANDS:
    for arguments in ([command.name, "--help"], [command.name, "--nonsense"]):
        if command.own_help or (command.training_keys and "--nonsense" in arguments):
            continue
        try:
            main(arguments)
        except SystemExit as exit:
            print(command.name, exit.code)
heavy = {"torch", "PIL", "torchmetrics", "cv2", "skimage", "matplotlib", "jsonargparse"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in ("inpaint", "attention-map", "evaluate", "demo", "info"):
        assert f"{name} 0\n" in done.stdout
        assert f"{name} 2\n" in done.stdout
    assert "Figs. 8" in done.stdout
    assert "Table 4" in done.stdout
    assert "usage:" in done.stderr


def test_info_is_that_of_the_operators(capsys):
    assert cli.main(["info"]) == 0
    said = capsys.readouterr().out
    from msa_ops import info

    info.main()
    assert said == capsys.readouterr().out
    assert "torch" in said


@pytest.fixture
def command(monkeypatch):
    """Lets `msa info` raise an error."""

    def raises(error):
        def run(arguments):
            raise error

        changed = tuple(dataclasses.replace(c, run=run) if c.name == "info" else c for c in cli.COMMANDS)
        monkeypatch.setattr(commands, "COMMANDS", changed)

    return raises


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (CommandError("a\n  b"), 1, "msa info: error: a b"),
        (CommandError("wrong", 2), 2, "msa info: error: wrong"),
        (OSError("disk"), 1, "msa info: error: disk"),
        (KeyboardInterrupt(), 130, "msa info: interrupted"),
        (KeyboardInterrupt("what is there stays"), 130, "msa info: interrupted; what is there stays"),
        (ModuleNotFoundError("no", name="PIL"), 1, "msa info: error: PIL is missing: pip install 'msa-ops[model]'"),
        (ModuleNotFoundError("no", name="yaml"), 1, "msa info: error: yaml is missing: pip install 'msa-ops[train]'"),
        (ModuleNotFoundError("no", name="cv2"), 1, "msa info: error: cv2 is missing: pip install 'msa-ops[evaluate]'"),
    ],
)
def test_every_error_is_one_line_with_an_exit_code(command, capsys, error, code, line):
    command(error)
    assert cli.main(["info"]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == line + "\n"


def test_other_missing_modules_are_bugs(command):
    command(ModuleNotFoundError("no", name="msa_model.gone"))
    with pytest.raises(ModuleNotFoundError):
        cli.main(["info"])
