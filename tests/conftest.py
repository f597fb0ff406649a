"""Shared by all tests: what a machine lacks is skipped, and arithmetic is the same on all of them."""

import os
import shutil

import pytest
import torch

# Two threads, whatever the machine: results are then compared under one order of summation.
torch.set_num_threads(min(2, os.cpu_count() or 1))


def pytest_collection_modifyitems(items):
    """Skip tests marked `gpu` or `slurm` where there is no such thing."""
    absent = {
        "gpu": (not torch.cuda.is_available(), "no CUDA device"),
        "slurm": (shutil.which("sinfo") is None, "no Slurm controller"),
    }
    for item in items:
        for marker, (missing, reason) in absent.items():
            if missing and marker in item.keywords:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def own_data(monkeypatch, tmp_path):
    """No test reads or writes the data sets of the machine it runs on."""
    monkeypatch.setenv("DATA", str(tmp_path / "data"))
