"""`msa inpaint` on bad input: one line per error; no input is overwritten and no half a result is left."""

import errno
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import msa_model
from msa_model import cli
from msa_model.cli import inpaint as inpaint_command

from ..pictures import H, W, array, hole_mask, left_behind, outputs, picture


def one_error(result, *parts):
    code, lines = result
    assert code == 1
    assert len(lines) == 1, lines
    assert lines[0].startswith("msa inpaint: error: ")
    for part in parts:
        assert str(part) in lines[0]


def test_truncated_and_empty_files(run, files, tmp_path):
    image, mask, out = files
    whole = tmp_path / "whole.jpg"
    picture(size=(64, 64)).save(whole)
    (tmp_path / "cut.jpg").write_bytes(whole.read_bytes()[:-400])
    one_error(run(tmp_path / "cut.jpg", mask, "-o", out), "cut.jpg: cannot be read: ", "truncated")
    cut = image.read_bytes()[:-40]
    image.write_bytes(cut)
    one_error(run(image, mask, "-o", out), "image.png: cannot be read: ")
    image.write_bytes(b"")
    one_error(run(image, mask, "-o", out), "image.png: is not a readable")
    one_error(run(whole, image, "-o", out), "image.png: is not a readable")  # as a mask
    assert not out.exists()


@pytest.mark.parametrize("limit", [W * H - 1, W * H // 3])  # Pillow's warning, Pillow's error
def test_images_with_too_many_pixels_are_refused_with_the_limit(run, files, monkeypatch, limit):
    image, mask, out = files
    Image.new("L", (3, 3), 255).save(mask)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    one_error(run(image, mask, "-o", out), f"image.png: has more than {limit} pixels")
    assert not out.exists()


def test_missing_files_are_named(run, files, tmp_path):
    image, mask, out = files
    one_error(run(tmp_path / "none.png", mask, "-o", out), "none.png: no such file or folder")
    one_error(run(image, tmp_path / "none.png", "-o", out), "none.png: no such file or folder")
    (tmp_path / "empty").mkdir()
    one_error(run(tmp_path / "empty", mask, "-o", tmp_path / "o"), "empty: no image in this folder", ".jpg", ".webp")
    assert not (tmp_path / "o").exists()


def test_impossible_outputs_are_refused(run, files, folders, generator, tmp_path):
    image, mask, out = files
    source, masks, _ = folders
    (tmp_path / "file").touch()
    one_error(run(source, masks, "-o", tmp_path / "file/below"), "file/below: cannot write there")
    one_error(run(image, mask, "-o", tmp_path / "file/below/out.png"), "file/below: cannot write there")
    one_error(run(image, mask, "-o", tmp_path / "file"), "file: is neither a folder nor a file named")
    one_error(run(source, masks, "-o", tmp_path / "file"), "OUT must be a folder")
    one_error(run(source, masks, "-o", out), "OUT must be a folder")
    one_error(run(image, mask, "-o", tmp_path / "out.gif"), "out.gif: cannot write this format, only .bmp")
    assert not generator.calls  # all that is known before the work


def test_inputs_are_never_overwritten(run, files, folders, tmp_path):
    image, mask, _ = files
    source, masks, _ = folders
    before = image.read_bytes()
    link = tmp_path / "link.png"
    link.hardlink_to(image)
    hole_mask().save(tmp_path / "image.compare.png")
    for out in (image, link, tmp_path, tmp_path / "sub/../image.png"):
        (tmp_path / "sub").mkdir(exist_ok=True)
        one_error(run(image, mask, "-o", out), f"would overwrite the input {image}")
    one_error(run(image, mask, "-o", mask), f"would overwrite the input {mask}")
    one_error(run(source, masks, "-o", source), "would overwrite the input")
    compare = tmp_path / "image.compare.png"
    one_error(run(image, compare, "-o", tmp_path / "image.jpg", "--compare"), f"would overwrite the input {compare}")
    one_error(run(source, source, "-o", tmp_path / "o"), "images and masks must be in different folders")
    assert image.read_bytes() == before


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), ValueError("bad\nencoder")])
def test_no_partly_written_file_is_left(run, files, monkeypatch, error):
    image, mask, out = files
    out.write_bytes(b"the old result")

    def half_a_save(self, file, **options):
        file.write(b"half of the new")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", half_a_save)
        message = "No space left on device" if isinstance(error, OSError) else "bad encoder"
        one_error(run(image, mask, "-o", out), f"out.png: cannot be written: {message}")
    assert out.read_bytes() == b"the old result"
    assert not left_behind(out.parent)
    assert run(image, mask, "-o", out) == (0, [])
    assert not left_behind(out.parent)


def test_an_interrupted_write_leaves_no_file(run, files, monkeypatch):
    image, mask, out = files

    def interrupted(self, file, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", interrupted)
    assert run(image, mask, "-o", out) == (130, ["msa inpaint: interrupted"])
    assert not out.exists()
    assert not left_behind(out.parent)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\n much"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes."),
        MemoryError(),
    ],
)
def test_running_out_of_memory_is_one_bad_file(run, folders, generator, monkeypatch, error):
    source, masks, out = folders
    forward = generator.forward

    def first_fails(image, mask):
        if not generator.calls:
            generator.calls.append(None)
            raise error
        return forward(image, mask)

    monkeypatch.setattr(generator, "forward", first_fails)
    code, lines = run(source, masks, "-o", out)
    assert code == 1
    assert lines[0].startswith(f"msa inpaint: error: {source / 'a.png'}: not enough memory on cpu")
    assert len(outputs(out)) == 3


def test_a_bug_is_not_reported_as_a_bad_file(run, files, generator, monkeypatch):
    def bug(image, mask):
        raise RuntimeError("a bug")

    monkeypatch.setattr(generator, "forward", bug)
    with pytest.raises(RuntimeError, match="a bug"):
        run(*files[:2], "-o", files[2])


def test_a_prediction_that_is_not_finite(run, files, one_colour, monkeypatch):
    monkeypatch.setattr(inpaint_command, "load_generator", lambda path, device: one_colour((float("nan"), 0.0, 0.0)))
    one_error(run(*files[:2], "-o", files[2]), "image.png: msa_model.inpaint: the prediction is not finite")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_dtype_chooses_the_type_of_autocast(run, files, generator, monkeypatch, dtype):
    seen = []
    forward = generator.forward

    def spy(image, mask):
        seen.append((torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")))
        return forward(image, mask)

    monkeypatch.setattr(generator, "forward", spy)
    assert run(*files[:2], "-o", files[2], "--dtype", dtype) == (0, [])
    assert seen[0][0] is (dtype != "float32")
    assert dtype == "float32" or seen[0][1] is getattr(torch, dtype)
    assert not torch.is_autocast_enabled("cpu")


def main_error(capsys, arguments, code=1):
    assert cli.main(["inpaint", *map(str, arguments)]) == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_weights_missing_or_damaged(files, tmp_path, capsys, small_generator):
    image, mask, out = files
    arguments = [image, mask, "-o", out, "--device", "cpu"]
    weights = tmp_path / "weights.safetensors"
    assert "no such weights file" in main_error(capsys, [*arguments, "--weights", weights])
    weights.write_bytes(b"nothing of the kind")
    assert f"{weights}: cannot be loaded as weights: " in main_error(capsys, [*arguments, "--weights", weights])
    small_generator.save(weights)
    weights.write_bytes(weights.read_bytes()[:-100])
    assert f"{weights}: cannot be loaded as weights: " in main_error(capsys, [*arguments, "--weights", weights])
    assert not out.exists()


def test_without_weights_those_of_the_package_are_used_and_noted(files, capsys):
    image, mask, out = files
    assert cli.main(["inpaint", str(image), str(mask), "-o", str(out), "--device", "cpu"]) == 0
    assert "note: the demo's weights, trained on rendered facades" in capsys.readouterr().err
    assert cli.main(["inpaint", str(image), str(mask), "-o", str(out), "--weights", "demo", "-q"]) == 0
    assert capsys.readouterr().err == ""


def test_missing_cuda_devices_are_refused(files, tmp_path, capsys, monkeypatch):
    image, mask, out = files
    (tmp_path / "weights").touch()
    arguments = [image, mask, "-o", out, "--weights", tmp_path / "weights", "--device"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "--device cuda: " in main_error(capsys, [*arguments, "cuda"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert "--device cuda:2: there are only 2 GPUs" in main_error(capsys, [*arguments, "cuda:2"])


def test_missing_extra_is_named(run, files, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    code, lines = run(*files[:2], "-o", files[2])
    assert (code, lines) == (1, ["msa inpaint: error: tqdm is missing: pip install 'msa-ops[model]'"])


def test_another_process_with_saved_weights_and_the_network_itself(files, folders, tmp_path, small_generator):
    """As a user runs it: another process, saved weights, the network itself."""
    source, masks, out = folders
    (source / "b.jpg").write_bytes(b"")
    small_generator.save(tmp_path / "weights.safetensors")
    command = [sys.executable, "-m", "msa_model", "inpaint", source, masks, "-o", out, "--compare", "--device", "cpu"]
    done = subprocess.run([*command, "--weights", tmp_path / "weights.safetensors"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 2
    with Image.open(source / "a.png") as image, Image.open(masks / "a.bmp") as mask:
        expected = msa_model.inpaint(small_generator, image, mask)
    result = array(out / "a.png")
    assert abs(result.astype(int) - np.asarray(expected).astype(int)).max() <= 1
    assert np.array_equal(result[:, 1:], array(source / "a.png")[:, 1:])
