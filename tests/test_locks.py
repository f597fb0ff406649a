"""One command at a time: who holds a folder is named, the dead hold nothing, and a lock follows no link."""

import contextlib
import multiprocessing
import os
import threading
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from diffusion_model import arrays, locks


def hold(folder: Path, line: Connection) -> None:
    """In a process of its own: hold the lock until told to let go."""
    with locks.held(folder, "written"):
        line.send("ready")
        line.recv()


@contextlib.contextmanager
def holder(folder: Path) -> Iterator[tuple[multiprocessing.Process, Connection]]:
    """Another process that holds the lock of a folder, and the line that ends it."""
    context = multiprocessing.get_context("fork")
    line, theirs = context.Pipe()
    process = context.Process(target=hold, args=(folder, theirs))
    process.start()
    assert line.recv() == "ready"
    yield process, line
    process.join(30)


@pytest.mark.filterwarnings("ignore:.*multi-threaded")
def test_a_second_command_is_refused_by_name_and_the_dead_hold_nothing(tmp_path) -> None:
    folder = tmp_path / "new" / "folder"
    with holder(folder) as (process, _):
        said = f"{folder} is being written by process {process.pid} on .*: wait for it or stop it"
        with pytest.raises(ValueError, match=said), locks.held(folder, "written"):
            pass
        process.kill()
        process.join()
        with locks.held(folder, "written"):
            pass


@pytest.mark.filterwarnings("ignore:.*multi-threaded")
def test_who_waits_goes_on_when_the_other_has_ended(tmp_path, capsys) -> None:
    with holder(tmp_path) as (process, line):
        threading.Timer(0.05, line.send, ["end"]).start()
        with locks.held(tmp_path, "written", wait=True):
            assert (said := capsys.readouterr().err).startswith(f"{tmp_path} is being written by process {process.pid}")
            assert said.endswith(": waiting for it\n")


def test_a_lock_that_is_no_file_of_its_own_is_refused_and_nothing_is_written_through_it(tmp_path) -> None:
    (tmp_path / "diary").write_text("mine")
    for make in (Path.symlink_to, Path.hardlink_to):
        make(tmp_path / ".lock", tmp_path / "diary")
        with pytest.raises(ValueError, match=r"\.lock is .*: remove it"), locks.held(tmp_path, "written"):
            pass
        (tmp_path / ".lock").unlink()
    os.mkfifo(tmp_path / ".lock")
    with pytest.raises(ValueError, match="no file of its own"), locks.held(tmp_path, "written"):
        pass
    assert (tmp_path / "diary").read_text() == "mine"


def test_a_lock_says_what_it_can_of_its_holder(tmp_path) -> None:
    with locks.held(tmp_path, "written"):
        assert arrays.read_json(tmp_path / ".lock")["pid"] == os.getpid()
        for text in ("", "{}", '{"pid": "x", "host": 1}', "[" * 100_000):
            (tmp_path / ".lock").write_text(text)
            with pytest.raises(ValueError, match="by another process: sit down"), locks.held(tmp_path, "w", "sit down"):
                pass


def test_brief_locks_are_taken_inside_long_ones(tmp_path) -> None:
    with locks.held(tmp_path, "written"), locks.briefly(tmp_path):
        pass
