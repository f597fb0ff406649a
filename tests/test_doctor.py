"""The doctor finds what is there, names a remedy for each lack, and outlives whatever it examines."""

import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from diffusion_model import arrays, board, data, doctor, experiment


def examined(capsys, *argv):
    """(status, {what: (level, found)}, the whole text)"""
    with pytest.raises(SystemExit) as stop:
        experiment.launch(doctor.main, [str(entry) for entry in argv])
    text = capsys.readouterr().out
    lines = [line.split(None, 2) for line in text.splitlines() if line.startswith(("ok", "lack", "broken"))]
    return stop.value.code, {what: (level, found) for level, what, found in lines}, text


@pytest.fixture
def no_gpu(monkeypatch):
    """A machine without a GPU and without a driver."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor, "DRIVER", Path("/no/driver"))


def test_a_machine_without_gpu_can_train(capsys, no_gpu, tmp_path):
    status, found, text = examined(capsys, "--data", tmp_path / "d", "--workdir", tmp_path)
    assert status == 0
    assert found["GPU"] == ("ok", "none here: the CPU is used")
    assert {
        "python",
        "packages",
        "torch",
        "compile-cpu",
        "cores",
        "memory",
        "data",
        "workdir",
        "Inception",
        "Slurm",
    } <= found.keys()
    assert found.keys() >= set(data.DATASETS)
    assert text.count("lack ") == text.count("->")
    assert "training can run; 0 broken" in text
    assert not list(tmp_path.iterdir())  # it changes nothing


def test_a_mistyped_folder_of_data_is_a_finding_among_the_others(capsys, no_gpu, monkeypatch, tmp_path):
    monkeypatch.setenv("DATA", str(tmp_path / "mistyped" / "data"))
    status, found, text = examined(capsys)
    assert status == 1 and "make it, or mend --data or $DATA" in text
    assert found["data"][0] == "broken" and f"there is no folder {tmp_path / 'mistyped'}" in found["data"][1]
    assert {"torch", "memory", "synthetic16"} <= found.keys()


def test_a_gpu_that_torch_cannot_use_is_broken(capsys, no_gpu, monkeypatch, tmp_path):
    driver = tmp_path / "version"
    driver.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.57.02  Tue Jul 13 16:14:05 UTC 2021\n")
    monkeypatch.setattr(doctor, "DRIVER", driver)
    status, found, text = examined(capsys)
    assert status == 1
    assert found["GPU"] == ("broken", "driver 470.57.02, but torch cannot use it")
    assert "training cannot run; 1 broken" in text


def test_a_device_that_does_not_compute_is_broken(monkeypatch):
    properties = SimpleNamespace(name="Old", total_memory=2**33, major=3, minor=5)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)

    def fails(*shape, device):
        raise RuntimeError("CUDA error: no kernel image is available\nmore")

    monkeypatch.setattr(torch, "ones", fails)
    found = doctor.device(0, "470.57")
    assert found.level == "broken"
    assert found.found == "Old, 8 GiB, compute capability 3.5: CUDA error: no kernel image is available"
    assert found.remedy


@pytest.mark.gpu
def test_a_device_that_computes():
    found = doctor.device(0, doctor.driver_version())
    assert found.level == "ok"
    assert "bf16" in found.found and "compute capability" in found.found


def images(folder, name, count=5):
    """A prepared set of `count` images a split."""
    for split in data.SPLITS:
        held = {"images": np.zeros((count, 1, 2, 2), np.uint8), "labels": np.zeros((count, 0), np.int64)}
        arrays.write_folder(
            folder / name / split, data.KIND, held, attributes={}, count=count, shape=[1, 2, 2], hash="0"
        )


def test_data_sets_have_their_counts_or_a_remedy(capsys, tmp_path, monkeypatch):
    images(tmp_path, "mine")
    images(tmp_path, "cifar10", 7)
    images(tmp_path, "half")
    (tmp_path / "half/test/meta.json").unlink()
    images(tmp_path, "mnist")
    (tmp_path / "mnist/train/meta.json").write_text('{"format"')
    source = tmp_path / "found"
    monkeypatch.setitem(
        data.DATASETS, "cifar100", SimpleNamespace(find=lambda root: source, download=None, place="there")
    )
    monkeypatch.setitem(data.DATASETS, "celeba", SimpleNamespace(find=lambda root: None, download=None, place="put it"))
    _, found, text = examined(capsys, "--data", tmp_path)
    assert found["mine"] == ("ok", "prepared: 5 train, 5 test")
    assert found["cifar10"] == ("ok", "prepared: 7 train, 7 test")
    assert found["half"] == ("lack", "half prepared")
    assert found["mnist"][0] == "lack" and "truncated" in found["mnist"][1]
    assert f"remove {tmp_path / 'mnist'} and run `{data.COMMAND} mnist`" in text
    assert found["cifar100"] == ("ok", f"prepared when first used, from {source}")
    assert f"put it and run `{data.COMMAND} celeba`" in text
    assert found["synthetic"] == ("ok", "made by the project when first used")


def test_a_place_that_cannot_hold_runs_is_broken(capsys, tmp_path):
    (tmp_path / "file").touch()
    status, found, _ = examined(capsys, "--workdir", tmp_path / "file/below")
    assert status == 1
    assert found["workdir"][0] == "broken" and "cannot be written to" in found["workdir"][1]


def test_little_disk_and_memory_are_lacks(monkeypatch, tmp_path):
    args = SimpleNamespace(data=tmp_path, workdir=tmp_path)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=2**30))
    assert {finding.level for finding in doctor.disks(args)} == {"lack"}
    monkeypatch.setattr(doctor, "memory_limit", lambda: 2**30)
    (finding,) = doctor.memory(args)
    assert finding.level == "lack" and "control group allows 1.0" in finding.found


@pytest.mark.parametrize(
    ("files", "cpus", "limit"),
    [({"cpu.max": "150000 100000", "memory.max": "1073741824"}, 1.5, 2**30), ({"cpu.max": "max 100000", "memory.max": "max"}, None, None),
     ({"cpu.cfs_quota_us": "200000", "cpu.cfs_period_us": "100000", "memory.limit_in_bytes": "5"}, 2.0, 5),
     ({"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"}, None, None), ({}, None, None)],
)  # fmt: skip
def test_control_groups_of_both_versions(monkeypatch, files, cpus, limit):
    monkeypatch.setattr(doctor, "read_text", lambda path: files.get(Path(path).name, ""))
    assert (doctor.cpu_quota(), doctor.memory_limit()) == (cpus, limit)


def test_what_is_not_installed_has_a_remedy(monkeypatch):
    monkeypatch.setattr(board, "is_installed", lambda: False)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    board_found, _, slurm = doctor.extras(None)
    assert (board_found.level, slurm.level) == ("lack", "ok")
    compiler, *_ = doctor.compilers(None)
    assert (compiler.level, compiler.remedy) == ("lack", "apt install g++, set CXX to one")

    def absent(name):
        raise doctor.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.importlib.metadata, "version", absent)
    _, *packages, _ = doctor.python(None)
    assert {finding.level for finding in packages} == {"broken"}
    assert "pip install 'torch>=" in packages[0].remedy


def test_a_slurm_without_a_controller(monkeypatch):
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/usr/bin/sinfo")

    def hangs(command, **options):
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(doctor.subprocess, "run", hangs)
    assert doctor.slurm().found == "sinfo is here, but no controller answers"
    answer = SimpleNamespace(returncode=0, stdout="gpu* 4 idle\ncpu 2 mixed\n")
    monkeypatch.setattr(doctor.subprocess, "run", lambda command, **options: answer)
    assert doctor.slurm().found == "partition gpu* 4 nodes idle; partition cpu 2 nodes mixed"


def test_a_check_that_fails_is_a_line(capsys, monkeypatch):
    def surprise(args):
        raise RuntimeError("no such thing")
        yield

    monkeypatch.setattr(doctor, "CHECKS", [surprise, doctor.cores])
    status, found, _ = examined(capsys)
    assert status == 0
    assert found["surprise"] == ("lack", "could not be examined (RuntimeError: no such thing)")
    assert found["cores"][0] == "ok"
