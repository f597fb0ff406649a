"""The map of mixtures: cutting ranks is fitting at them, one component is the Gaussian, and nothing is fitted twice."""

import itertools
import json

import pytest
import torch
from linear_world import SHAPE, make_data, run

from diffusion_model import figures
from linear_structure import clusters, map_mixtures
from linear_structure.gaussian import UNIT, Gaussian
from linear_structure.map_mixtures import States, least_rank, measure, noised, percent, truncated
from linear_structure.measures import Comparison
from linear_structure.mixture import Mixture

D = 192


def covariance_of(gaussian: Gaussian) -> torch.Tensor:
    """The dense covariance [D, D]."""
    whole = gaussian.rest * torch.eye(gaussian.dimension, dtype=torch.float64)
    return whole + gaussian.U @ torch.diag(gaussian.lambdas - gaussian.rest) @ gaussian.U.T


def test_a_mixture_cut_to_a_rank_is_the_fit_at_that_rank(tmp_path) -> None:
    images = make_data(tmp_path / "data").images
    whole = clusters.fit(images, 2, D)
    for rank in (1, 7, 40):
        cut, fitted = truncated(whole, rank), clusters.fit(images, 2, rank)
        assert torch.equal(cut.weights, fitted.weights)
        for one, other in zip(cut.components, fitted.components, strict=True):
            assert one.rank == rank
            assert torch.allclose(one.mu, other.mu)
            assert torch.allclose(covariance_of(one), covariance_of(other), atol=1e-6 * UNIT)
    same = truncated(whole, D).components
    assert all(one is other for one, other in zip(same, whole.components, strict=True))


def test_one_component_of_full_rank_is_the_gaussian(world) -> None:
    _, _, given = world
    images = given.split("train").images
    one = clusters.fit(images, 1, D).mapped(given.model.scaling, SHAPE)
    for level in (0.3, 3.0):
        states = noised(given, given.split("test"), 20, level, 8)
        comparison = Comparison(given.forms["gaussian"].mu)
        for x, neural in zip(*states, strict=True):
            comparison.update(x, neural, {"gaussian": given.forms["gaussian"].denoise(x, level)})
        wanted, found = comparison.results()["gaussian"], measure(one, given.forms["gaussian"].mu, states, level)
        for name in ("relative_error", "explained_variance", "centred"):
            assert found[name]["mean"] == pytest.approx(wanted[name]["mean"], rel=1e-3, abs=1e-4), name


@pytest.mark.parametrize("level", [0.1, 0.5, 2.0])
def test_more_directions_explain_more_of_data_that_is_gaussian(level: float) -> None:
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(12, 12, generator=generator, dtype=torch.float64))[0]
    lambdas = 2.0 ** -torch.arange(12, dtype=torch.float64)
    gaussian = Gaussian(torch.zeros(12), basis, lambdas)
    x = gaussian.sample(400, generator) + level * torch.randn(400, 12, generator=generator, dtype=torch.float64)
    x = x.reshape(-1, 3, 2, 2)
    states = States([x], [gaussian.denoise(x, level)])
    values = [measure(truncated(Mixture([1.0], [gaussian]), r), gaussian.mu, states, level) for r in range(13)]
    for what in map_mixtures.MEASURES:
        shares = [map_mixtures.explained(value, what) for value in values]
        assert all(after >= before for before, after in itertools.pairwise(shares))
        assert shares[0] < 0.999 and shares[-1] == pytest.approx(1, abs=1e-12)


def test_the_least_rank_is_the_first_that_explains_the_share() -> None:
    assert least_rank([8, 16, 32], [0.5, 0.99, 0.999], 0.99) == 16
    assert least_rank([8, 16, 32], [0.5, 0.9, 0.98], 0.99) is None
    assert [percent(share) for share in (-0.1, 0.9899, 0.99, 0.9996, 0.99995)] == [
        "< 0",
        "98.9",
        "99.00",
        "99.96",
        "99.995",
    ]


def test_it_goes_on_where_it_was_and_fits_nothing_twice(world, monkeypatch, capsys) -> None:
    folder, params, _ = world
    options = [folder, params, "--n", 12, "--ranks", 4, 64, "--levels", 0.5, 5]
    mixtures, fits = folder / "mixtures", []
    fit = clusters.fit
    monkeypatch.setattr(
        clusters, "fit", lambda images, *rest, **named: fits.append(rest[:2]) or fit(images, *rest, **named)
    )
    assert run(map_mixtures.main, *options, "--components", 1, 2) == 0
    assert fits == [(1, 64), (2, 64)]
    before = {path: path.read_bytes() for path in mixtures.rglob("level=*.json")}
    assert len(before) == 8
    summary = json.loads((mixtures / "summary.json").read_text())
    assert [len(summary["score"]), len(summary["score"][0]), len(summary["score"][0][0])] == [2, 2, 2]
    table = figures.read_table(mixtures / "map_score.csv")
    assert float(table["explained_variance"][0]) == summary["score"][0][0][0]
    assert float(table["low"][0]) < float(table["explained_variance"][0]) < float(table["high"][0])
    for path in list(before)[::3]:
        path.unlink()
    assert run(map_mixtures.main, *options, "--components", 1, 2, 3, "--share", 0.5) == 0
    assert {path: path.read_bytes() for path in before} == before
    assert fits == [(1, 64), (2, 64), (3, 64)]
    assert run(map_mixtures.main, *options[:5], 5, "--levels", 0.5, "--components", 2) == 0
    assert fits == [(1, 64), (2, 64), (3, 64)]
    assert len(list(mixtures.rglob("level=*.json"))) == 13
    assert "50 % of the score by 3 components: " in capsys.readouterr().out
    assert run(map_mixtures.main, folder, params, "--n", 13, *options[4:], "--components", 1) == 1
    assert "made under another protocol (n: 12 there, 13 now)" in capsys.readouterr().err


def test_mistakes_are_sentences_and_a_failed_fit_is_told(world, capsys) -> None:
    folder, params, _ = world
    cases = [
        (("--levels", 0), 2, "--levels 0: expected levels above 0"),
        (("--share", 1), 2, "--share 1: expected a share between 0 and 1"),
        (("--ranks", 193), 2, "--ranks 193: images of 192 numbers have ranks 1 to 192"),
        (("--components", 0), 2, "--components 0: expected at least 1"),
        (("--n", 100), 1, "--n 100: dots/test has 48 images"),
        (("--components", 500, "--levels", 1), 1, "500 components for 192 images"),
    ]
    for argv, status, text in cases:
        assert run(map_mixtures.main, folder, params, *argv) == status
        assert text in capsys.readouterr().err
    options = ["--components", 1, 500, "--levels", 1, "--ranks", 3, "--n", 5]
    assert run(map_mixtures.main, folder, params, *options) == 1
    told = capsys.readouterr().out
    assert "99 % of the score by 1 component: " in told
    assert "failed: 500 components: 500 components for 192 images" in told
