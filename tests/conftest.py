"""Shared by all tests: what a machine lacks is skipped, and arithmetic is the same on all of them."""

import builtins
import errno
import io
import os
import subprocess
from pathlib import Path

import pytest
import torch
from linear_world import make_world

# One thread, whatever the machine: results are then compared under one order of summation, and processes share the cores.
torch.set_num_threads(1)


def slurm_answers():
    """Whether `sinfo` is on the path and its controller answers within 5 s."""
    try:
        return subprocess.run(["sinfo", "-h"], capture_output=True, timeout=5).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def pytest_collection_modifyitems(items):
    """Skip tests marked `gpu` or `slurm` where there is no such thing."""
    if not any(marker in item.keywords for item in items for marker in ("gpu", "slurm")):
        return
    absent = {
        "gpu": (not torch.cuda.is_available(), "no CUDA device"),
        "slurm": (not slurm_answers(), "no Slurm controller answers"),
    }
    for item in items:
        for marker, (missing, reason) in absent.items():
            if missing and marker in item.keywords:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def own_data(monkeypatch, tmp_path):
    """No test reads or writes the data sets of the machine it runs on."""
    monkeypatch.setenv("DATA", str(tmp_path / "data"))


@pytest.fixture
def read_only(monkeypatch):
    """A function that makes a folder refuse every write from then on, also to root."""

    def refuse(folder):
        def guarded(whole, writes):
            def call(path, *given, **options):
                inside = isinstance(path, str | os.PathLike) and Path(path).resolve().is_relative_to(folder)
                if inside and writes(*given, **options):
                    raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
                return whole(path, *given, **options)

            return call

        opened = guarded(io.open, lambda mode="r", *_, **__: bool({*mode} & {*"wax+"}))
        for module in (io, builtins):
            monkeypatch.setattr(module, "open", opened)
        changing = os.O_WRONLY | os.O_RDWR | os.O_CREAT
        monkeypatch.setattr(os, "open", guarded(os.open, lambda flags, *_, **__: bool(flags & changing)))
        for name in ("mkdir", "unlink", "rename", "replace"):
            monkeypatch.setattr(os, name, guarded(getattr(os, name), lambda *_, **__: True))

    return refuse


@pytest.fixture
def world(tmp_path):
    """A run, its statistics, and both opened."""
    return make_world(tmp_path)
