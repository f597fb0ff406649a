"""Measures of a closed form against a network: exact where both are one, definitions, invariance, the 99 % level."""

import itertools
import math

import pytest
import torch

from linear_structure.gaussian import Gaussian
from linear_structure.measures import Comparison, Directions, level_from, mean_interval, ratio_interval

SHAPE = (2, 4, 4)
D = 32


def gaussian(rank: int = D, rest: float = 0.0) -> Gaussian:
    """A Gaussian with a decreasing spectrum."""
    generator = torch.Generator().manual_seed(1)
    U, _ = torch.linalg.qr(torch.randn(D, D, generator=generator, dtype=torch.float64))
    lambdas = 4.0 * 0.7 ** torch.arange(D, dtype=torch.float64)
    return Gaussian(torch.linspace(-1, 1, D), U[:, :rank], lambdas[:rank], rest)


def states(count: int = 40, level: float = 0.5) -> torch.Tensor:
    """Noised images [count, *SHAPE], float64."""
    generator = torch.Generator().manual_seed(2)
    x0 = gaussian().sample(count, generator)
    return (x0 + level * torch.randn(count, D, generator=generator, dtype=torch.float64)).reshape(count, *SHAPE)


@pytest.mark.parametrize("rank", [D, 7, 0])
@pytest.mark.parametrize("level", [0.05, 0.5, 20.0])
def test_a_network_that_is_the_gaussian_is_wholly_explained(rank, level) -> None:
    form, x = gaussian(rank, 0.0 if rank == D else 0.01), states(level=level)
    directions = Directions(form)
    comparison = Comparison(form.mu, directions)
    denoised = form.denoise(x, level)
    comparison.update(x, denoised, {"gaussian": denoised, "mean": form.isotropic(False).denoise(x, level)})
    found = comparison.results()
    same = {"mean": 1, "low": 1, "high": 1}
    zero = {"mean": 0, "low": 0, "high": 0}
    assert found["gaussian"]["relative_error"] == zero
    assert found["gaussian"]["cosine"] == found["gaussian"]["explained_variance"] == same
    assert found["gaussian"]["centred"] == same
    assert all(group["relative_error"] == zero for group in found["gaussian"]["groups"])
    assert found["mean"]["centred"]["mean"] == pytest.approx(0, abs=1e-12)
    gains = comparison.gains()
    wiener = (form.lambdas / (form.lambdas + level**2)).numpy()
    assert gains["gain"] == pytest.approx(wiener, rel=1e-6)
    assert gains["low"] == pytest.approx(wiener, rel=1e-5)


def test_measures_equal_their_definitions() -> None:
    form, x, level = gaussian(9, 0.02), states(), 0.5
    neural, denoised = 0.3 * x + 0.1, form.denoise(x, level)
    directions = Directions(form, groups=3)
    comparison = Comparison(form.mu, directions)
    comparison.update(x, neural, {"gaussian": denoised})
    found = comparison.results()["gaussian"]
    first, second = (((value - x) / level**2).flatten(1) for value in (neural, denoised))
    error = ((first - second).norm(dim=1) / first.norm(dim=1)).square()
    assert found["relative_error"] == pytest.approx(mean_interval(error))
    assert found["cosine"]["mean"] == pytest.approx(float(torch.cosine_similarity(first, second).mean()))
    whole = (neural - denoised).flatten(1).square().sum(1) / neural.flatten(1).square().sum(1)
    assert found["explained_variance"]["mean"] == pytest.approx(1 - float(whole.mean()))
    spread = (neural.flatten(1) - form.mu).square().sum()
    assert found["centred"]["mean"] == pytest.approx(1 - float((neural - denoised).square().sum() / spread))
    edges = [(group["first"], group["last"]) for group in found["groups"]]
    assert edges[0][0] == 1 and edges[-1] == (10, D)
    assert all(last + 1 == first for (_, last), (first, _) in itertools.pairwise(edges))
    # along the last group, outside the eigenvectors: P = I - U U^T
    outside = torch.eye(D, dtype=torch.float64) - form.U @ form.U.T
    expected = ((first - second) @ outside).square().sum() / (first @ outside).square().sum()
    assert found["groups"][-1]["relative_error"]["mean"] == pytest.approx(float(expected))
    along = ((first - second) @ form.U[:, :1]).square().sum() / (first @ form.U[:, :1]).square().sum()
    assert found["groups"][0]["relative_error"]["mean"] == pytest.approx(float(along))


def test_the_gain_is_the_least_squares_slope() -> None:
    form, x = gaussian(5), states()
    neural = x.tanh()
    comparison = Comparison(form.mu, Directions(form))
    for part in (slice(0, 7), slice(7, 40)):
        comparison.update(x[part], neural[part], {})
    a, b = ((value.flatten(1) - form.mu) @ form.U for value in (x, neural))
    slope = torch.cat([torch.linalg.lstsq(a[:, k : k + 1], b[:, k : k + 1]).solution for k in range(5)])[:, 0]
    gains = comparison.gains()
    assert gains["gain"] == pytest.approx(slope.numpy())
    error = (a * (b - slope * a)).square().sum(0).sqrt() / a.square().sum(0)
    assert gains["high"] - gains["gain"] == pytest.approx(1.96 * error.numpy())


def test_order_and_batches_change_nothing() -> None:
    form, x, level = gaussian(9, 0.02), states(), 0.5
    neural, denoised = x.sin(), form.denoise(x, level)
    found = []
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    for batch, rows in ((40, torch.arange(40)), (7, torch.arange(40)), (11, order)):
        comparison = Comparison(form.mu, Directions(form))
        for part in rows.split(batch):
            comparison.update(x[part], neural[part], {"gaussian": denoised[part]})
        value = comparison.results()["gaussian"]
        groups = [number for group in value.pop("groups") for number in group["relative_error"].values()]
        found.append([number for entry in value.values() for number in entry.values()] + groups)
    assert found[1] == pytest.approx(found[0], rel=1e-9)
    assert found[2] == pytest.approx(found[0], rel=1e-9)


def test_nan_is_said() -> None:
    x = states(4)
    with pytest.raises(FloatingPointError, match="the network's denoiser gave NaN"):
        Comparison(gaussian().mu).update(x, x * math.nan, {"gaussian": x})


def test_intervals_cover_what_they_should() -> None:
    # 400 draws: the share of 95 % intervals that cover the truth lies within 3 s.d. (.033) of .95
    generator = torch.Generator().manual_seed(0)
    inside = 0
    for _ in range(400):
        below = 1 + torch.rand(200, generator=generator, dtype=torch.float64)
        above = 0.3 * below + 0.1 * torch.randn(200, generator=generator, dtype=torch.float64)
        interval = ratio_interval(above, below)
        inside += interval["low"] <= 0.3 <= interval["high"]
    assert abs(inside / 400 - 0.95) < 0.033


def test_the_level_from_which_99_percent_are_explained() -> None:
    levels = [0.1, 0.5, 2.0, 9.0, 40.0]
    explained = [1 - 0.08 * level**-1.5 for level in levels]  # 1 % is left at (0.08 / 0.01) ** (2 / 3) = 4
    assert level_from(levels, explained) == pytest.approx(4.0, rel=1e-9)
    assert level_from(levels, explained, 0.92) == pytest.approx(1.0, rel=1e-9)
    assert level_from(levels, [0.999] * 5) == 0.1
    assert level_from(levels, [0.999] * 4 + [0.98]) is None
    assert level_from(levels, [0.9, 0.995, 0.9, 1.0, 1.0]) > 2.0  # not the first time it is passed, but the last
    assert level_from(levels, [0.5, 0.99, 0.99, 0.99, 0.99]) == pytest.approx(0.5)
