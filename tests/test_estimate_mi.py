"""estimate_mi: cells, resume, the map and its summary, and its sentences."""

import json

import numpy as np
import pytest
import torch

from diffusion_model import experiment, figures, results, trajectories
from qualitative_analysis import estimate_mi

FAST = ["--granularity", "2", "--seeds", "0", "1", "--width", "16", "--steps", "60", "--batch", "64",
        "--learning-rate", "4e-3", "--check-every", "20", "--device", "cpu", "--known"]  # fmt: skip


def write_store(run, source="encoder", shift=0.0, times=(0.0, 0.5, 1.0)):
    """A store whose codes at 0 and 0.5 share two coordinates and whose codes at 1 are noise."""
    for split, count in (("train", 400), ("test", 200)):
        draws = np.random.default_rng(count)
        shared = draws.standard_normal((count, 2)).astype(np.float32)
        writer = trajectories.Writer(
            run / "trajectories" / source / split, list(times), np.zeros((count, 1)), {"label": 2}, 3, run=str(run)
        )
        for time in writer.pending:
            z = draws.standard_normal((count, 3)).astype(np.float32)
            z[:, :2] += 3 * shared * (time < 1)
            writer.write(time, z + np.float32(shift))
    return run / "trajectories" / source


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def refused(argv, capsys):
    """Status and sentence of a command that is refused."""
    with pytest.raises(SystemExit) as stop:
        experiment.launch(estimate_mi.main, [str(entry) for entry in argv])
    return stop.value.code, capsys.readouterr().err


def test_map_summary_and_resume(tmp_path, capsys):
    store = write_store(tmp_path / "run")
    assert estimate_mi.main([str(store), *FAST]) == 0
    root = tmp_path / "run" / "mutual_information"
    cells = {(cell.key["first"], cell.key["second"]): cell for cell in results.read_cells(root)}
    assert set(cells) == {(0.0, 0.5), (0.0, 1.0), (0.5, 1.0)}
    near, far = cells[0.0, 0.5], cells[0.0, 1.0]
    assert near.value["nats"] > 0.5 and abs(far.value["nats"]) < 0.15
    assert near.protocol["rows"] == {"fit": 320, "validation": 80, "held_out": 200}
    assert near.protocol["ceiling"] == pytest.approx(np.log(200)) and len(near.value["per_seed"]) == 2

    summary = json.loads((root / "summary_encoder.json").read_text())
    matrix = np.array(summary["nats"], dtype=float)
    assert np.isnan(np.diag(matrix)).all() and matrix[0, 1] == matrix[1, 0] == near.value["nats"]
    assert summary["command"].startswith("python qualitative_analysis/estimate_mi.py ")
    table = figures.read_table(root / "matrix_encoder.csv")
    assert len(table["nats"]) == 3 and (root / "matrix_encoder.png").is_file()

    before = {path: path.read_bytes() for path in root.rglob("second*.json")}
    near.path.unlink()
    capsys.readouterr()
    assert estimate_mi.main([str(store), *FAST]) == 0
    assert "3 pairs of times, 1 to do" in capsys.readouterr().out
    again = results.read_cell(near.path)
    assert again.value["nats"] == pytest.approx(near.value["nats"], abs=1e-4)
    assert all(path.read_bytes() == content for path, content in before.items() if path != near.path)


def test_known_answers_stand_beside_the_map(tmp_path, capsys):
    """At the map's own rows and features: a cell each, the pairs above those that came back, in table, summary and words."""
    store = write_store(tmp_path / "run")
    quick = [*FAST, "0", "3"]
    assert estimate_mi.main([str(store), *quick]) == 0
    told = capsys.readouterr().out
    root = tmp_path / "run" / "mutual_information"
    none, three = (results.read_cell(results.cell_path(root, source="encoder", known=nats)) for nats in (0.0, 3.0))
    assert abs(none.value["nats"]) < 0.1 and 0.3 < three.value["nats"] < 2.4  # 60 steps do not find 3 nats
    assert three.value["still_rising"] and not none.value["beyond_ceiling"]
    near = results.read_cell(results.cell_path(root, source="encoder", first=0.0, second=0.5))
    assert three.protocol == {name: value for name, value in near.protocol.items() if name != "codes"}

    summary = json.loads((root / "summary_encoder.json").read_text())
    assert [one["truth"] for one in summary["known"]] == [0.0, 3.0]
    assert summary["known_up_to"] == max(0.0, none.value["nats"]) and [0.0, 0.5] in summary["beyond_known"]
    assert [0.0, 0.5] in summary["still_rising"] and summary["beyond_ceiling"] == []
    table = figures.read_table(root / "matrix_encoder.csv")
    assert (table["still_rising"][0], table["beyond_known"][0], table["beyond_ceiling"][0]) == ("1", "1", "0")
    assert (
        f"known answers: 0 gives {none.value['nats']:.2f}, 3 gives {three.value['nats']:.2f}; recovered up to" in told
    )
    assert f"0 pairs above it, {len(summary['still_rising'])} still rising at the end" in told

    three.path.unlink()
    assert estimate_mi.main([str(store), *quick]) == 0
    again = results.read_cell(three.path)
    assert again.value["nats"] == pytest.approx(three.value["nats"], abs=1e-4)
    assert estimate_mi.main([str(store), *FAST]) == 0  # left out, the map claims nothing of them
    summary = json.loads((root / "summary_encoder.json").read_text())
    assert (summary["known"], summary["known_up_to"], summary["beyond_known"]) == ([], None, [])


def test_fit_on_test_needs_no_train_split_and_is_another_protocol(tmp_path, capsys):
    store = write_store(tmp_path / "run")
    for path in (store / "train").iterdir():
        path.unlink()
    (store / "train").rmdir()
    quick = [*FAST, "--times", "0", "0.5", "--fit-on", "test"]
    assert estimate_mi.main([str(store), *quick]) == 0
    (cell,) = results.read_cells(tmp_path / "run" / "mutual_information")
    assert cell.protocol["rows"] == {"fit": 100, "validation": 40, "held_out": 60}
    status, sentence = refused([store, *quick, "--steps", "61"], capsys)
    assert status == 1 and "another protocol (steps: 60 there, 61 now)" in sentence


def test_a_critic_that_diverges_is_recorded_and_tried_again(tmp_path, capsys, monkeypatch):
    store = write_store(tmp_path / "run")
    honest = estimate_mi.information.estimate_pairs

    def broken(*arguments):
        for pair, estimate in honest(*arguments):
            nan = estimate_mi.information.Estimate(np.nan, None, np.nan, (np.nan,), (0,), estimate.ceiling)
            yield pair, nan if pair == (0, 1) else estimate

    monkeypatch.setattr(estimate_mi.information, "estimate_pairs", broken)
    status, sentence = refused([store, *FAST], capsys)
    assert status == 1 and "a critic diverged: pass a smaller --learning-rate" in sentence
    summary = json.loads((tmp_path / "run" / "mutual_information" / "summary_encoder.json").read_text())
    assert summary["failed"] == [[0.0, 0.5]] and summary["nats"][0][1] is None  # missing, never counted as 0
    monkeypatch.undo()
    torch.set_num_threads(1)
    assert estimate_mi.main([str(store), *FAST]) == 0
    assert "1 to do" in capsys.readouterr().out


def test_sentences(tmp_path, capsys):
    store = write_store(tmp_path / "run")
    assert refused([tmp_path / "run", *FAST], capsys) == (
        2,
        f"error: {tmp_path}/run is no store: expected RUN/trajectories/SOURCE; its stores: encoder\n",
    )
    status, sentence = refused([tmp_path / "none" / "trajectories" / "encoder"], capsys)
    assert status == 1 and "no trajectories in" in sentence and "representations.py" in sentence
    status, sentence = refused([store, *FAST, "--granularity", "5"], capsys)
    assert status == 1 and "time 0.2 is not stored" in sentence and "stored: 0, 0.5, 1" in sentence
    clean = write_store(tmp_path / "clean", times=[0.0])
    status, sentence = refused([clean, *FAST], capsys)
    assert status == 1 and "holds one time alone, and mutual information is that of two" in sentence
    status, sentence = refused([store, "--times", "0.5"], capsys)
    assert status == 1 and "needs at least two times" in sentence
    wrong = {"--steps": ("0", "expected at least 1"), "--batch": ("1", "at least 2"), "--learning-rate": ("0", "above 0"),
             "--fit-on": ("all", "accepted: test, train"), "--step": ("3", "nearest: --steps")}  # fmt: skip
    for option, (value, text) in wrong.items():
        status, sentence = refused([store, option, value], capsys)
        assert status == 2 and text in sentence and sentence.count("\n") == 1
    status, sentence = refused([store, "--seeds", "0", "0"], capsys)
    assert status == 2 and "expected each seed once" in sentence
    assert refused([store, "--known", "2", "2"], capsys) == (2, "error: --known 2 2: expected each number once\n")
    assert refused([store, "--known", "1", "-1"], capsys) == (2, "error: --known -1: expected at least 0\n")
    narrow = trajectories.Writer(
        tmp_path / "a" / "trajectories" / "b" / "train", [0.0, 1.0], np.zeros((9, 1)), {"label": 2}, 2
    )
    wide = trajectories.Writer(
        tmp_path / "a" / "trajectories" / "b" / "test", [0.0, 1.0], np.zeros((9, 1)), {"label": 2}, 3
    )
    for writer, dimension in ((narrow, 2), (wide, 3)):
        for time in (0.0, 1.0):
            writer.write(time, np.ones((9, dimension), np.float32))
    status, sentence = refused([tmp_path / "a" / "trajectories" / "b", "--times", "0", "1"], capsys)
    assert status == 1 and "holds codes of 2 in train and 3 in test, expected one number of features" in sentence


def test_help_is_true(capsys):
    with pytest.raises(SystemExit) as stop:
        experiment.launch(estimate_mi.main, ["--help"])
    shown = capsys.readouterr().out
    assert stop.value.code == 0 and "--fit-on" in shown and "default: 3900" in shown


@pytest.mark.parametrize("preset", ["embedded", "FashionMNIST", "smoke"])
def test_presets_are_accepted(preset):
    args = estimate_mi.parser().parse_args(["STORE", "--config", f"configs/study.py:{preset}"])
    assert estimate_mi.settings_of(args).steps == args.steps < 3900
