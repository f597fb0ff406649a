"""Flows from the same noise: measures by definition, a network that is the Gaussian, an order, and what is kept."""

import itertools
import json

import numpy as np
import pytest
import torch
from linear_world import SHAPE, run

from diffusion_model import arrays, features, figures
from diffusion_model.samplers import edm_levels
from diffusion_model.score_model import ScoreModel
from linear_structure import compare_flows, get_parameters, inputs
from linear_structure.compare_flows import Flows, between, spread, squares
from linear_structure.mixture import Mixture


def flows_of(steps: int = 18, batch: int = 64, count: int = 4) -> Flows:
    """Flows by Heun on EDM's grid."""
    return Flows(edm_levels(steps), "heun", range(count), SHAPE, batch, torch.device("cpu"))


def means() -> features.Extractor:
    """A feature space: the mean of each quarter of each channel."""
    pool = torch.nn.Sequential(torch.nn.AvgPool2d(4), torch.nn.Flatten())
    return features.Extractor("classifier", "distance", "kernel", 12, "0", "none", pool, torch.device("cpu"))


def test_measures_equal_their_definitions() -> None:
    random = np.random.default_rng(0)
    states, others = random.normal(size=(2, 5, 3, *SHAPE)).astype(np.float32)
    apart = np.square(states.astype(np.float64) - others).reshape(5, 3, -1).mean(2)
    assert np.allclose(squares(states, others), apart)
    pairs = list(itertools.permutations(range(5), 2))
    wanted = [np.mean([np.square(states[i, k] - states[j, k]).mean() for i, j in pairs]) for k in range(3)]
    assert np.allclose(between(states), wanted)
    found = spread(np.array([1.0, 2.0, 3.0, 6.0]))
    assert found["mean"] == 3.0
    assert found["deviation"] == pytest.approx(np.std([1, 2, 3, 6], ddof=1))
    assert 1.0 < found["tenth"] < found["ninetieth"] < 6.0


def test_the_solver_on_the_gaussian_comes_to_its_formula_by_order_two(world) -> None:
    gaussian = world[2].forms["gaussian"]
    errors = []
    for steps in (10, 20, 40):
        flows = flows_of(steps)
        solved, exact = flows.solved(gaussian.denoise, "solver"), flows.exact(gaussian, "formula")
        assert np.array_equal(solved[:, 0], exact[:, 0])
        errors.append(float(np.sqrt(squares(solved, exact)[:, -1].mean())))
    ratios = [before / after for before, after in itertools.pairwise(errors)]
    assert all(3 < ratio < 6 for ratio in ratios), ratios


def test_a_flow_belongs_to_its_seed_and_one_component_to_its_gaussian(world) -> None:
    gaussian = world[2].forms["gaussian"]
    whole, parts = flows_of(batch=64).exact(gaussian, ""), flows_of(batch=4).exact(gaussian, "")
    assert np.allclose(whole, parts, atol=1e-5)
    named = compare_flows.Named(Mixture([1.0], [gaussian]), "one component", "black", "")
    assert np.array_equal(flows_of().of(named), whole)
    two = named._replace(form=Mixture([0.4, 0.6], [gaussian, gaussian]))
    solved = flows_of().solved(gaussian.denoise, "")
    assert np.allclose(flows_of().of(two), solved, atol=1e-4 * np.abs(solved).max())


def test_a_network_that_is_the_gaussian_is_as_far_from_it_as_the_solver(world, monkeypatch, capsys) -> None:
    folder, params, given = world
    monkeypatch.setattr(ScoreModel, "denoise", lambda self, x, level: given.forms["gaussian"].denoise(x, level))
    assert compare_flows.main([str(folder), str(params), "--n", "6", "--steps", "30"]) == 0
    place = folder / "flows" / "sampler=heun" / "steps=30"
    summary = json.loads((place / "summary.json").read_text())
    assert set(summary["forms"]) == {"mean", "isotropic", "gaussian"}
    found = summary["forms"]["gaussian"]
    assert found["mse"]["mean"] == pytest.approx(summary["solver"]["mse"]["mean"], rel=1e-3)
    assert found["distance"] == pytest.approx(summary["solver"]["distance"], rel=1e-3, abs=1e-6)
    assert found["share"] < 1e-3 < 0.1 < summary["forms"]["isotropic"]["share"]
    table = figures.read_table(place / "flows.csv")
    assert [float(value) for value in table["distance_gaussian"]] == found["distance"]
    assert float(table["distance_network"][0]) == pytest.approx(80 * 2**0.5, rel=0.1)
    pictures = figures.read_table(place / "pictures.csv")
    assert np.mean([float(value) for value in pictures["mse_gaussian"]]) == pytest.approx(found["mse"]["mean"])
    assert "mean squared error of end samples from the same noise" in capsys.readouterr().out


def test_it_goes_on_where_it_was_takes_further_forms_and_looks_at_features(
    world, tmp_path, monkeypatch, capsys
) -> None:
    folder, params, _ = world
    options = [folder, params, "--n", 6, "--steps", 3]
    assert run(compare_flows.main, *options) == 0
    place = folder / "flows" / "sampler=heun" / "steps=3"
    before = {path: path.read_bytes() for path in place.glob("form=*.json")}
    assert len(before) == 5
    stamps = {path: path.stat().st_mtime_ns for path in before}
    gone = place / "form=gaussian.json"
    gone.unlink()
    assert get_parameters.main(["dots", "mixture", str(tmp_path / "mixture"), "--components", "2"]) == 0
    monkeypatch.setattr(features, "open_extractor", lambda *given: means())
    assert run(compare_flows.main, *options, "--also", tmp_path / "mixture", "--delta", "--features", "classifier") == 0
    assert {path: path.read_bytes() for path in before} == before
    assert [path for path in before if path.stat().st_mtime_ns != stamps[path]] == [gone]
    summary = json.loads((place / "summary.json").read_text())
    assert set(summary["forms"]) == {"mean", "isotropic", "gaussian", "mixture-2", "delta"}
    assert len(list((place / "features=classifier").glob("*.json"))) == 6
    for entry in summary["forms"].values():
        share = entry["classifier"]["mean"] / summary["different_seeds"]["classifier"]
        assert entry["classifier"]["share"] == pytest.approx(share)
    first, second = (
        means()(arrays.read_array(place / f"form={name}" / "images.npy")).double() for name in ("network", "gaussian")
    )
    assert summary["forms"]["gaussian"]["classifier"]["mean"] == pytest.approx(
        float((first - second).norm(dim=1).mean())
    )
    assert summary["different_seeds"]["classifier"] == pytest.approx(float(torch.pdist(first).mean()))
    assert run(compare_flows.main, folder, params, "--n", 7, "--steps", 3) == 1
    assert "made under another protocol (n: 6 there, 7 now)" in capsys.readouterr().err


def test_mistakes_are_sentences_and_a_failed_form_is_told(world, monkeypatch, capsys) -> None:
    folder, params, _ = world
    cases = [
        (("--n", 1), 2, "--n 1: expected at least 2"),
        (("--sampler", "huen"), 2, "nearest: heun"),
        (("--weights", "x.pth"), 2, "--weights: pass --features inception too"),
        (("--features", "classifier"), 1, "train_features.py dots"),
        (("--also", folder / "none"), 1, "get_parameters.py dots"),
    ]
    for argv, status, text in cases:
        assert run(compare_flows.main, folder, params, *argv) == status
        assert text in capsys.readouterr().err
    monkeypatch.setattr(inputs.Gaussian, "teleport", lambda self, x, a, b: x * (0 if self.rank else float("nan")))
    assert run(compare_flows.main, folder, params, "--n", 2, "--steps", 2) == 1
    assert "failed: mean: the flow of isotropic (mean only) left the finite numbers" in capsys.readouterr().out
    monkeypatch.setattr(ScoreModel, "denoise", lambda self, x, level: x * float("nan"))
    assert run(compare_flows.main, folder, params, "--n", 2, "--steps", 4) == 1
    assert "the flow of the network left the finite numbers" in capsys.readouterr().err
