"""Only regular files are opened, at once and without waiting."""

import os
import socket
import stat
import subprocess
import sys
import types

import pytest

from msa_model import user_files


@pytest.fixture
def special(tmp_path):
    """Name -> path of what is no regular file."""
    os.mkfifo(tmp_path / "pipe.png")
    listening = socket.socket(socket.AF_UNIX)
    here = os.getcwd()
    os.chdir(tmp_path)  # the path of a socket may not be long
    listening.bind("socket.png")
    os.chdir(here)
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "link.png").symlink_to("pipe.png")
    (tmp_path / "null.png").symlink_to("/dev/null")
    (tmp_path / "stdin.png").symlink_to("/dev/stdin")
    yield {
        "a named pipe": tmp_path / "pipe.png",
        "a socket": tmp_path / "socket.png",
        "a folder": tmp_path / "folder.png",
        "a device": tmp_path / "null.png",
    }
    listening.close()


def test_special_files_are_named_and_never_opened(special, monkeypatch):
    monkeypatch.setattr(os, "open", lambda *arguments: pytest.fail("opened"))
    for what, path in special.items():
        for ask in (user_files.check, user_files.open_file):
            with pytest.raises(user_files.NotAFileError) as caught:
                ask(path)
            assert caught.value.strerror == f"is {what}, not a file"
            assert caught.value.filename == str(path)
    with pytest.raises(user_files.NotAFileError, match="named pipe"):
        user_files.open_file(special["a named pipe"].with_name("link.png"))


def test_a_pipe_that_takes_the_name_between_asking_and_opening_is_refused(special, monkeypatch):
    """A pipe without a writer: an opening that waited would never end."""
    monkeypatch.setattr(user_files, "_stat", lambda path: types.SimpleNamespace(st_mode=stat.S_IFREG))
    with pytest.raises(user_files.NotAFileError, match="is a named pipe, not a file"):
        user_files.open_file(special["a named pipe"])


def test_missing_files_loops_and_impossible_names(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(FileNotFoundError):
        user_files.open_file(tmp_path / "none")
    with pytest.raises(OSError, match="symbolic links"):
        user_files.open_file(tmp_path / "loop")
    with pytest.raises(user_files.NotAFileError, match="NUL character"):
        user_files.open_file("a\0b")


def test_regular_files_are_read_whole(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    with user_files.open_file(tmp_path / "a") as file:
        assert os.get_blocking(file.fileno())
        assert not os.get_inheritable(file.fileno())
        assert file.read() == b"abc"


@pytest.mark.parametrize("path", ["/dev/stdin", "/dev/fd/0"])
def test_a_pipe_of_the_shell_is_read_to_its_end(path):
    code = f"from msa_model import user_files as f; print(len(f.open_file({path!r}).read()), f.is_own_pipe({path!r}))"
    done = subprocess.run([sys.executable, "-c", code], input=b"x" * 200_000, capture_output=True)
    assert done.stdout == b"200000 True\n", done.stderr
