"""The lock on the folder of a run."""

import errno
import os
import signal
import subprocess
import sys
import textwrap

import pytest

from msa_model.train import folder_lock
from msa_model.train.errors import TrainingError
from msa_model.train.folder_lock import NAME, FolderLock
from msa_model.train.run import run

from .tiny import config


def test_a_second_training_is_refused_by_the_name_of_the_first(tmp_path):
    lock = FolderLock(tmp_path)
    with pytest.raises(TrainingError) as caught:
        run(config(tmp_path, "--steps", "1"))
    assert str(caught.value).startswith(f"{tmp_path}: process {os.getpid()} on ")
    assert str(caught.value).endswith("wait until it has ended, or name another folder (--out)")
    assert [path.name for path in tmp_path.iterdir()] == [NAME]
    lock.release()
    run(config(tmp_path, "--steps", "1"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["events", "step-00000001"]


def test_a_killed_process_holds_nothing_though_its_child_lives(tmp_path):
    script = """
        import os, sys, time
        from msa_model.train.folder_lock import FolderLock

        lock = FolderLock(sys.argv[1])
        if (child := os.fork()) == 0:
            time.sleep(60)
            os._exit(0)
        print(child, flush=True)
        time.sleep(60)
    """
    holder = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    child = int(holder.stdout.readline())
    try:
        with pytest.raises(TrainingError, match=f"process {holder.pid} on"):
            FolderLock(tmp_path)
        holder.kill()
        holder.wait()
        FolderLock(tmp_path).release()
    finally:
        holder.kill()
        os.kill(child, signal.SIGKILL)
        holder.stdout.close()


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, capsys):
    def flock(*arguments):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(folder_lock.fcntl, "flock", flock)
    said = (
        f"{tmp_path} is not locked, as its file system has no locks (No locks available): make sure that no other "
        "training uses it"
    )
    assert FolderLock(tmp_path).problem == said
    run(config(tmp_path, "--steps", "1"))
    assert f"msa train: {said}\n" in capsys.readouterr().err
    monkeypatch.setattr(folder_lock, "fcntl", None)
    assert "this operating system has no flock" in FolderLock(tmp_path).problem


def test_a_folder_that_cannot_be_used_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(TrainingError, match=r"file: cannot be used as the folder of a run: File exists"):
        FolderLock(tmp_path / "file")
    with pytest.raises(TrainingError, match=r"below: cannot be used as the folder of a run: Not a directory"):
        FolderLock(tmp_path / "file" / "below")


def test_a_file_that_its_holder_removes_meanwhile_is_not_the_lock(tmp_path, monkeypatch):
    """Between opening the file and locking it, another training ends and a third one starts."""
    flock, third = folder_lock.fcntl.flock, []

    def late(descriptor, operation):
        monkeypatch.setattr(folder_lock.fcntl, "flock", flock)
        (tmp_path / NAME).unlink()
        third.append(FolderLock(tmp_path))
        flock(descriptor, operation)

    monkeypatch.setattr(folder_lock.fcntl, "flock", late)
    with pytest.raises(TrainingError, match="is training in this folder"):
        FolderLock(tmp_path)
    third[0].release()
