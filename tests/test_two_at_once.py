"""Two commands in one folder, one that is killed there, and a full disk: the numbers that stay are right."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from linear_world import Pixels, make_data, make_run, run
from test_sweep import PIXELS, corner, example, make_sweep

from diffusion_model import features, results
from linear_structure import get_parameters, sweep_skips, sweeps
from linear_structure.gaussian import closed_forms

ROOT = Path(__file__).resolve().parent.parent
OPTIONS = ("--features", "classifier", "--n", "20", "--steps", "3", "--batch", "10", "--skips", "1")
STOPS_MIDWAY = """
import sys, time
from linear_world import Pixels
from diffusion_model import features
from linear_structure import sweep_skips, sweeps
draw = sweeps.draw
def slowly(*given):
    for x in draw(*given):
        yield x
        print("midway", flush=True)
        time.sleep(600)
sweeps.draw = slowly
features.FEATURES["classifier"] = lambda *_: Pixels("classifier")
sweep_skips.main(sys.argv[1:])
"""


@pytest.fixture
def world(tmp_path, monkeypatch) -> tuple[Path, Path]:
    """A run and statistics of its data, and an extractor."""
    monkeypatch.setitem(features.FEATURES, "classifier", lambda *_: Pixels("classifier"))
    split = make_data(tmp_path / "data")
    assert run(get_parameters.main, "dots", "gaussian", tmp_path / "params") == 0
    return make_run(tmp_path / "run", split), tmp_path / "params"


def drifts(folder: Path) -> dict[str, float]:
    """The mean drift of each cell of a sweep, by its path."""
    return {str(cell.path.relative_to(folder)): cell.value.get("drift", 0.0) for cell in results.read_cells(folder)}


def test_a_second_sweep_is_refused_and_a_killed_one_leaves_nothing_wrong(world, capsys) -> None:
    folder, params = world
    command = [sys.executable, "-c", STOPS_MIDWAY, str(folder), str(params), *OPTIONS]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    with subprocess.Popen(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": paths}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as first:
        try:
            assert first.stdout.readline() == b"midway\n"
            assert run(sweep_skips.main, folder, params, *OPTIONS) == 1
            said = f"sweeps/default is being swept by process {first.pid} on "
            assert said in (error := capsys.readouterr().err) and "or give another --name" in error
            assert run(sweep_skips.main, folder, params, *OPTIONS, "--name", "other") == 0
        finally:
            first.kill()
    assert run(sweep_skips.main, folder, params, *OPTIONS) == 0
    here, there = (drifts(folder / "sweeps" / name) for name in ("default", "other"))
    assert here == pytest.approx(there, rel=1e-5) and len(here) == 4
    assert not list(folder.rglob("*.tmp"))


def test_what_is_finished_stays_whole_while_it_is_made_again(tmp_path) -> None:
    sweep, plain, forms = make_sweep(tmp_path), sweeps.Cell("heun", 18), closed_forms(example())
    jumped = plain._replace(kind="gaussian", skip=4)
    assert sweep.run([plain, jumped], example().denoise, forms, PIXELS, corner) == []
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    calls = []

    def interrupted(x: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if len(calls) > 40:  # after the first of two batches
            raise KeyboardInterrupt
        return example().denoise(x, level)

    with pytest.raises(KeyboardInterrupt):
        sweep.make(plain, interrupted, None, PIXELS, corner, "cpu")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_full_disk_is_a_sentence_before_the_first_sample(world, monkeypatch, capsys) -> None:
    folder, params = world

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    assert run(sweep_skips.main, folder, params, *OPTIONS) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and "images.npy" in error and "no space left on device" in error
    assert not list((folder / "sweeps").rglob("sampler=*/**/*.npy*"))


def test_statistics_asked_for_twice_are_made_once(world, tmp_path, monkeypatch, capsys) -> None:
    made = []
    once = get_parameters.write_statistics
    monkeypatch.setattr(get_parameters, "write_statistics", lambda *given: (made.append(1), once(*given)))
    there = iter([False, True])  # another command makes them while this one waits for its lock
    monkeypatch.setattr(get_parameters, "is_there", lambda folder, wanted: next(there))
    assert run(get_parameters.main, "dots", "gaussian", tmp_path / "g") == 0
    assert "skipped" in capsys.readouterr().out and not made
    assert (tmp_path / "g" / ".lock").is_file()


def test_an_npz_of_other_images_is_not_replaced(world, tmp_path, capsys) -> None:
    file = tmp_path / "stats.npz"
    assert run(get_parameters.main, "dots", "gaussian", tmp_path / "a", "--npz", file) == 0
    before = file.read_bytes()
    assert run(get_parameters.main, "dots", "gaussian", tmp_path / "b", "--npz", file, "--split", "test") == 1
    assert f"--npz {file} is there and is of other images" in capsys.readouterr().err
    assert file.read_bytes() == before
    assert run(get_parameters.main, "dots", "gaussian", tmp_path / "c", "--npz", file, "--rank", 2) == 0


def test_who_writes_a_cell_meanwhile_is_not_replaced(tmp_path) -> None:
    results.write_cell(tmp_path, {"a": 1}, {"x": 1.0}, {"n": 2})
    with pytest.raises(ValueError, match="n: 2 there, 3 now"):
        results.write_cell(tmp_path, {"a": 1}, {"x": 5.0}, {"n": 3}, lambda place: place.mkdir())
    assert not (tmp_path / "a=1").exists()
    results.write_cell(tmp_path, {"a": 1}, {"error": "out of memory"}, {"n": 2})
    assert results.read_cell(tmp_path / "a=1.json").value == {"x": 1.0}
