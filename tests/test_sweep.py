"""The skipping sweep: oracles with the Gaussian's own denoiser, paired intervals, resuming, and the figures' numbers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from linear_world import SHAPE, make_data, make_run

from diffusion_model import experiment, features, figures, results, train_features
from diffusion_model.data import Scaling
from diffusion_model.fid import symmetric_root
from diffusion_model.moments import Moments
from diffusion_model.samplers import edm_levels
from linear_structure import get_parameters, intervals, process_experiments_with_skips, sweep_skips
from linear_structure.gaussian import Gaussian, closed_forms

LEVELS = edm_levels(18)


def run(main, *argv: object) -> int:
    """Exit status of a command."""
    with pytest.raises(SystemExit) as stop:
        experiment.launch(main, [str(entry) for entry in argv])
    return stop.value.code


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    """Normal numbers in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def example() -> Gaussian:
    """A full-rank Gaussian of images of 8 x 8 in [-1, 1]."""
    dimension = int(np.prod(SHAPE))
    U = torch.linalg.qr(normal(dimension, dimension))[0]
    return Gaussian(0.1 * normal(dimension, seed=1), U, torch.linspace(1.0, 0.001, dimension, dtype=torch.float64))


def drawn(jump: Gaussian, skip: int, batch: int = 8, denoise=None) -> torch.Tensor:
    """Eight samples of the Gaussian's own denoiser after a jump."""
    made = sweep_skips.draw(denoise or example().denoise, jump, "heun", LEVELS, skip, range(8), SHAPE, batch)
    return torch.cat(list(made))


def test_a_gaussian_denoiser_gains_by_the_gaussian_jump_and_loses_by_the_isotropic() -> None:
    forms = closed_forms(example())
    start = LEVELS[0].float() * experiment.sample_noise("start", range(8), SHAPE)
    exact = forms["gaussian"].teleport(start, LEVELS[0], 0.0)
    errors = {name: float((drawn(form, 12) - exact).norm() / exact.norm()) for name, form in forms.items()}
    plain = float((drawn(None, 0) - exact).norm() / exact.norm())
    assert errors["gaussian"] < plain < 0.1 < errors["isotropic"] < errors["mean"]


def test_samples_belong_to_seeds_whatever_the_batch() -> None:
    jump = example()
    assert torch.allclose(drawn(jump, 3, batch=1), drawn(jump, 3, batch=7), atol=1e-3)


def test_the_jackknife_covers_and_pairing_sharpens() -> None:
    rows = normal(400, 6).float().numpy()
    moments = Moments(6).update(normal(5000, 6, seed=2) + 0.3)
    reference = features.Reference(moments, symmetric_root(moments.covariance))
    first = intervals.distances(rows, reference, 20)
    assert first.low < first.value < first.high
    assert first.low < 6 * 0.3**2 < first.high
    second = intervals.distances(rows * 1.02, reference, 20)
    change = intervals.increase(second, first)
    assert change.high - change.low < 0.2 * (first.high - first.low) / first.value
    assert intervals.increase(first, first).as_dict() == {"value": 0, "low": 0, "high": 0}
    with pytest.raises(ValueError, match="300 blocks of 400 samples: expected from 2 to 200"):
        intervals.distances(rows, reference, 300)


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    values = normal(50).numpy()
    without = np.array([np.delete(values, index).mean() for index in range(50)])
    found = intervals.jackknife(values.mean(), without)
    assert (found.high - found.value) / (values.std(ddof=1) / 50**0.5) == pytest.approx(2.0096, rel=1e-3)


def test_plan_and_its_refusals() -> None:
    assert sweep_skips.plan(["isotropic", "gaussian"], [4, 0, 2], [2], 18) == [
        ("none", 0), ("gaussian", 2), ("gaussian", 4), ("isotropic", 2),
    ]  # fmt: skip
    with pytest.raises(experiment.UsageError, match="--skips 18: a solver of 18 steps can skip from 0 to 17"):
        sweep_skips.plan(["gaussian"], [18], [], 18)


@pytest.mark.parametrize("name", ["", "../other", "/elsewhere", "a/b", ".."])
@pytest.mark.parametrize("command", [sweep_skips, process_experiments_with_skips])
def test_a_name_that_leads_elsewhere_is_refused(command, name, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        experiment.launch(command.main, ["no-run", "--name", name])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.count("\n") == 1
    assert f"--name {name!r}: expected a folder's name" in said


def test_a_failing_cell_is_recorded_and_the_others_are_made(tmp_path) -> None:
    moments = Moments(4).update(normal(40, 4))
    protocol = {"shape": list(SHAPE), "sampler": "heun", "steps": 18}
    reference = features.Reference(moments, symmetric_root(moments.covariance))
    sweep = sweep_skips.Sweep(tmp_path, protocol, LEVELS, range(6), 3, reference)
    forms = closed_forms(example())
    broken = Gaussian(forms["mean"].mu * float("nan"), forms["mean"].U, forms["mean"].lambdas)

    def extractor(images: torch.Tensor) -> torch.Tensor:
        return images.float().flatten(1)[:, :4]

    cells = [("none", 0), ("gaussian", 4), ("mean", 4)]
    scaling = Scaling((1 / 127.5,) * 3, (-1.0,) * 3)
    failed = sweep.run(cells, forms["gaussian"].denoise, forms | {"mean": broken}, scaling, extractor)
    assert failed == ["kind mean, skip 4: the solver left the finite numbers for seeds from 0"]
    assert results.read_cell(tmp_path / "kind=mean" / "skip=4.json").failed
    value = results.read_cell(tmp_path / "kind=gaussian" / "skip=4.json").value
    assert value["evaluations"] == 27
    assert 0 < value["drift"] < 0.5
    assert sweep.run(cells, forms["gaussian"].denoise, forms, scaling, extractor) == []
    assert not results.read_cell(tmp_path / "kind=mean" / "skip=4.json").failed


@pytest.fixture
def world(tmp_path) -> tuple[Path, Path]:
    """A run and statistics of its data, with a classifier."""
    split = make_data(tmp_path / "data")
    assert run(train_features.main, "dots", "--images", 640, "--batch", 32, "--width", 4) == 0
    assert run(get_parameters.main, "dots", "gaussian", tmp_path / "params") == 0
    return make_run(tmp_path / "run", split), tmp_path / "params"


def test_sweep_resume_and_figures(world, capsys) -> None:
    folder, params = world
    options = ["--features", "classifier", "--n", 40, "--steps", 4, "--batch", 40, "--other-skips", 1]
    assert run(sweep_skips.main, folder, params, *options, "--skips", 0, 1) == 0
    sweep = folder / "sweeps" / "default"
    first = {path: path.read_bytes() for path in sweep.rglob("*.json")}
    assert run(sweep_skips.main, folder, params, *options, "--skips", 0, 1, 3) == 0
    assert "5 cells finished" in capsys.readouterr().out
    assert all(path.read_bytes() == content for path, content in first.items())
    assert run(sweep_skips.main, folder, params, *options[:2], "--n", 41, *options[4:], "--skips", 0) == 1
    assert "made under another protocol (n: 40 there, 41 now)" in capsys.readouterr().err

    assert run(process_experiments_with_skips.main, folder, "--blocks", 8) == 0
    summary = json.loads((sweep / "summary.json").read_text())
    assert [(cell["jump"], cell["skip"], cell["evaluations"]) for cell in summary["cells"]] == [
        ("none", 0, 7), ("gaussian", 1, 5), ("gaussian", 3, 1), ("isotropic", 1, 5),
    ]  # fmt: skip
    assert summary["largest"]["skip"] == 3
    assert summary["distance"] == "Frechet distance (classifier features)"
    assert "FID" not in (sweep / "summary.json").read_text()
    assert summary["floor"]["images"].startswith("40 of 48 test images")
    for cell in summary["cells"]:
        assert cell["low"] <= cell["distance"] <= cell["high"]
    table = figures.read_table(sweep / "distance.csv")
    assert table["jump"] == ["none", "gaussian", "gaussian", "isotropic", "real"]
    assert (sweep / "samples.png").is_file()
    assert run(process_experiments_with_skips.main, folder, "--blocks", 8, "--margin", 1e9) == 0
    assert json.loads((sweep / "summary.json").read_text())["recommended"]["skip"] == 3


def test_mistakes_are_sentences(world, tmp_path, capsys) -> None:
    folder, params = world
    other = make_data(tmp_path / "data", "other", seed=1)
    assert run(get_parameters.main, "other", "gaussian", tmp_path / "other") == 0
    drl = make_run(tmp_path / "drl", other, "configs/drl.py:smoke")
    classifier = ("--features", "classifier")
    cases = [
        (sweep_skips.main, (tmp_path / "none", params), 1, "no run in"),
        (sweep_skips.main, (folder, tmp_path / "none"), 1, "get_parameters.py dots gaussian"),
        (sweep_skips.main, (folder, tmp_path / "other"), 1, "has statistics of other, the run was trained on dots"),
        (sweep_skips.main, (drl, tmp_path / "other"), 1, "no unconditional score"),
        (sweep_skips.main, (folder, params, "--skips", 18), 2, "can skip from 0 to 17"),
        (sweep_skips.main, (folder, params, "--n", 1), 2, "--n 1: expected at least 4"),
        (sweep_skips.main, (folder, params, "--kinds", "gausian"), 2, "nearest: gaussian"),
        (sweep_skips.main, (folder, params, *classifier, "--weights", "x"), 1, "--weights is for Inception"),
        (sweep_skips.main, (folder, params, *classifier, "--level-max", 0.001), 1, "expected 0 < minimum < maximum"),
        (process_experiments_with_skips.main, (folder,), 1, "run `python linear_structure/sweep_skips.py"),
        (process_experiments_with_skips.main, (folder, "--margin", -1), 2, "--margin -1.0: expected at least 0"),
    ]
    for main, argv, status, text in cases:
        assert run(main, *argv) == status
        assert text in capsys.readouterr().err
