"""A report that cannot be made is said and survived: streams that close, fill up or lose their reader, files that refuse."""

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from linear_world import make_data

from diffusion_model import arrays, board, checkpoint, data, experiment, main, reports, run_state, sampling

ROOT = Path(__file__).resolve().parent.parent
CLOSED = """
import os, sys
from pathlib import Path
from diffusion_model import reports

def work():
    for step in range(40):
        print("step", step, flush=True)
        print("note", step, file=sys.stderr, flush=True)
        assert not sys.stderr.isatty()
        with open("done", "a") as file:
            file.write(f"{step}\\n")

    return 0

def wrong():
    print("error: no such run", file=sys.stderr)
    return 1

def broken():
    read, write = os.pipe()
    os.close(read)
    return write

def start(name, command, opened):
    os.mkdir(name), os.chdir(name)
    for number, make in opened.items():
        handle = None if make is None else os.open("/dev/full", os.O_WRONLY) if make == "full" else broken()
        os.close(number)
        if handle is not None:
            os.dup2(handle, number)
        else:
            setattr(sys, ("stdin", "stdout", "stderr")[number], None)  # as Python starts without it
    sys.exit(reports.guarded(command))

for name, command, opened in CASES:
    if os.fork() == 0:
        try:
            start(name, command, opened)
        except SystemExit as end:
            os._exit(end.code)
        os._exit(99)
    status = os.waitstatus_to_exitcode(os.wait()[1])
    done = Path(name, "done")
    print(name, status, done.read_text().count("\\n") if done.exists() else 0, flush=True)
"""
CASES = {  # streams by number: None closed from the start, "full" a full disk, "cut" a reader who has left
    "closed0": ("work", {0: None}, 0, 40),
    "closed1": ("work", {1: None}, 0, 40),
    "closed2": ("work", {2: None}, 0, 40),
    "closed": ("work", {0: None, 1: None, 2: None}, 0, 40),
    "full1": ("work", {1: "full"}, 1, 40),
    "full2": ("work", {2: "full"}, 1, 40),
    "cut1": ("work", {1: "cut"}, 0, 40),
    "cut2": ("work", {2: "cut"}, 0, 40),
    "cut": ("work", {1: "cut", 2: "cut"}, 0, 40),
    "wrong": ("wrong", {1: "cut", 2: None}, 1, 0),
}


def test_no_stream_ends_a_command_and_none_hides_its_status(tmp_path):
    cases = ", ".join(f"({name!r}, {case[0]}, {case[1]!r})" for name, case in CASES.items())
    code = CLOSED.replace("CASES", f"[{cases}]")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True,
                          env=os.environ | {"PYTHONPATH": str(ROOT)})  # fmt: skip
    found = dict(line.split(maxsplit=1) for line in done.stdout.splitlines() if line.split()[0] in CASES)
    assert found == {name: f"{status} {steps}" for name, (_, _, status, steps) in CASES.items()}
    for name, sentence in (("stdout", "stdout cannot be written (No space left on device); the work goes on\n"),
                           ("all else", "error: what could not be written is missing, all else is done: stdout\n")):  # fmt: skip
        assert sentence in done.stderr, name


def launched(command, capsys):
    """(status, stdout, stderr)"""
    with pytest.raises(SystemExit) as stop:
        experiment.launch(command, [])
    told = capsys.readouterr()
    return stop.value.code, told.out, told.err


def test_a_lost_report_is_said_once_and_is_the_status(capsys):
    done = []

    def command(argv):
        for step in range(3):
            with reports.survived("a/log.txt"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a/log.txt")
            done.append(step)
        with reports.survived("a/samples"):
            raise RuntimeError("two\nlines")

    status, out, err = launched(command, capsys)
    assert (status, out, done) == (1, "", [0, 1, 2])
    assert err.splitlines() == [
        "a/log.txt cannot be written (No space left on device); the work goes on",
        "a/samples cannot be written (RuntimeError: two lines); the work goes on",
        "error: what could not be written is missing, all else is done: a/log.txt (3 times), a/samples",
    ]
    assert launched(lambda argv: 0, capsys) == (0, "", "")  # of the next command nothing is lost


def test_an_interruption_and_a_failure_keep_their_status(capsys):
    def command(argv):
        with reports.survived("x"):
            raise OSError("full")
        raise KeyboardInterrupt

    assert launched(command, capsys)[0] == 130


def test_letters_that_a_terminal_lacks_are_escaped(monkeypatch, capsys):
    held = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", held)
    assert launched(lambda argv: print("é \udcff"), capsys)[0] == 0
    held.flush()
    assert held.buffer.getvalue() == b"\\xe9 \\udcff\n"


def test_lines_are_added_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "run/metrics.jsonl"
    arrays.append_text(path, "one\n")
    write = os.write

    def fill(handle, left):
        if len(left) < 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(handle, left[:3])

    with monkeypatch.context() as full:
        full.setattr(os, "write", fill)
        with pytest.raises(OSError, match="No space"):
            arrays.append_text(path, "two two two\n")
    arrays.append_text(path, "three\n")
    assert path.read_text() == "one\nthree\n"


# Training


def train(workdir):
    """Status of a training of three steps, with a record and a checkpoint at each."""
    argv = ["--mode", "train", "--config", "configs/edm.py:smoke", "--workdir", workdir, "--device", "cpu",
            "--config.training.images=12", "--config.training.batch=4", "--config.logging.every=4",
            "--config.data.name=dots", "--config.logging.checkpoint_every=4", "--config.logging.sample_every=4"]  # fmt: skip
    with pytest.raises(SystemExit) as stop:
        experiment.launch(main.main, [str(entry) for entry in argv])
    return stop.value.code


def test_no_report_ends_a_training_and_a_checkpoint_is_written_before_its_record(tmp_path, monkeypatch, capsys):
    """Where log, metrics, state, curves and pictures refuse, the weights are those of a training with all of them."""
    make_data(data.root(), count=20)
    monkeypatch.setattr(sampling, "sample_images", lambda *given: data.open_split("dots", "test").images[:4])
    assert train(tmp_path / "whole") == 0
    run, seen = tmp_path / "run", []
    for name in ("log.txt", "metrics.jsonl", "state.json/x"):
        (run / name).mkdir(parents=True)

    class Writer:
        def add_scalar(self, name, value, step):
            seen.append((step, checkpoint.steps(run)[-1]))
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fail(*given):
        raise FloatingPointError("the solver left the finite numbers")

    monkeypatch.setattr(board, "_open", lambda folder, step: Writer())
    monkeypatch.setattr(sampling, "sample_images", fail)
    assert train(run) == 1
    assert seen == [(1, 1)]  # the record of step 1 finds its checkpoint; a board that failed is left alone
    groups = [checkpoint.read(folder, 3, ["model", "average"])[0] for folder in (run, tmp_path / "whole")]
    assert all(groups[0][group][name].equal(groups[1][group][name]) for group in groups[0] for name in groups[0][group])
    err = capsys.readouterr().err
    for name in ("log.txt", "metrics.jsonl", "state.json", "samples", "tensorboard"):
        assert err.count(f"{run / name} cannot be written (") == 1, name
    assert f"{run / 'metrics.jsonl'} (3 times)" in err.splitlines()[-1]
    assert run_state.state_of(run).name == "finished"
