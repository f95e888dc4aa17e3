"""The attack with odd files finds planted faults."""

import contextlib
import functools

import pytest

from msa_model import inpainting, lines, user_files
from msa_model.cli import command
from msa_model.data import image_files, native_messages

from . import boxed, campaign, files, odd_files


def failure(kind, most=12):
    """Runs cases until one fails; returns its error."""
    attack = {"inpaint": files.inpaint, "evaluate": files.evaluate, "training": files.training}[kind]

    def case(rng, folder):
        files.weights()
        attack(rng, folder)

    for number in range(most):
        try:
            campaign.run_case(case, 0, number)
        except AssertionError as error:
            return str(error)
    return ""


@pytest.mark.parametrize("kind", ["inpaint", "training"])
def test_a_pipe_that_is_waited_for(monkeypatch, kind):
    monkeypatch.setattr(odd_files, "SPECIAL", {"pipe": odd_files.SPECIAL["pipe"]})
    monkeypatch.setattr(user_files, "open_file", functools.partial(open, mode="rb"))
    monkeypatch.setattr(boxed.run, "__defaults__", (4, boxed.MEMORY))
    assert "wanted an end" in failure(kind)


def test_names_that_reach_the_terminal_unchanged(monkeypatch):
    for module in (lines, command, image_files):
        monkeypatch.setattr(module, "one_line", lambda message, longest=0: " ".join(str(message).split()))
    assert "wanted a printable line" in failure("inpaint")


def test_lines_of_another_library(monkeypatch):
    monkeypatch.setattr(native_messages, "caught", lambda: contextlib.nullcontext([]))
    monkeypatch.setattr(odd_files, "GOOD", {".tif": odd_files.GOOD[".tif"]})
    assert "wanted a line of msa inpaint" in failure("inpaint")


def test_changed_valid_pixels(monkeypatch):
    filled = inpainting.image_modes.fill

    def everywhere(image, colours, hole):
        return filled(image, 1 - colours, hole | True)

    monkeypatch.setattr(inpainting.image_modes, "fill", everywhere)
    assert "wanted the valid pixels unchanged" in failure("inpaint")


def test_an_error_that_nobody_expected(monkeypatch):
    monkeypatch.setattr(image_files, "_reason", lambda error: 1 / 0)
    assert "wanted a line, got a traceback" in failure("inpaint")


def test_a_file_written_beside_the_output(monkeypatch):
    written = image_files.write

    def write(path, picture):
        (files.Path(path).parents[1] / "more").touch()
        return written(path, picture)

    monkeypatch.setattr(image_files, "write", write)
    assert "outside the output folder" in failure("inpaint")
