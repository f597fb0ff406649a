"""Neural against closed-form scores: exact where the network is the Gaussian, and the commands around it."""

import json

import numpy as np
import pytest
import torch
from linear_world import SHAPE, make_data, make_run

from diffusion_model import data, experiment, figures
from linear_structure import compare_scores, get_parameters, plot_scores
from linear_structure.gaussian import Gaussian, closed_forms


def run(main, *argv: object) -> int:
    """Exit status of a command."""
    with pytest.raises(SystemExit) as stop:
        experiment.launch(main, [str(entry) for entry in argv])
    return stop.value.code


def forms_of(split: data.Split) -> dict[str, Gaussian]:
    """The closed forms of a split in [-1, 1]."""
    from diffusion_model.moments import of_images

    return closed_forms(Gaussian.fit(of_images(split)).mapped(data.scaling("unit", split), SHAPE))


def test_the_gaussian_explains_itself_and_more_than_the_isotropic(tmp_path) -> None:
    split = make_data(tmp_path / "data")
    forms, scaling = forms_of(split), data.scaling("unit", split)
    errors = []
    for level in (0.1, 1.0, 10.0):
        value, pictures = compare_scores.compare(
            forms["gaussian"].denoise, forms, split.images, range(20), scaling, level, batch=7
        )
        assert value["relative_error"]["gaussian"] == {"mean": 0, "low": 0, "high": 0}
        assert value["explained_variance"]["gaussian"]["mean"] == 1
        assert value["centred"]["gaussian"] == 1
        assert value["centred"]["mean"] == pytest.approx(0, abs=1e-5)
        error = {name: entry["mean"] for name, entry in value["relative_error"].items()}
        assert 0 < error["isotropic"] < error["mean"]
        errors.append(error["isotropic"])
        assert pictures["noised"].shape == (6, *SHAPE)
        assert np.array_equal(pictures["clean"], split.images[:6])
    assert errors == sorted(errors, reverse=True)


def test_measures_equal_their_definitions(tmp_path) -> None:
    split = make_data(tmp_path / "data")
    forms, scaling, level = forms_of(split), data.scaling("unit", split), 0.5

    def neural(x: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        return 0.3 * x

    value, _ = compare_scores.compare(neural, forms, split.images, [5, 9, 2], scaling, level)
    x0 = scaling.to_model(torch.from_numpy(split.images[[5, 9, 2]]))
    x = x0 + level * experiment.sample_noise("scores", [5, 9, 2], SHAPE)
    first, second = (0.3 * x - x) / level**2, forms["gaussian"].score(x, level)
    error = ((first - second).flatten(1).norm(dim=1) / first.flatten(1).norm(dim=1)).square()
    assert value["relative_error"]["gaussian"]["mean"] == pytest.approx(float(error.mean()), rel=1e-4)
    reach = 1.96 * float(error.std()) / 3**0.5
    assert value["relative_error"]["gaussian"]["high"] == pytest.approx(float(error.mean()) + reach, rel=1e-3)
    with pytest.raises(FloatingPointError, match="NaN"):
        compare_scores.compare(lambda x, level: x * float("nan"), forms, split.images, [1, 2], scaling, level)


def test_commands_and_resume(tmp_path, capsys) -> None:
    split = make_data(tmp_path / "data")
    folder, params = make_run(tmp_path / "run", split), tmp_path / "params"
    assert run(get_parameters.main, "dots", "gaussian", params) == 0
    options = ["--n", 16, "--levels", 4]
    assert run(compare_scores.main, folder, params, *options) == 0
    scores = folder / "scores"
    cells = sorted(scores.glob("level=*.json"))
    assert len(cells) == 4
    before = cells[1].read_bytes()
    cells[0].unlink()
    assert run(compare_scores.main, folder, params, *options) == 0
    assert cells[0].is_file()
    assert cells[1].read_bytes() == before
    assert run(compare_scores.main, folder, params, "--n", 17, "--levels", 4) == 1
    assert "made under another protocol (n: 16 there, 17 now)" in capsys.readouterr().err

    assert run(plot_scores.main, folder) == 0
    summary = json.loads((scores / "summary.json").read_text())
    assert summary["levels"] == sorted(summary["levels"])
    assert summary["levels"][0] == 0.02
    assert set(summary["relative_error"]) == {"mean", "isotropic", "gaussian"}
    assert summary["protocol"]["split"] == "test"
    table = figures.read_table(scores / "scores.csv")
    assert [float(entry) for entry in table["relative_error_gaussian"]] == summary["relative_error"]["gaussian"]["mean"]
    assert (scores / "denoised.png").is_file()


def test_mistakes_are_sentences(tmp_path, capsys) -> None:
    split = make_data(tmp_path / "data")
    folder, params = make_run(tmp_path / "run", split), tmp_path / "params"
    drl = make_run(tmp_path / "drl", split, "configs/drl.py:smoke")
    vae = make_run(tmp_path / "vae", split, "configs/drl.py:smoke", "vae-l2")
    assert run(get_parameters.main, "dots", "gaussian", params) == 0
    cases = [
        (compare_scores.main, (folder, params, "--n", 1000), 1, "dots/test has 48 images"),
        (compare_scores.main, (folder, params, "--levels", 1), 2, "--levels 1: expected at least 2"),
        (compare_scores.main, (folder, params, "--level-min", 100), 2, "expected 0 < lowest < highest"),
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
