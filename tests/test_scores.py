"""Neural against closed-form scores: exact where the network is the Gaussian, and the commands around it."""

import json
import shutil

import numpy as np
import pytest
import torch
from linear_world import SHAPE, make_data, make_run

from diffusion_model import checkpoint, data, experiment, figures
from diffusion_model.moments import of_images
from diffusion_model.samplers import edm_levels, heun
from linear_structure import compare_scores, get_parameters, plot_scores
from linear_structure.gaussian import Gaussian, closed_forms
from linear_structure.measures import Comparison, Directions

BASE = {"mean", "isotropic", "gaussian"}


def run(main, *argv: object) -> int:
    """Exit status of a command."""
    with pytest.raises(SystemExit) as stop:
        experiment.launch(main, [str(entry) for entry in argv])
    return stop.value.code


def forms_of(split: data.Split) -> dict[str, Gaussian]:
    """The closed forms of a split in [-1, 1]."""
    return closed_forms(Gaussian.fit(of_images(split)).mapped(data.scaling("unit", split), SHAPE))


def measured(split: data.Split, denoise, level: float, rows=range(20), batch: int = 7) -> compare_scores.Collected:
    """What the command measures of a denoiser at one level."""
    forms, scaling = forms_of(split), data.scaling("unit", split)
    collected = compare_scores.Collected(Directions(forms["gaussian"]), scaling)
    batches = compare_scores.noised(forms, split, rows, scaling, level, batch)
    compare_scores.compare(denoise, batches, level, collected)
    return collected


def test_the_gaussian_explains_itself_and_more_than_the_isotropic(tmp_path) -> None:
    split = make_data(tmp_path / "data")
    forms, errors = forms_of(split), []
    for level in (0.1, 1.0, 10.0):
        collected = measured(split, forms["gaussian"].denoise, level)
        value = collected.comparison.results()
        assert value["gaussian"]["relative_error"] == {"mean": 0, "low": 0, "high": 0}
        assert value["gaussian"]["explained_variance"]["mean"] == value["gaussian"]["cosine"]["mean"] == 1
        assert value["gaussian"]["centred"]["mean"] == 1
        assert value["mean"]["centred"]["mean"] == pytest.approx(0, abs=1e-5)
        error = {name: entry["relative_error"]["mean"] for name, entry in value.items()}
        assert 0 < error["isotropic"] < error["mean"]
        errors.append(error["isotropic"])
        held, lambdas = collected.arrays("gaussian"), forms["gaussian"].lambdas.numpy()
        assert held["gain"] == pytest.approx(lambdas / (lambdas + level**2), abs=2e-4)
        assert np.array_equal(held["neural"], held["denoised"])
        assert held["noised"].shape == (6, *SHAPE)
        assert set(collected.arrays("mean")) == {"denoised"}
    assert errors == sorted(errors, reverse=True)


def test_neither_order_nor_batches_of_images_matter(tmp_path) -> None:
    split = make_data(tmp_path / "data")
    rows = list(range(30))
    found = []
    for chosen, batch in ((rows, 30), (rows[::-1], 7)):
        value = measured(split, lambda x, level: 0.3 * x, 0.5, chosen, batch).comparison.results()
        found.append([number for name in BASE for number in value[name]["relative_error"].values()])
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_states_of_a_trajectory_are_heuns_and_no_evaluation_is_made_twice(tmp_path) -> None:
    forms = forms_of(make_data(tmp_path / "data"))
    asked, grid = [], edm_levels(6, 0.01, 20.0)

    def neural(x: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        asked.append(len(x))
        return forms["isotropic"].denoise(x, level)

    seen = list(compare_scores.trajectory(neural, forms, grid, range(5), SHAPE, batch=3))
    assert sum(asked) == 5 * 11  # 2N - 1 evaluations a seed
    assert [level for level, *_ in seen[:6]] == [compare_scores.rounded(level) for level in grid.tolist()[:-1]]
    start = 20.0 * experiment.sample_noise("start", range(5), SHAPE)
    expected = list(heun(forms["isotropic"].denoise, start, grid))
    for place in range(6):
        states = torch.cat([seen[place][1], seen[place + 6][1]])
        assert torch.allclose(states, expected[place], atol=1e-5)
    comparison = Comparison(forms["gaussian"].mu)
    for _, x, denoised, found in seen:
        comparison.update(x, denoised, found)
    assert comparison.results()["isotropic"]["relative_error"]["mean"] == 0


def test_commands_resume_and_take_further_forms(tmp_path, capsys) -> None:
    split = make_data(tmp_path / "data")
    folder, params = make_run(tmp_path / "run", split), tmp_path / "params"
    classes, scores = tmp_path / "classes", folder / "scores"
    assert run(get_parameters.main, "dots", "gaussian", params) == 0
    assert run(get_parameters.main, "dots", "gaussian", classes, "--class-conditional", "place") == 0
    options = ["--n", 16, "--levels", 3]
    assert run(compare_scores.main, folder, params, *options) == 0
    found = {path: path.read_bytes() for path in scores.rglob("level=*.json")}
    assert len(found) == 3 * len(BASE)
    shutil.rmtree(next(iter(found)).with_suffix(""))  # half a cell is made again, to the same numbers
    assert run(compare_scores.main, folder, params, *options) == 0
    further = ["--also", classes, "--delta", "--diagonal"]
    assert run(compare_scores.main, folder, params, *options, *further) == 0
    assert "3 levels x 16 states x 192 training images of 192 numbers" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in found} == found
    names = {path.name for path in (scores / "points=noised/step=1").iterdir()}
    more = {"classes-4", "classes-4-labelled", "delta", "diagonal-pixel", "diagonal-fourier"}
    assert names == {f"form={name}" for name in BASE | more}
    for changed in (["--n", 17, "--levels", 3], ["--n", 17, "--at-levels", 0.7]):
        assert run(compare_scores.main, folder, params, *changed) == 1
        assert "made under another protocol (n: 16 there, 17 now)" in capsys.readouterr().err

    assert run(plot_scores.main, folder) == 0
    assert "the Gaussian explains 99%" in capsys.readouterr().out.splitlines()[-1]
    summary = json.loads((scores / "summary.json").read_text())
    assert summary["levels"] == sorted(summary["levels"])
    assert summary["levels"][0] == 0.02
    assert set(summary["relative_error"]) == set(summary["cosine"]) == BASE | more
    assert summary["protocol"]["split"] == "test"
    assert "checkpoints" in summary and not summary["checkpoints"]
    table = figures.read_table(scores / "scores.csv")
    assert [float(entry) for entry in table["relative_error_gaussian"]] == summary["relative_error"]["gaussian"]["mean"]
    gains = figures.read_table(scores / "gains.csv")
    assert set(map(float, gains["level"])) == set(summary["levels"])
    assert (scores / "denoised.png").is_file() and not (scores / "checkpoints.png").exists()


def test_trajectories_and_checkpoints_have_figures_of_their_own(tmp_path, capsys) -> None:
    split = make_data(tmp_path / "data")
    folder, params = make_run(tmp_path / "run", split), tmp_path / "params"
    assert run(get_parameters.main, "dots", "gaussian", params) == 0
    groups, _ = checkpoint.read(folder, 1, ["model", "average"])
    for step, scale in ((3, 1.1), (8, 0.9)):
        changed = {name: {key: scale * value for key, value in group.items()} for name, group in groups.items()}
        checkpoint.save(folder, step, changed, keep=9)
    options = ["--n", 8, "--at-levels", 5, 0.3]
    assert run(compare_scores.main, folder, params, *options, "--steps", "all") == 0
    assert run(compare_scores.main, folder, params, "--n", 8, "--points", "trajectory", "--solver-steps", 4) == 0
    capsys.readouterr()
    assert run(plot_scores.main, folder) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("level 0.3: the Gaussian score is closest to the neural one after")
    scores = folder / "scores"
    summary = json.loads((scores / "summary.json").read_text())
    batch = checkpoint.read_run(folder)["config"]["training.batch"]
    gaussian = [line for line in summary["checkpoints"] if line["form"] == "gaussian"]
    assert [line["level"] for line in gaussian] == [0.3, 5.0]
    assert gaussian[0]["images"] == [batch, 3 * batch, 8 * batch]
    assert gaussian[0]["best"]["relative_error"] == min(gaussian[0]["relative_error"]["mean"])
    assert summary["step"] == summary["trajectory"]["step"] == 8
    assert len(summary["trajectory"]["levels"]) == 4
    table = figures.read_table(scores / "checkpoints.csv")
    assert len(table["images"]) == 3 * 2 * len(BASE)
    assert all((scores / f"{name}.png").is_file() for name in ("trajectory", "checkpoints", "directions"))
    # a checkpoint alone, from its own weights: the cells of --steps all are kept
    before = {path: path.read_bytes() for path in scores.rglob("level=*.json")}
    assert run(compare_scores.main, folder, params, *options, "--steps", 3) == 0
    assert {path: path.read_bytes() for path in scores.rglob("level=*.json")} == before
    noised = plot_scores.read(scores, "noised", "")
    assert plot_scores.choose_step(noised, 3, scores) == plot_scores.summarise(noised, 3)["step"] == 3


def test_a_network_that_fails_is_written_and_tried_again(tmp_path, capsys, monkeypatch) -> None:
    split = make_data(tmp_path / "data")
    folder, params = make_run(tmp_path / "run", split), tmp_path / "params"
    assert run(get_parameters.main, "dots", "gaussian", params) == 0
    for points in ("noised", "trajectory"):
        options = ["--n", 4, *(["--at-levels", 0.5] if points == "noised" else ["--solver-steps", 2])]
        options += ["--points", points]
        with monkeypatch.context() as broken:
            broken.setattr("diffusion_model.score_model.ScoreModel.denoise", lambda self, x, level: x * float("nan"))
            assert run(compare_scores.main, folder, params, *options) == 1
            assert "the network's denoiser gave NaN or infinite values" in capsys.readouterr().out
        assert run(compare_scores.main, folder, params, *options) == 0


def test_mistakes_are_sentences(tmp_path, capsys) -> None:
    split = make_data(tmp_path / "data")
    folder, params = make_run(tmp_path / "run", split), tmp_path / "params"
    drl = make_run(tmp_path / "drl", split, "configs/drl.py:smoke")
    vae = make_run(tmp_path / "vae", split, "configs/drl.py:smoke", "vae-l2")
    published = checkpoint.publish(folder, tmp_path / "published")
    assert run(get_parameters.main, "dots", "gaussian", params) == 0
    cases = [
        (compare_scores.main, (folder, params, "--n", 1000), 1, "dots/test has 48 images"),
        (compare_scores.main, (folder, params, "--levels", 1), 2, "--levels 1: expected at least 2"),
        (compare_scores.main, (folder, params, "--level-min", 100), 2, "expected 0 < lowest < highest"),
        (compare_scores.main, (folder, params, "--at-levels", 0), 2, "--at-levels 0: expected levels above 0"),
        (compare_scores.main, (folder, params, "--at-levels", 1, "--points", "trajectory"), 2, "give --solver-steps"),
        (compare_scores.main, (folder, params, "--steps", 7), 1, "--steps 7: "),
        (compare_scores.main, (folder, params, "--steps", "new"), 2, "expected all, or numbers of checkpoints"),
        (compare_scores.main, (published, params, "--steps", "all"), 1, "has no checkpoints; leave it out"),
        (compare_scores.main, (folder, params, "--also", tmp_path / "none"), 1, "get_parameters.py dots gaussian"),
        (compare_scores.main, (folder, tmp_path / "none"), 1, "get_parameters.py dots gaussian"),
        (compare_scores.main, (drl, params), 1, "no unconditional score"),
        (compare_scores.main, (vae, params), 1, "vae-l2: it reconstructs images and has no score to"),
        (compare_scores.main, (folder, params, "--split", "tst"), 2, "nearest: test"),
        (plot_scores.main, (folder,), 1, "run `python linear_structure/compare_scores.py"),
        (plot_scores.main, (folder, "--pictures", 0), 2, "--pictures 0: expected at least 1"),
    ]
    for main, argv, status, text in cases:
        assert run(main, *argv) == status
        assert text in capsys.readouterr().err
    assert run(compare_scores.main, folder, params, "--n", 4, "--at-levels", 1) == 0
    assert run(plot_scores.main, folder, "--step", 2) == 1
    assert "--step 2: " in capsys.readouterr().err
