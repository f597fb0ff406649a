"""The list of runs says of each how far it is and what comes next, and survives whatever lies there."""

import json
from pathlib import Path

import pytest
from run_folders import encode, make_run, save

from diffusion_model import arrays, experiment, list_runs, run_state

ROOT = Path(__file__).resolve().parent.parent


def listed(capsys, *argv):
    """(status, stdout, stderr)"""
    with pytest.raises(SystemExit) as stop:
        experiment.launch(list_runs.main, [str(entry) for entry in argv])
    told = capsys.readouterr()
    return stop.value.code, told.out, told.err


def rows(capsys, workdir):
    """The rows by name, as --json gives them."""
    status, out, _ = listed(capsys, workdir, "--json")
    assert status == 0
    return {row["name"]: row for row in json.loads(out)}


def test_every_state_has_its_row(tmp_path, capsys):
    runs = tmp_path / "runs"
    for name in ("finished", "stopped", "failed", "running"):
        save(make_run(runs / name), 10 if name == "finished" else 4)
    run_state.mark(runs / "failed", "failed", reason="the disk was full")
    run_state.mark(runs / "running", "running", step=7, total=10)
    run_state.mark(runs / "stopped", "running", step=7, total=10, note="killed")
    held = arrays.read_json(runs / "stopped/state.json")
    arrays.write_json(runs / "stopped/state.json", {**held, "started": 1})
    found = rows(capsys, tmp_path)
    assert {name: row["state"] for name, row in found.items()} == {name: name for name in found}
    assert {name: (row["step"], row["total"]) for name, row in found.items()} == {
        "finished": (10, 10), "stopped": (4, 10), "failed": (4, 10), "running": (7, 10),
    }  # fmt: skip
    assert found["failed"]["why"] == "the disk was full"
    assert found["running"]["lacks"]["training"] == "wait"
    assert "training" not in found["finished"]["lacks"]


def test_losses_are_every_term_of_the_last_whole_record(tmp_path, capsys):
    run = make_run(tmp_path / "runs/a")
    last = {"step": 2, "images": 20, "score": 3.5, "kl": None, "reconstruction": 7, "images_per_second": 123.4}
    lines = [
        json.dumps({"step": 1, "score": 9.0}),
        json.dumps(last | {"memory_mb": 1, "seconds_left": 1}),
        '{"step": 3, "sc',
    ]
    (run / "metrics.jsonl").write_text("\n".join(lines))
    row = rows(capsys, tmp_path)["a"]
    assert row["losses"] == {"score": 3.5, "reconstruction": 7}
    assert row["rate"] == 123.4
    assert 0 <= row["age"] < 60
    text = listed(capsys, tmp_path)[1]
    assert "score 3.5 reconstruction 7" in text and "123" in text


def test_the_next_command_of_a_run_without_encoder(tmp_path, capsys):
    run = make_run(tmp_path / "runs/a")
    row = rows(capsys, tmp_path)["a"]
    assert list(row["lacks"]) == ["checkpoint", "training", "metrics", "sweep", "skips", "scores"]
    save(run, 10)
    (run / "metrics.jsonl").touch()
    assert list(rows(capsys, tmp_path)["a"]["lacks"]) == ["sweep", "skips", "scores"]
    (run / "sweeps/default").mkdir(parents=True)
    (run / "sweeps/default/cell.json").touch()
    assert next(iter(rows(capsys, tmp_path)["a"]["lacks"].values())) == (
        f"python linear_structure/process_experiments_with_skips.py {run}"
    )
    for name in ("sweeps/default/summary.json", "scores/summary.json"):
        arrays.write_json(run / name, {})
    assert rows(capsys, tmp_path)["a"]["lacks"] == {}
    assert listed(capsys, tmp_path)[1].rstrip().endswith("nothing")


def test_a_run_with_an_encoder_lacks_trajectories_until_all_times_of_its_step_are_stored(tmp_path, capsys):
    run = make_run(tmp_path / "runs/a", **{"model.mode": "reg-drl"})
    save(run, 10)
    (run / "metrics.jsonl").touch()

    def first():
        return next(iter(rows(capsys, tmp_path)["a"]["lacks"]))

    assert first() == "trajectories"
    encode(run, 10)
    assert first() == "trajectories"  # one of the two times
    encode(run, 5, ("0.00000000", "1.00000000"))
    assert first() == "trajectories"  # of an older step
    encode(run, 10, ("0.00000000", "1.00000000"))
    assert first() == "classify"
    (run / "trajectories/encoder/test/meta.json").unlink()
    assert first() == "trajectories"


def test_a_run_of_the_script_is_trained_on_by_the_script(tmp_path, capsys):
    make_run(tmp_path / "runs/a_0.0625_none_reg-drl_False_0.0005_3",
             **{"model.mode": "reg-drl", "encoder.widen": 0.0625, "seed": 3, "optimiser.learning_rate": 5e-4})  # fmt: skip
    make_run(tmp_path / "runs/other")
    whole = experiment.flatten(experiment.load_config("configs/drl.py:mnist", ["--config.training.images=9"]))
    make_run(tmp_path / "runs/mnist_1_none_probabilistic-drl_False_0.0002_0",
             **whole | {"model.multipliers": [1, 2]})  # fmt: skip
    found = rows(capsys, tmp_path)
    assert found["mnist_1_none_probabilistic-drl_False_0.0002_0"]["lacks"]["training"] == (
        "bash scripts/run.sh mnist none probabilistic-drl False 1 0 '--config.model.multipliers=[1, 2]' "
        "--config.training.images=9"
    )
    assert found["a_0.0625_none_reg-drl_False_0.0005_3"]["lacks"]["training"] == (
        "bash scripts/run.sh a none reg-drl False 0.0625 3 --config.optimiser.learning_rate=0.0005"
    )
    assert "the command that began" in found["other"]["lacks"]["training"]


@pytest.mark.parametrize(
    "content", ["", '{"format": 1, "ki', "[]", "{}", '{"format": 1, "kind": "run", "config": {}, "scaling": {}, "data": {}, '
                '"shape": [], "std": 1}', '{"format": 9, "kind": "run"}', '{"format": 1, "kind": "run", "config": 3, '
                '"scaling": {}, "data": {}, "shape": [], "std": 1}'],
)  # fmt: skip
def test_a_broken_run_is_a_row_with_the_reason(tmp_path, capsys, content):
    make_run(tmp_path / "runs/whole")
    (tmp_path / "runs/broken").mkdir()
    (tmp_path / "runs/broken/config.json").write_text(content)
    found = rows(capsys, tmp_path)
    assert found["broken"]["state"] == "broken"
    assert found["broken"]["why"]
    assert found["whole"]["state"] == "stopped"
    status, out, told = listed(capsys, tmp_path)
    assert (status, told) == (0, "")
    assert "broken (" in out


def test_an_empty_folder_and_a_broken_store_among_the_runs(tmp_path, capsys):
    (tmp_path / "runs/empty").mkdir(parents=True)
    run = make_run(tmp_path / "runs/store", **{"model.mode": "reg-drl"})
    (run / "trajectories/encoder/train").mkdir(parents=True)
    (run / "trajectories/encoder/train/meta.json").write_text("{")
    found = rows(capsys, tmp_path)
    assert "it has no config.json" in found["empty"]["why"]
    assert "truncated or altered" in found["store"]["why"]


def test_a_workdir_a_folder_of_runs_and_a_run_are_accepted(capsys):
    found = rows(capsys, ROOT / "docs/runs")
    assert {"drl-synthetic16", "edm-synthetic16"} <= found.keys()
    assert found["edm-synthetic16"]["state"] == "finished"
    assert list(rows(capsys, ROOT / "docs")) == list(found)
    assert list(rows(capsys, ROOT / "docs/runs/edm-synthetic16")) == ["edm-synthetic16"]


def test_without_runs_one_sentence(tmp_path, capsys):
    status, out, told = listed(capsys, tmp_path)
    assert (status, out) == (1, "")
    assert told.startswith(f"error: no runs in {tmp_path}/runs or {tmp_path}: give a folder")
    assert listed(capsys, tmp_path, "--jsn")[0] == 2
    assert listed(capsys, tmp_path, "--json", "--states")[0] == 2


def test_a_line_a_run_for_scripts(tmp_path, capsys):
    save(make_run(tmp_path / "runs/b"), 10)
    make_run(tmp_path / "runs/a")
    assert listed(capsys, tmp_path, "--states")[1].splitlines() == [
        "a\tstopped\t0\t10\tcheckpoint,training,metrics,sweep,skips,scores",
        "b\tfinished\t10\t10\tmetrics,sweep,skips,scores",
    ]


@pytest.mark.parametrize(("seconds", "text"), [(None, ""), (3, "3 s"), (90, "2 min"), (7200, "2 h"), (2e5, "2 d")])
def test_an_age_has_one_unit(seconds, text):
    assert list_runs.span(seconds) == text


def test_a_name_does_not_reach_the_terminal_as_it_is(tmp_path, capsys):
    make_run(tmp_path / "runs" / "a\x1b[2Jb")
    status, out, _ = listed(capsys, tmp_path)
    assert status == 0 and "a\\x1b[2Jb" in out and "\x1b" not in out
