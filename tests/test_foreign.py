"""What somebody sent is opened and executes nothing; what is written into it stays inside."""

import json
import os
import re
import shlex
import shutil
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from linear_world import make_data, make_run
from run_folders import make_run as make_tiny

from diffusion_model import (
    arrays,
    checkpoint,
    experiment,
    list_runs,
    list_trajectories,
    locks,
    main,
    passes,
    representations,
    row_files,
    run_state,
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


@pytest.mark.parametrize("what", ["publish", "representations"])
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


# Links


def writers(run):
    """What writes into a run, by the folder of the run that it writes to."""
    tensors = {"model": {"a": torch.zeros(1)}}
    return {
        "checkpoints": lambda: checkpoint.save(run, 2, tensors, keep=1),
        "classify": lambda: arrays.write_json(run / "classify/head=mlp/seed=0.json", {}),
        "moments": lambda: arrays.write_folder(run / "moments", "moments", {"mean": np.zeros(1)}),
        "samples": lambda: arrays.write_array(run / "samples/heun18.npy", np.zeros(1)),
        "tensorboard": lambda: arrays.append_text(run / "tensorboard/events", "x"),
        "trajectories": lambda: row_files.RowFile(run / "trajectories/a/z.npy", (2, 1), np.dtype("f4")).begin(),
        "sweeps": lambda: hold(run / "sweeps"),
    }


def hold(folder):
    """Take and leave a folder's lock."""
    with locks.held(folder, "written"):
        pass


@pytest.mark.parametrize("folder", writers(Path()))
def test_nothing_is_written_through_a_link_that_leads_out_of_a_run(folder, tmp_path):
    run, outside = make_tiny(tmp_path / "runs/a"), tmp_path / "home"
    shutil.rmtree(run / "checkpoints", ignore_errors=True)
    outside.mkdir()
    for name in ("meta.json", ".3.tmp", "1-5"):
        (outside / name).write_text("mine")
    before = sorted((path, path.read_text()) for path in outside.iterdir())
    (run / folder).symlink_to(outside)
    with pytest.raises(ValueError, match=f"{folder} leads out of the run .* move the whole run there"):
        writers(run)[folder]()
    assert sorted((path, path.read_text()) for path in outside.iterdir()) == before
    # what leads elsewhere in the run is the run's affair, and the run's own folder may be a link
    (run / folder).unlink()
    (run / "scratch").mkdir()
    (run / folder).symlink_to("scratch")
    (tmp_path / "link").symlink_to(run)
    writers(tmp_path / "link")[folder]()
    assert any((run / "scratch").iterdir())


def test_a_link_in_the_place_of_a_file_is_not_followed(tmp_path):
    run, victim = make_tiny(tmp_path / "a"), tmp_path / "victim"
    rows = row_files.RowFile(run / "z.npy", (2, 1), np.dtype("f4"))
    appended = {
        "log.txt": lambda: arrays.append_text(run / "log.txt", "x\n"),
        ".rows.0": lambda: row_files.note(run, 0, 0, {}),
        ".z.npy.part": rows.begin,
        ".lock": lambda: hold(run),
    }
    for name, write in appended.items():
        victim.write_text("mine")
        (run / name).symlink_to(victim)
        with pytest.raises(ValueError, match=r"is a link, and "):
            write()
    with pytest.raises(ValueError, match="is a link"):
        rows.put(0, np.zeros((1, 1), "f4"))
    for name, write in {
        "metrics.jsonl": lambda: experiment.truncate_lines(run / "metrics.jsonl", "step", 3),
        "state.json": lambda: run_state.mark(run, "stopped"),
        "config.json": lambda: arrays.write_json(run / "config.json", {}),
    }.items():
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(victim)
        write()
        assert not (run / name).is_symlink()
    assert victim.read_text() == "mine"


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path):
    run = make_tiny(tmp_path / "a")
    for name in ("state.json", "log.txt", "metrics.jsonl"):
        os.mkfifo(run / name)
    assert run_state.read(run) == {} and list_runs.describe(run).state == "stopped"
    with pytest.raises((ValueError, OSError)):
        arrays.append_text(run / "log.txt", "x")


def test_states_of_a_pass_that_are_a_link_are_not_cleared(tmp_path):
    home = tmp_path / "home"
    (home / "1-5").mkdir(parents=True)
    (tmp_path / ".unfinished").symlink_to(home)
    for folder in (tmp_path / ".unfinished", tmp_path / ".unfinished/class-1"):
        with pytest.raises(ValueError, match=r"\.unfinished is a link, and the project keeps its own states there"):
            passes.accumulate({"a": torch.zeros(1)}, 2, 1, lambda rows: None, "adding", folder)
    assert (home / "1-5").is_dir()


# Sizes


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"model.features": 2**40}, "model.features=.*: expected a multiple of 4"),
        ({"model.features": 2048}, "no network that can be built|do not fit"),
        ({"model.blocks": 10**9}, "model.blocks=1000000000: expected from 1 to 64"),
        ({"model.multipliers": [1] * 1000}, "model.multipliers=.*expected 1 to 8 integers"),
        ({"model.mode": "reg-drl", "encoder.widen": 1e300}, "encoder.widen=1e.300: expected 0 or from 0.0625 to 64"),
        ({"shape": [3, 2**40, 2**40]}, "tells of images"),
        ({"shape": [8, 8]}, "tells of images"),
        ({"shape": [1, 8, 8]}, "and 3 scales, expected"),
    ],
)
def test_a_size_that_is_not_that_of_the_weights_is_refused_before_it_is_made(fields, sentence, world, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(world / "run", run)
    record = json.loads((run / "config.json").read_text())
    record["shape"] = fields.get("shape", record["shape"])
    record["config"] |= {"sde.name": "ve", **{name: value for name, value in fields.items() if name != "shape"}}
    (run / "config.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=sentence):
        checkpoint.load_score_model(run)


def test_an_array_of_another_folder_is_none_of_this_one(tmp_path):
    arrays.write_folder(tmp_path / "a", "kind", {"x": np.zeros(2)})
    arrays.write_array(tmp_path / "secret.npy", np.zeros(2))
    meta = json.loads((tmp_path / "a/meta.json").read_text())
    meta["arrays"] = {"../secret": meta["arrays"]["x"]}
    arrays.write_json(tmp_path / "a/meta.json", meta)
    with pytest.raises(ValueError, match=r"names an array '../secret' of another folder"):
        arrays.read_folder(tmp_path / "a", "kind")


def test_a_matplotlibrc_of_the_folder_has_no_say(monkeypatch, capsys):
    monkeypatch.setitem(matplotlib.rcParams, "text.usetex", True)
    assert launched(lambda argv: int(matplotlib.rcParams["text.usetex"]), [], capsys)[0] == 0
