"""The comparison of processes: its arithmetic on known errors, and whole runs against each other."""

import math

import numpy as np
import pytest
import torch

from benchmarks import compare_processes
from diffusion_model import arrays, checkpoint, data, experiment, training

LEVELS = 4


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folder with data of a dozen images, and untrained runs ve-0, ve-1 and vp-0 whose weights were drawn alike."""
    folder = tmp_path_factory.mktemp("processes")
    pixels = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)
    np.savez(folder / "dozen.npz", images=pixels)
    data.prepare("dozen", folder / "data", folder / "dozen.npz")
    make(folder / "ve-0", folder)
    make(folder / "ve-1", folder, seed=1)
    make(folder / "vp-0", folder, **{"sde.name": "vp", "model.precondition": "sde", "model.fourier_scale": 0.02})
    return folder


def make(run, folder, **changes):
    """A run at step 0 of a very small network."""
    config = experiment.flatten(experiment.load_config("configs/edm.py:smoke"))
    config |= {
        "data.name": "dozen",
        "model.precondition": "ve",
        "model.multipliers": [1],
        "model.attention": [],
    } | changes
    split = data.open_split("dozen", "train", folder / "data")
    record = {
        "config": config, "scaling": data.scaling("unit", split).as_dict(), "shape": list(split.shape), "std": 0.58,
        "data": {"name": split.name, "hash": split.hash},
    }  # fmt: skip
    trainer = training.Trainer(run, checkpoint.write_run(run, record), split, torch.device("cpu"))
    trainer.save()
    return run


def compare(runs, names, *options):
    return compare_processes.main(
        [*(str(runs / name) for name in names), "--data", str(runs / "data"), "--out", str(runs / "out"),
         "--levels", str(LEVELS), "--device", "cpu", *options]
    )  # fmt: skip


def status(runs, capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        experiment.launch(lambda argv: compare(runs, *arguments))
    return stop.value.code, capsys.readouterr().err


def test_gap_spread_and_probability_of_known_errors():
    """Errors e^(+-s) around e^0 and e^gap: the gap is e^gap - 1, the spread of two seeds sqrt 2 s; alike, p is 1."""
    up, down = math.exp(0.1), math.exp(-0.1)
    errors = {"a": np.array([[up], [down]]), "b": np.exp(0.5) * np.array([[up], [down]])}
    found = compare_processes.compare(errors)
    assert found["gap"][0] == pytest.approx(math.expm1(0.5)) and found["spread"][0] == pytest.approx(0.1 * math.sqrt(2))
    assert found["means"]["b"][0] == pytest.approx(math.exp(0.5))
    assert compare_processes.compare({"a": errors["a"], "b": errors["a"]})["p"][0] == pytest.approx(1)


def test_with_two_processes_tukeys_test_is_students():
    from scipy.stats import ttest_ind

    generator = np.random.default_rng(0)
    errors = {name: np.exp(generator.normal(size=(4, 3))) for name in "ab"}
    expected = ttest_ind(np.log(errors["a"]), np.log(errors["b"])).pvalue
    assert np.allclose(compare_processes.compare(errors)["p"], expected, rtol=1e-6)


def test_without_a_second_seed_there_is_no_spread():
    found = compare_processes.compare({"a": np.ones((1, 2)), "b": 2 * np.ones((1, 2))})
    assert np.allclose(found["gap"], 1) and np.isnan(found["spread"]).all() and np.isnan(found["p"]).all()


def test_a_fresh_network_of_each_process_leaves_the_noise(runs, capsys):
    """The last layer starts at 1e-10, so denoise is the identity, and the error is level^2 whatever the process."""
    assert compare(runs, ["ve-0", "ve-1", "vp-0"]) == 0
    found = arrays.read_json(runs / "out" / "processes.json")
    assert set(found["errors"]) == {"ve (ve)", "vp (sde)"} and len(found["errors"]["ve (ve)"]) == 2
    for rows in found["errors"].values():
        assert np.allclose(rows, np.square(found["levels"]), rtol=0.1)
    assert np.allclose(found["gap"], 0, atol=1e-3)
    assert (runs / "out" / "processes.png").is_file() and (runs / "out" / "processes.csv").is_file()
    assert "largest gap" in capsys.readouterr().out


def test_the_noise_belongs_to_the_image_whatever_the_batch(runs):
    model = checkpoint.load_score_model(runs / "ve-0")
    images = data.open_split("dozen", "test", runs / "data").images
    one, many = (compare_processes.denoising_error(model, images, 0.7, batch) for batch in (5, 100))
    assert one == pytest.approx(many, rel=1e-6)


def test_runs_that_cannot_be_compared_are_refused_in_a_sentence(runs, capsys):
    code, error = status(runs, capsys, ["ve-0", "ve-1"])
    assert code == 1 and "all runs are ve (ve): give runs of at least two processes" in error
    make(runs / "other", runs, **{"objective.weight": "dsm", "sde.name": "vp"})
    code, error = status(runs, capsys, ["ve-0", "other"])
    assert code == 1 and "were not trained alike (objective.weight: 'edm' and 'dsm')" in error
    make(runs / "encoded", runs, **{"model.mode": "reg-drl", "encoder.widen": 0.0625})
    code, error = status(runs, capsys, ["ve-0", "encoded"])
    assert code == 1 and "has model.mode reg-drl: expected runs of mode none" in error
    code, error = status(runs, capsys, ["ve-0", "none"])
    assert code == 1 and "no run in" in error


def test_wrong_values_and_help(runs, capsys):
    code, error = status(runs, capsys, ["ve-0", "vp-0"], "--level-min", "30")
    assert code == 2 and "expected 0 < lowest < highest" in error
    code, error = status(runs, capsys, ["ve-0", "vp-0"], "--n", "0")
    assert code == 2 and "--n 0: expected at least 1" in error
    with pytest.raises(SystemExit) as stop:
        compare_processes.main(["--help"])
    assert stop.value.code == 0 and "(default: 12)" in capsys.readouterr().out
