"""What somebody sent is opened and executes nothing; what is written into it stays inside."""

import json
import re
import shlex
from pathlib import Path

import pytest
from linear_world import make_data, make_run

from diffusion_model import (
    checkpoint,
    experiment,
    list_runs,
    list_trajectories,
    main,
    representations,
)
from linear_structure import compare_flows, compare_scores, draw_samples, map_mixtures, slice_scores, sweep_skips

PROCESS = """
import math
from pathlib import Path

import torch

from diffusion_model.sde import LinearSDE

Path(EXECUTED).touch()


class Cosine(LinearSDE):
    def alpha(self, t):
        return torch.cos(0.49 * math.pi * t)

    def sigma(self, t):
        return torch.sin(0.49 * math.pi * t)
"""
COMMANDS = {  # every command that makes a run's model
    "eval": (main.main, ["--mode", "eval", "--workdir", "RUN"]),
    "sample": (main.main, ["--mode", "sample", "--workdir", "RUN", "--n", "1", "--steps", "2"]),
    "publish": (main.main, ["--mode", "publish", "--workdir", "RUN", "--out", "OUT"]),
    "representations": (representations.main, ["RUN", "--list-blocks"]),
    "sweep_skips": (sweep_skips.main, ["RUN", "OUT"]),
    "draw_samples": (draw_samples.main, ["RUN", "OUT", "--skip", "1"]),
    "compare_scores": (compare_scores.main, ["RUN", "OUT"]),
    "compare_flows": (compare_flows.main, ["RUN", "OUT"]),
    "slice_scores": (slice_scores.main, ["RUN", "OUT"]),
    "map_mixtures": (map_mixtures.main, ["RUN", "OUT"]),
}


def launched(command, argv, capsys):
    """(status, stdout, stderr)"""
    with pytest.raises(SystemExit) as stop:
        experiment.launch(command, [str(entry) for entry in argv])
    told = capsys.readouterr()
    return stop.value.code, told.out, told.err


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with data, a run whose config.json names a Python file of its own, and that file."""
    folder = tmp_path_factory.mktemp("world")
    run = make_run(folder / "run", make_data(folder / "data", count=20))
    name = f"{folder / 'their own.py'}:Cosine"
    (folder / "their own.py").write_text(PROCESS.replace("EXECUTED", repr(str(folder / "executed"))))
    record = json.loads((run / "config.json").read_text())
    digest = main.sde.fingerprint(name)
    record["config"] |= {"sde.name": name, "model.precondition": "sde", **digest}
    (run / "config.json").write_text(json.dumps(record))
    return folder


@pytest.fixture(autouse=True)
def here(world, monkeypatch):
    """Its data, and nothing executed yet."""
    monkeypatch.setenv("DATA", str(world / "data"))
    (world / "executed").unlink(missing_ok=True)


@pytest.mark.parametrize("what", COMMANDS)
def test_a_run_with_a_file_of_its_makers_is_refused_with_what_to_add(what, world, tmp_path, capsys):
    command, argv = COMMANDS[what]
    paths = {"RUN": world / "run", "OUT": tmp_path / "out"}
    status, out, err = launched(command, [paths.get(entry, entry) for entry in argv], capsys)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert f"add --process {shlex.quote(str(world / 'their own.py') + ':Cosine')}" in err
    assert not (world / "executed").exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize("what", ["sample", "publish", "representations"])
def test_the_command_line_that_names_the_file_runs_it(what, world, tmp_path, capsys):
    command, argv = COMMANDS[what]
    paths = {"RUN": world / "run", "OUT": tmp_path / "out"}
    named = ["--process", f"{world / 'their own.py'}:Cosine"]
    status, _, err = launched(command, [paths.get(entry, entry) for entry in argv] + named, capsys)
    assert (status, err) == (0, "")
    # a module is run once a process; only the first of these commands does it
    assert main.sde.from_config(
        checkpoint.unflatten(checkpoint.read_run(world / "run")["config"])["sde"], process=named[1]
    ).level_range()[1] == pytest.approx(31.8, rel=0.01)


def test_training_takes_its_process_from_the_configuration_alone(tmp_path, capsys):
    argv = ["--mode", "train", "--config", "configs/edm.py:smoke", "--workdir", tmp_path, "--process", "a.py:P"]
    status, _, err = launched(main.main, argv, capsys)
    assert status == 2 and "takes --config.sde.name=a.py:P, not --process" in err


@pytest.mark.parametrize("command", [list_runs.main, list_trajectories.main])
def test_what_reads_a_run_and_makes_no_model_executes_nothing(command, world, capsys):
    launched(command, [world / "run"], capsys)
    assert not (world / "executed").exists()


def test_configs_are_the_projects_wherever_a_command_is_started(tmp_path, monkeypatch, capsys):
    """list_runs reads the preset of a run's data set; a folder of its name beside the runs is none of it."""
    (tmp_path / "configs").mkdir()
    text = "from pathlib import Path\nPath(__file__).with_name('executed').touch()\nPRESETS = {'smoke': 1}\nget_config = dict"
    for name in ("drl", "mine"):
        (tmp_path / "configs" / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    run = make_run(Path("runs/x"), make_data(tmp_path / "data", count=20))
    config = checkpoint.read_run(run)["config"]
    assert " --config.model.unit=1.0 " in list_runs.changed({**config, "data.name": "smoke"})
    assert launched(list_runs.main, [], capsys)[0] == 0
    assert len(experiment.load_presets("configs/drl.py")) > 5
    with pytest.raises(
        experiment.UsageError, match=r"no configuration file configs/mine.py; the one that lies here is ./"
    ):
        experiment.load_presets("configs/mine.py")
    assert not (tmp_path / "configs/executed").exists()
    assert experiment.load_presets("./configs/mine.py") == experiment.load_presets(str(tmp_path / "configs/mine.py"))
    assert (tmp_path / "configs/executed").exists()


def test_commands_that_are_shown_quote_what_a_run_is_called(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    split = make_data(tmp_path / "data", count=20)
    for name in ("$(touch x)", "a\nrunning\t1"):
        make_run(Path("runs") / name, split)
    out = launched(list_runs.main, ["--json"], capsys)[1]
    commands = [command for row in json.loads(out) for command in row["lacks"].values()]
    shown = [re.search(r"`(.*)`", command, re.DOTALL)[1] if "`" in command else command for command in commands]
    for command in shown:
        assert any(word in (r"runs/$(touch x)", "runs/a\nrunning\t1") for word in shlex.split(command)), command
    lines = launched(list_runs.main, ["--states"], capsys)[1].splitlines()
    assert len(lines) == 2 and all(line.count("\t") == 4 for line in lines)
