"""A run's state is believed only with evidence: a live process of the right start, or files written to lately."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from run_folders import make_run, save

from diffusion_model import arrays, board, run_state

ROOT = Path(__file__).resolve().parent.parent


def test_a_run_says_running_then_finished(tmp_path):
    run = make_run(tmp_path / "a")
    with run_state.tracked(run) as note:
        note(step=4, total=10, world=1)
        state = run_state.state_of(run)
        assert (state.name, state.why, state.step, state.total) == ("running", f"process {os.getpid()}", 4, 10)
        note(step=10)
        save(run, 10)
    assert run_state.read(run)["state"] == "finished"
    assert run_state.state_of(run).name == "finished"


@pytest.mark.parametrize(
    ("error", "name", "why"),
    [(KeyboardInterrupt(), "stopped", "stopped with a checkpoint"), (ValueError("no\nspace"), "failed", "no space")],
)
def test_how_a_training_ends_is_how_its_state_reads(tmp_path, error, name, why):
    run = make_run(tmp_path / "a")
    save(run, 3)
    with pytest.raises(type(error)), run_state.tracked(run) as note:
        note(step=5, total=10)
        raise error
    state = run_state.state_of(run)
    assert (state.name, state.why, state.step) == (name, why, 3)


def test_a_body_that_ends_early_is_stopped(tmp_path):
    run = make_run(tmp_path / "a")
    with run_state.tracked(run) as note:
        note(step=5, total=10)
    state = run_state.state_of(run)
    assert (state.name, state.why) == ("stopped", "stopped before its first checkpoint")


def test_a_refused_command_leaves_the_state_as_it_was(tmp_path):
    run = make_run(tmp_path / "a")
    run_state.mark(run, "stopped", step=3)
    before = run_state.read(run)
    with pytest.raises(ValueError, match="another configuration"), run_state.tracked(run):
        raise ValueError("a run of another configuration")
    with (
        run_state.tracked(run),
        pytest.raises(ValueError, match=f"is being trained by process {os.getpid()} on .*: wait"),
        run_state.tracked(run),
    ):
        pass
    assert run_state.read(run) == before


def test_other_ranks_write_nothing(tmp_path):
    with run_state.tracked(tmp_path / "a", active=False) as note:
        note(step=1)
    assert not (tmp_path / "a").exists()


def test_a_killed_process_is_not_believed(tmp_path):
    run = make_run(tmp_path / "a")
    code = f"""
import sys, time
from diffusion_model import run_state
with run_state.tracked({str(run)!r}) as note:
    note(step=2, total=10)
    print("ready", flush=True)
    time.sleep(60)
"""
    child = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "ready\n"
    assert run_state.state_of(run).name == "running"
    with (
        pytest.raises(ValueError, match=f"{run} is being trained by process {child.pid} on .*: wait"),
        run_state.tracked(run),
    ):
        pass
    assert run_state.read(run)["pid"] == child.pid  # whoever is refused changes nothing
    child.kill()
    deadline = time.monotonic() + 10
    while run_state.start_of(child.pid) is not None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (
        run_state.state_of(run).why == f"process {child.pid} is gone: it was killed"
    )  # dead, though not yet waited for
    child.wait()
    child.stdout.close()
    assert run_state.state_of(run).name == "stopped"
    with run_state.tracked(run) as note:  # and its folder is free again
        note(step=2)
        assert run_state.state_of(run).name == "running"


def test_a_number_used_again_is_not_believed(tmp_path):
    run = make_run(tmp_path / "a")
    run_state.mark(run, "running", step=1)
    assert run_state.state_of(run).name == "running"
    held = run_state.read(run)
    arrays.write_json(run / "state.json", {**held, "started": held["started"] - 1})
    assert run_state.state_of(run).name == "stopped"
    save(run, 10)
    assert run_state.state_of(run).name == "finished"


@pytest.mark.parametrize(
    ("interval", "quiet", "name"),
    [(10, 500, "running"), (10, 700, "stopped"), (600, 1700, "running"), (600, 1900, "stopped"),
     (None, 3500, "running"), (None, 3700, "stopped")],
)  # fmt: skip
def test_elsewhere_files_speak_for_the_process(tmp_path, interval, quiet, name):
    run = make_run(tmp_path / "a")
    run_state.mark(run, "running", step=1, interval=interval)
    arrays.write_json(run / "state.json", {**run_state.read(run), "host": "far", "pid": 1})
    (run / "metrics.jsonl").touch()
    for file in run.iterdir():
        os.utime(file, (time.time() - quiet,) * 2)
    state = run_state.state_of(run)
    assert state.name == name
    assert "on far" in state.why


def test_what_has_no_state_is_judged_by_its_checkpoints(tmp_path):
    run = make_run(tmp_path / "a")
    assert run_state.state_of(run).name == "stopped"
    save(run, 10)
    assert run_state.state_of(run).name == "finished"
    (run / "state.json").write_text('{"format": 1, "ki')
    assert run_state.state_of(run).name == "finished"
    make_run(run, images=200)  # the total length may be made longer
    assert (run_state.state_of(run).name, run_state.state_of(run).total) == ("stopped", 20)


def test_the_published_runs_are_finished():
    state = run_state.state_of(ROOT / "docs/runs/edm-synthetic16")
    assert (state.name, state.why) == ("finished", "published weights")
    assert state.step > 0


def test_an_unknown_state_is_refused(tmp_path):
    with pytest.raises(ValueError, match="state 'done': accepted: running, finished, stopped, failed"):
        run_state.mark(tmp_path, "done")


def test_a_full_disk_does_not_hide_why_a_run_failed(tmp_path, monkeypatch):
    run = make_run(tmp_path / "a")

    def full(path, content):
        raise OSError(28, "No space left on device")

    with pytest.raises(FloatingPointError, match="not finite"), run_state.tracked(run) as note:
        note(step=1)
        monkeypatch.setattr(arrays, "write_json", full)
        raise FloatingPointError("the loss is not finite")


class Writer:
    """Stands for TensorBoard's: keeps what it is given."""

    made = []  # noqa: RUF012

    def __init__(self, folder, purge_step):
        self.folder, self.purge_step, self.points, self.open = folder, purge_step, [], True
        self.made.append(self)

    def add_scalar(self, name, value, step):
        self.points.append((name, value, step))

    def flush(self):
        pass

    def close(self):
        self.open = False


def test_curves_are_the_numbers_of_the_records(tmp_path, monkeypatch):
    package = type(sys)("torch.utils.tensorboard")
    package.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", package)
    monkeypatch.setattr(board, "is_installed", lambda: True)
    for step, purge in ((0, 1), (7, 8)):
        curves = board.Board(tmp_path, step)
        curves({"step": 8, "score": 1.5, "kl": float("nan"), "images": 80, "note": "x", "flag": True})
        curves.close()
        writer = Writer.made[-1]
        assert (writer.folder, writer.purge_step, writer.open) == (str(tmp_path / "tensorboard"), purge, False)
        assert writer.points == [("score", 1.5, 8), ("images", 80, 8)]


def test_without_tensorboard_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(board, "is_installed", lambda: False)
    curves = board.Board(tmp_path, 0)
    curves({"step": 1, "score": 1.0})
    curves.close()
    assert not list(tmp_path.iterdir())


def test_a_broken_tensorboard_says_so_and_training_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(board, "is_installed", lambda: True)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    board.Board(tmp_path, 0)({"step": 1, "score": 1.0})
    assert "no TensorBoard curves" in capsys.readouterr().err
