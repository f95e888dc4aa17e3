"""Odd paths and files on the command line: no waiting, one printable line, nothing done by mistake."""

import io
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from msa_model import cli, lines

from ..pictures import hole_mask, outputs, picture


@pytest.fixture(autouse=True)
def no_waiting():
    """Ends a test that waits for a pipe."""

    def hangs(number, frame):
        raise AssertionError("waits")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(100)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    return tmp_path / "pipe.png"


def said(capfd, arguments, code=1):
    """Runs a command; returns the lines on stderr, of the process and not only of Python."""
    assert cli.main([str(argument) for argument in arguments]) == code
    found = capfd.readouterr().err.splitlines()
    for line in found:
        assert line.startswith(f"msa {arguments[0]}: "), line
        assert line.isprintable()
        assert len(line) < lines.LONGEST + 50
    return found


def test_inpaint_names_a_pipe_wherever_it_is(files, pipe, tmp_path, capfd):
    image, mask, out = files
    rest = ["-o", out, "--device", "cpu", "-q"]
    assert said(capfd, ["inpaint", pipe, mask, *rest]) == [f"msa inpaint: error: {pipe}: is a named pipe, not a file"]
    assert said(capfd, ["inpaint", image, pipe, *rest]) == [f"msa inpaint: error: {pipe}: is a named pipe, not a file"]
    weights = said(capfd, ["inpaint", image, mask, *rest, "--weights", pipe])
    assert weights == [f"msa inpaint: error: {pipe}: cannot be loaded as weights: is a named pipe, not a file"]
    assert not out.exists()


def test_a_pipe_in_a_folder_is_one_bad_file(files, pipe, tmp_path, capfd):
    mask = files[1]
    folder = tmp_path / "images"
    folder.mkdir()
    pipe.rename(folder / "b.png")
    for name in ("a.png", "c.png"):
        picture().save(folder / name)
    arguments = ["inpaint", folder, mask, "-o", tmp_path / "out", "--device", "cpu", "-q"]
    assert said(capfd, arguments) == [
        f"msa inpaint: error: {folder / 'b.png'}: is a named pipe, not a file",
        "msa inpaint: error: 1 of 3 images failed",
    ]
    assert outputs(tmp_path / "out") == ["a.png", "c.png"]
    evaluate = ["evaluate", "--images", folder, "--methods", "mean-colour", "--protocols", "standard", "--size", "16"]
    evaluate += ["-o", tmp_path / "e", "-q", "--device", "cpu"]
    assert said(capfd, evaluate) == [f"msa evaluate: error: {folder / 'b.png'}: is a named pipe, not a file"]


@pytest.mark.parametrize("option", ["--weights", "--lpips", "--fid"])
def test_evaluate_names_a_pipe_of_weights(pipe, tmp_path, capfd, option):
    (line,) = said(capfd, ["evaluate", "--synthetic", "1", option, pipe, "-o", tmp_path / "e", "--device", "cpu"])
    assert "is a named pipe, not a file" in line
    assert not (tmp_path / "e").exists()


def test_a_pipe_at_the_place_of_an_output_is_replaced(files, tmp_path, capfd):
    image, mask, _ = files
    paths = [tmp_path / "o" / name for name in ("m.png", "m.json", "m.npz")]
    paths[0].parent.mkdir()
    for path in paths:
        os.mkfifo(path)
    options = ["-o", paths[0], "--json", paths[1], "--npz", paths[2], "-q", "--device", "cpu"]
    assert said(capfd, ["attention-map", image, mask, *options], 0) == []
    assert all(path.is_file() for path in paths)
    assert outputs(paths[0].parent) == ["m.json", "m.npz", "m.png"]


def test_a_pipe_of_the_shell_is_read(files):
    image, mask, out = files
    command = [sys.executable, "-m", "msa_model", "inpaint", "/dev/stdin", mask, "-o", out, "-q", "--device", "cpu"]
    done = subprocess.run([*map(str, command)], input=image.read_bytes(), capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert out.is_file()


@pytest.mark.parametrize("path", ["", "a\0b"])
@pytest.mark.parametrize(
    "arguments",
    [
        ("inpaint", "{}", "m", "-o", "o"),
        ("inpaint", "i", "{}", "-o", "o"),
        ("inpaint", "i", "m", "-o", "{}"),
        ("inpaint", "i", "m", "-o", "o", "--weights", "{}"),
        ("attention-map", "{}", "m", "-o", "o"),
        ("attention-map", "i", "{}", "-o", "o"),
        ("attention-map", "i", "m", "-o", "{}"),
        ("attention-map", "i", "m", "-o", "o", "--json", "{}"),
        ("attention-map", "i", "m", "-o", "o", "--npz", "{}"),
        ("evaluate", "--images", "{}", "-o", "o"),
        ("evaluate", "--synthetic", "1", "--masks", "{}", "-o", "o"),
        ("evaluate", "--synthetic", "1", "--weights", "{}", "-o", "o"),
        ("evaluate", "--synthetic", "1", "--lpips", "{}", "-o", "o"),
        ("evaluate", "--synthetic", "1", "--fid", "{}", "-o", "o"),
        ("evaluate", "--synthetic", "1", "-o", "{}"),
        ("demo", "--out", "{}"),
    ],
)
def test_paths_that_are_none_are_wrong_usage(arguments, path, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        cli.main([argument.replace("{}", path) for argument in arguments])
    assert caught.value.code == 2
    assert f"must be a path, got {path!r}" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["inpaint", "attention-map", "evaluate", "demo"])
@pytest.mark.parametrize("device", ["tpu", "cuda:x", "mps", ""])
def test_unknown_devices_are_wrong_usage(command, device, capsys):
    needed = {"inpaint": ["i", "m", "-o", "o"], "attention-map": ["i", "m", "-o", "o"], "demo": []}
    with pytest.raises(SystemExit) as caught:
        cli.main([command, *needed.get(command, ["--synthetic", "1", "-o", "o"]), "--device", device])
    assert caught.value.code == 2
    assert f"must be auto, cpu, cuda or cuda:i, got {device!r}" in capsys.readouterr().err


def test_names_that_a_terminal_would_obey_are_escaped(files, tmp_path, capfd):
    _, mask, out = files
    bad = tmp_path / "\x1b]0;title\x07\u202e\r.png"
    bad.write_bytes(b"nothing")
    (line,) = said(capfd, ["inpaint", bad, mask, "-o", out, "-q", "--device", "cpu"])
    assert "\\x1b]0;title\\x07\\u202e" in line
    not_text = tmp_path / os.fsdecode(b"\xff.png")
    picture(size=(20, 20)).save(tmp_path / "i.png")
    hole_mask((20, 20)).save(mask)
    assert cli.main(["attention-map", str(tmp_path / "i.png"), str(mask), "-o", str(not_text), "--device", "cpu"]) == 0
    assert f"written: {tmp_path}/\\xff.png\n" in capfd.readouterr().out


def test_what_libtiff_says_is_part_of_the_line(files, tmp_path, capfd):
    _, mask, out = files
    content = io.BytesIO()
    picture(size=(64, 64)).save(content, "TIFF", compression="tiff_adobe_deflate")
    damaged = bytearray(content.getvalue())
    with Image.open(content) as image:
        start = image.tag_v2[273][0]
    damaged[start : start + 40] = bytes(40)
    bad = tmp_path / "bad.tif"
    bad.write_bytes(damaged)
    (line,) = said(capfd, ["inpaint", bad, mask, "-o", out, "-q", "--device", "cpu"])
    assert line.startswith(f"msa inpaint: error: {bad}: cannot be read: ")
    assert "ZIPDecode" in line


def test_lines_of_wrong_usage_are_short_and_printable(capsys):
    for arguments in (["--device", "\x1b[31m" + "x" * 10**6], ["\x1b" * 10**5]):
        with pytest.raises(SystemExit):
            cli.main(["inpaint", "i", "m", "-o", "o", *arguments])
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.isprintable()
        assert len(line) < lines.LONGEST + 50


def test_a_long_message_is_cut(capfd, tmp_path):
    (line,) = said(capfd, ["inpaint", tmp_path / ("x" * 100_000), "m", "-o", tmp_path])
    assert "File name too long" in line
    assert "... (of " in line


def test_the_backend_of_a_file_is_a_preference(files, tmp_path, capfd):
    from msa_model import Generator

    image, mask, out = files
    torch.manual_seed(0)
    network = Generator(base_width=2, depth=2, attention_levels=(2,), backend="cuda")
    network.save(tmp_path / "weights.safetensors")
    arguments = ["inpaint", image, mask, "-o", out, "--weights", tmp_path / "weights.safetensors", "--device", "cpu"]
    (line,) = said(capfd, arguments, 0)
    assert "weights.safetensors: asks for backend 'cuda', which cannot run here (" in line
    assert line.endswith("'auto' takes its place")
    filled = np.asarray(Image.open(out))
    assert said(capfd, [*arguments, "-q"], 0) == []
    assert np.array_equal(np.asarray(Image.open(out)), filled)
