"""Checks the commands that the pages show: their options and targets exist, the quick ones run, and the page about the
command line lists exactly the options that `--help` lists."""

import contextlib
import functools
import io
import os
import re
import subprocess
import sys
import tomllib
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from msa_model.cli import main

from .pages import PAGES, ROOT, commands, name

OPTION = re.compile(r"(?<![\w-])--[A-Za-z](?:[\w.-]*\w)?")
#: Commands of msa that are quick enough to run here.
QUICK = "inpaint", "attention-map", "info"


@functools.cache
def help_of(*module: str) -> str:
    """What `python -m MODULE … --help` prints."""
    printed = io.StringIO()
    wide = mock.patch.dict(os.environ, COLUMNS="200")
    if module[0] == "msa_model":
        with wide, contextlib.redirect_stdout(printed), pytest.raises(SystemExit) as end:
            main([*module[1:], "--help"])
        assert not end.value.code
        return printed.getvalue()
    with wide:
        run = subprocess.run([sys.executable, "-m", *module, "--help"], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    return run.stdout


def options_of(*module: str) -> set[str]:
    """The options that have an entry of their own in the help: indented by two, two spaces before its explanation."""
    entries = re.findall(r"^  (-\S.*?)(?:  |$)", help_of(*module), re.MULTILINE)
    return set(OPTION.findall(" ".join(entries))) - {"--help"}


def msa_commands() -> list[str]:
    return re.findall(r"^    ([a-z][a-z-]+)(?: |$)", help_of("msa_model"), re.MULTILINE)


def check_options(words: list[str], known: set[str]) -> None:
    given = {word.split("=")[0] for word in words if word.startswith("--")} - {"--help"}
    assert given <= known, f"{' '.join(words)}: no such option: {sorted(given - known)}"


def check_msa(words: list[str]) -> None:
    command, *rest = words
    if command in ("COMMAND", "--help"):
        return
    assert command in msa_commands()
    known = options_of("msa_model", command)
    check_options(rest, known | options_of("msa_model", "train") if command == "ablation" else known)


def check_make(words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in words:
        if "=" not in target and target != "-j2":
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"make has no target {target}"


def check_pip(words: list[str]) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for word in words:
        if match := re.fullmatch(r"(?:\.|msa-ops)\[([\w,]+)\]", word):
            assert set(match[1].split(",")) <= set(extras), word


def check(words: list[str]) -> None:
    match words:
        case ["msa", *rest] | ["python", "-m", "msa_model", *rest]:
            if rest:
                check_msa(rest)
        case ["torchrun", *_]:
            check_msa(words[words.index("msa_model") + 1 :])
        case ["python", "-m", module, *rest] if module.split(".")[0] in ("benchmarks", "msa_ops", "tests"):
            check_options(rest, options_of(module) if rest else set())
            assert (ROOT / module.replace(".", "/")).is_dir() or (ROOT / f"{module.replace('.', '/')}.py").is_file()
        case ["python", "-m", "pytest", *rest]:
            for path in (word for word in rest if word.startswith("tests")):
                assert (ROOT / path).exists(), f"{path} does not exist"
        case ["python", script, *_]:
            assert (ROOT / script).is_file()
        case ["make", *targets]:
            check_make(targets)
        case ["pip", "install", *rest]:
            check_pip(rest)
        case _:
            pytest.fail(f"no check for this kind of command: {' '.join(words)}")


#: Without the generated page: it quotes the commands of old runs, whose options may have changed since.
WRITTEN = [page for page in PAGES if page.name != "measurements.md"]


@pytest.mark.parametrize("page", [page for page in WRITTEN if commands(page)], ids=name)
def test_commands_exist_with_their_options(page):
    for words in commands(page):
        check(words)


def quick_commands() -> list[list[str]]:
    shown = [words[1:] for page in PAGES for words in commands(page) if words[0] == "msa" and "--help" not in words]
    return [list(words) for words in dict.fromkeys(tuple(words) for words in shown if words and words[0] in QUICK)]


@pytest.mark.parametrize("words", [words for words in quick_commands() if words[1:] or words == ["info"]], ids=" ".join)
def test_quick_commands_run(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))
    mask = Image.new("L", (40, 40))
    mask.paste(255, (10, 10, 25, 25))
    for folder in ("photos", "masks"):
        (tmp_path / folder).mkdir()
    photo.save("photo.jpg")
    mask.save("mask.png")
    photo.save("photos/a.jpg")
    mask.save("masks/a.png")
    assert main(words) == 0, capsys.readouterr().err


def page_sections() -> dict[str, str]:
    """The sections of the page about the command line, by command."""
    parts = re.split(r"^## msa (\S+)$", (ROOT / "docs" / "cli.md").read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_the_page_has_every_command():
    assert sorted(page_sections()) == sorted(msa_commands())


@pytest.mark.parametrize("command", page_sections())
def test_the_page_has_the_options_that_help_has(command):
    first_cells = re.findall(r"^\| (`[^|]+) \|", page_sections()[command], re.MULTILINE)
    assert set(OPTION.findall(" ".join(first_cells))) == options_of("msa_model", command)
