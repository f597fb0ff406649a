"""Slices of the score field: a plane through its points, a potential of linear scores, a network that is the Gaussian."""

import json

import numpy as np
import pytest
import torch
from linear_world import SHAPE, run

from diffusion_model import figures
from diffusion_model.score_model import ScoreModel
from linear_structure import slice_scores
from linear_structure.slice_scores import Slice, field, potential, span


def test_the_plane_goes_through_its_points() -> None:
    points = torch.randn(3, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    plane = span(points)
    assert torch.allclose(plane.axes @ plane.axes.T, torch.eye(2, dtype=torch.float64))
    assert torch.allclose(plane.at(plane.corners), points)
    assert torch.allclose(plane.corners[0], torch.zeros(2, dtype=torch.float64))
    low, high = plane.ticks(9).amin(1), plane.ticks(9).amax(1)
    assert (low < plane.corners.amin(0)).all() and (high > plane.corners.amax(0)).all()
    with pytest.raises(ValueError, match="on one line"):
        span(torch.stack([points[0], points[1], 3 * points[1] - 2 * points[0]]))


def test_a_linear_score_has_its_quadratic_potential_and_a_rotation_has_none() -> None:
    first, second = np.meshgrid(np.linspace(-1, 2, 9), np.linspace(0, 3, 9), indexing="ij")
    places, curvature, step = np.stack([first, second], -1) - 0.4, np.array([[2.0, 0.5], [0.5, 1.0]]), 3 / 8
    wanted = -np.einsum("ijk,kl,ijl->ij", places, curvature, places) / 2
    phi, curl = potential(-places @ curvature, step)
    assert np.allclose(phi, wanted - wanted.mean())
    assert curl < 1e-20
    _, curl = potential(np.stack([1.0 - second, first], -1), step)
    assert curl > 0.5
    assert potential(np.zeros((4, 4, 2)), step)[1] == 0


def test_a_slice_at_the_images_is_the_score_there(world) -> None:
    _, _, given = world
    images = given.model.scaling.to_model(torch.from_numpy(np.array(given.split("train").images[:3])))
    plane, gaussian = span(images), given.forms["gaussian"]
    found = field(gaussian.denoise, plane.at(plane.corners), 0.7, SHAPE, batch=2)
    wanted = gaussian.score(images.double(), 0.7).flatten(1)
    assert torch.allclose(found, wanted, atol=1e-4 * float(wanted.abs().max()))
    grid = torch.stack([plane.corners[1], plane.corners[2]], 1)  # its corners' coordinates are (b1, b2) and (c1, c2)
    made = Slice(plane, grid, SHAPE, 3, torch.device("cpu"))
    along = made.projected(made.scores(gaussian.denoise, 0.7))
    assert np.allclose(along[0, 0], wanted[1] @ plane.axes.T, atol=1e-3)
    assert np.allclose(along[1, 1], wanted[2] @ plane.axes.T, atol=1e-3)


def test_a_network_that_is_the_gaussian_has_no_error_and_its_density(world, monkeypatch, capsys) -> None:
    folder, params, given = world
    monkeypatch.setattr(ScoreModel, "denoise", lambda self, x, level: given.forms["gaussian"].denoise(x, level))
    assert slice_scores.main([str(folder), str(params), "--levels", "0.5", "3", "--grid", "7", "--batch", "10"]) == 0
    slices = folder / "slices"
    summary = json.loads((slices / "summary.json").read_text())
    assert [entry["level"] for entry in summary["levels"]] == [0.5, 3.0]
    for entry in summary["levels"]:
        assert entry["gaussian"] == {"in_plane": 0, "whole": 0}
        assert entry["neural"]["curl"] < 1e-9
    table = figures.read_table(slices / "slices.csv")
    assert len(table["level"]) == 2 * 49
    neural, gaussian = (np.array(table[f"log_density_{name}"], float) for name in ("neural", "gaussian"))
    assert np.allclose(neural, gaussian, atol=1e-3 * np.abs(gaussian).max())
    assert "relative error in the plane at level 0.5: Gaussian 0 (" in capsys.readouterr().out


def test_a_slice_goes_on_where_it_was_and_takes_further_forms(world, tmp_path, capsys) -> None:
    folder, params, _ = world
    options = [folder, params, "--levels", 1, "--grid", 5, "--points", 4, 2, 9]
    assert run(slice_scores.main, *options) == 0
    cells = sorted((folder / "slices").glob("level=1/*.json"))
    assert [path.name for path in cells] == ["form=gaussian.json", "form=neural.json"]
    before = [path.read_bytes() for path in cells]
    table = (folder / "slices" / "slices.csv").read_bytes()
    stamp = cells[1].stat().st_mtime_ns
    cells[0].unlink()
    assert run(slice_scores.main, *options) == 0
    assert [path.read_bytes() for path in cells] == before
    assert (folder / "slices" / "slices.csv").read_bytes() == table
    assert run(slice_scores.main, *options, "--delta") == 0
    assert cells[1].stat().st_mtime_ns == stamp
    assert "training images (delta mixture)" in capsys.readouterr().out
    assert run(slice_scores.main, *options[:-3], 4, 2, 8) == 1
    assert "made under another protocol (points: [4, 2, 9] there, [4, 2, 8] now)" in capsys.readouterr().err


def test_mistakes_are_sentences(world, monkeypatch, capsys) -> None:
    folder, params, _ = world
    cases = [
        (("--levels", 0, 1), 2, "--levels 0: expected levels above 0"),
        (("--points", 1, 1, 2), 2, "--points 1 1 2: expected three of rows 0 to 191"),
        (("--points", 1, 5, 192), 2, "expected three of rows 0 to 191"),
        (("--grid", 1), 2, "--grid 1: expected at least 2"),
        (("--also", folder / "none"), 1, "get_parameters.py dots"),
    ]
    for argv, status, text in cases:
        assert run(slice_scores.main, folder, params, *argv) == status
        assert text in capsys.readouterr().err
    monkeypatch.setattr(ScoreModel, "denoise", lambda self, x, level: x * float("nan"))
    assert run(slice_scores.main, folder, params, "--levels", 1) == 1
    assert "the score on the grid has NaN or infinite values" in capsys.readouterr().err
