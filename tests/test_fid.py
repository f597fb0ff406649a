"""Laws of the Frechet and the kernel distance: closed forms, equal to the general matrix root, enumerated exactly."""

import itertools

import numpy as np
import pytest
import scipy.linalg
import torch

from diffusion_model import fid
from diffusion_model.fid import KernelStream, Normal, frechet_distance, kernel_distance, mmd, symmetric_root
from diffusion_model.moments import Moments


def normal_rows(seed: int, count: int, dimension: int) -> torch.Tensor:
    """Normal rows [N, D] in float64."""
    return torch.randn(count, dimension, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_rows(seed: int, dimension: int, count: int) -> torch.Tensor:
    """Correlated normal rows [N, D] about a mean."""
    return normal_rows(seed, count, dimension) @ normal_rows(seed + 50, dimension, dimension) + normal_rows(
        seed + 99, 1, dimension
    )


def random_moments(seed: int, dimension: int, count: int) -> Moments:
    """Moments of correlated normal rows."""
    return Moments(dimension).update(random_rows(seed, dimension, count))


def between(first: Moments, second: Moments) -> float:
    """Distance of two moments."""
    return frechet_distance(first.mean, first.covariance, second.mean, second.covariance)


@pytest.mark.parametrize(("shift", "scale", "dimension"), [(0.0, 1.0, 5), (0.3, 2.0, 64), (-2.0, 0.1, 17)])
def test_isotropic_normals(shift: float, scale: float, dimension: int) -> None:
    one = torch.eye(dimension, dtype=torch.float64)
    mean = torch.full((dimension,), shift, dtype=torch.float64)
    found = frechet_distance(torch.zeros(dimension), one, mean, scale**2 * one)
    assert found == pytest.approx(dimension * shift**2 + dimension * (1 - scale) ** 2, rel=1e-10, abs=1e-10)


@pytest.mark.parametrize("rank", [30, 12, 1, 0])
def test_covariances_that_commute(rank: int) -> None:
    """One basis: the roots of the variances apart; also where the second covariance is singular, or nothing at all."""
    basis = torch.linalg.qr(normal_rows(0, 30, 30))[0]
    first, second = torch.logspace(1, -3, 30, dtype=torch.float64), torch.logspace(-2, 2, 30, dtype=torch.float64)
    second[rank:] = 0
    covariances = [(basis * values) @ basis.T for values in (first, second)]
    found = frechet_distance(torch.zeros(30), covariances[0], torch.ones(30), covariances[1])
    assert found == pytest.approx(30 + float((first.sqrt() - second.sqrt()).square().sum()), rel=1e-11)


def test_equals_the_general_matrix_root() -> None:
    first, second = random_moments(0, 40, 400), random_moments(1, 40, 400)
    root = scipy.linalg.sqrtm(first.covariance.numpy() @ second.covariance.numpy())
    apart = float(((first.mean - second.mean) ** 2).sum())
    expected = apart + float(torch.trace(first.covariance + second.covariance)) - 2 * np.trace(root).real
    assert between(first, second) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("count", [400, 20, 2])
def test_symmetric_zero_to_itself_and_blind_to_rotation_even_where_singular(count: int) -> None:
    first, second = random_rows(0, 40, count), random_rows(1, 40, count)
    turn = torch.linalg.qr(normal_rows(5, 40, 40))[0]
    moments = [Moments(40).update(rows) for rows in (first, second, first @ turn, second @ turn)]
    assert between(*moments[:2]) == pytest.approx(between(moments[1], moments[0]), rel=1e-9)
    assert between(*moments[:2]) == pytest.approx(between(*moments[2:]), rel=1e-9)
    scale = float(torch.trace(moments[0].covariance))
    assert between(moments[0], moments[0]) == pytest.approx(0, abs=1e-9 * scale)


@pytest.mark.parametrize("counts", [(12, 30), (30, 200), (2, 2), (60, 61)])
def test_rows_fewer_than_features_give_what_their_covariance_gives(counts: tuple[int, int]) -> None:
    first, second = (random_rows(seed, 60, count) for seed, count in enumerate(counts))
    dense = between(Moments(60).update(first), Moments(60).update(second))
    low = Normal.from_rows(first)
    assert low.factor.shape[1] == min(counts[0] - 1, 60)
    assert torch.allclose(low.factor @ low.factor.T, torch.cov(first.T), rtol=1e-12, atol=1e-12)
    assert fid.distance(low, Normal.from_rows(second)) == pytest.approx(dense, rel=1e-9)


def test_small_roots_are_computed_with_care() -> None:
    """Eigenvalues of the product over 24 orders of magnitude, half of which a Gram matrix rounds away."""
    values = torch.logspace(0, -12, 400, dtype=torch.float64)
    basis = torch.linalg.qr(normal_rows(0, 400, 400))[0]
    matrix = (basis * values) @ torch.linalg.qr(normal_rows(1, 400, 400))[0]
    assert fid.nuclear_norm(matrix, 0.0) == pytest.approx(float(values.sum()), rel=1e-13)
    assert fid.nuclear_norm(matrix, 1.0) == pytest.approx(float(values.sum()), rel=1e-6)


def test_a_given_root_changes_nothing() -> None:
    first, second = random_moments(0, 10, 50), random_moments(1, 10, 50)
    root = symmetric_root(first.covariance)
    assert torch.allclose(root @ root, first.covariance)
    for given in (root, fid.factor(first.covariance)):
        found = frechet_distance(first.mean, first.covariance, second.mean, second.covariance, given)
        assert found == pytest.approx(between(first, second), rel=1e-10)


def slow_mmd(first: np.ndarray, second: np.ndarray) -> float:
    """The unbiased estimate, pair by pair."""

    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return (float(x @ y) / len(x) + 1) ** 3

    def mean(pairs) -> float:
        return float(np.mean([kernel(x, y) for x, y in pairs]))

    within = [mean(itertools.permutations(list(rows), 2)) for rows in (first, second)]
    return sum(within) - 2 * mean(itertools.product(first, second))


def test_kernel_distance_equals_a_double_loop() -> None:
    first, second = normal_rows(0, 7, 3).numpy(), 1 + normal_rows(1, 5, 3).numpy()
    assert mmd(first, second) == pytest.approx(slow_mmd(first, second), rel=1e-12)


def test_kernel_distance_is_unbiased() -> None:
    """Over every pair of samples of two and three rows of small distributions, weighted, it is the distance itself."""
    points = normal_rows(0, 4, 2).numpy()
    weights = np.array([[0.1, 0.2, 0.3, 0.4], [0.4, 0.1, 0.4, 0.1]])
    gram = (points @ points.T / 2 + 1) ** 3
    gap = weights[0] - weights[1]
    mean = 0.0
    for chosen in itertools.product(range(4), repeat=5):
        first, second = list(chosen[:2]), list(chosen[2:])
        mean += weights[0][first].prod() * weights[1][second].prod() * mmd(points[first], points[second])
    assert mean == pytest.approx(gap @ gram @ gap, rel=1e-10)


def test_kernel_distance_of_one_distribution_is_zero_within_its_deviation() -> None:
    found = kernel_distance(normal_rows(0, 3000, 8), normal_rows(1, 3000, 8), size=60, subsets=400)
    assert (found.subsets, found.size) == (400, 60)
    assert abs(found.value) < 0.2 * found.deviation
    other = kernel_distance(normal_rows(0, 3000, 8), normal_rows(1, 3000, 8) + 0.5, size=60, subsets=50)
    assert other.value > 3 * other.deviation
    again = kernel_distance(normal_rows(0, 3000, 8), normal_rows(1, 3000, 8) + 0.5, size=60, subsets=50)
    assert other == again


def test_subsets_of_all_rows_are_the_whole() -> None:
    first, second = normal_rows(0, 20, 3), normal_rows(1, 20, 3)
    found = kernel_distance(first, second, size=20, subsets=3)
    assert found.value == pytest.approx(mmd(first, second), rel=1e-9)
    assert kernel_distance(first, second, size=20, subsets=1).deviation is None


def test_streamed_subsets_do_not_depend_on_batches() -> None:
    rows, reference = normal_rows(0, 103, 4), normal_rows(1, 45, 4)
    found = [KernelStream(reference, 20) for _ in range(2)]
    for start in range(0, 103, 7):
        found[0].update(rows[start : start + 7].float())
    whole = found[1].update(rows.float()).result()
    assert found[0].result() == whole
    each = [mmd(rows[20 * k : 20 * k + 20].float(), reference[20 * (k % 2) :][:20]) for k in range(5)]
    assert whole.value == pytest.approx(np.mean(each), rel=1e-12)
    assert whole.deviation == pytest.approx(np.std(each, ddof=1), rel=1e-12)


def test_parts_of_a_large_kernel_matrix_add_up(monkeypatch) -> None:
    first, second = normal_rows(0, 30, 3), normal_rows(1, 20, 3)
    whole = mmd(first, second)
    monkeypatch.setattr(fid, "PAIRS", 50)
    assert mmd(first, second) == pytest.approx(whole, rel=1e-10)


def test_bad_features_are_sentences() -> None:
    good = normal_rows(0, 6, 3)
    bad = good.clone()
    bad[2, 1] = torch.nan
    eye = torch.eye(3, dtype=torch.float64)
    skew = eye.clone()
    skew[0, 1] = 1
    for sentence, call in {
        "the features of 1 of 6 images are NaN or infinite": lambda: mmd(bad, good),
        "features of 1 images: a distance needs at least 2": lambda: Normal.from_rows(good[:1]),
        r"features are \[18\], expected \[N, D\]": lambda: Normal.from_rows(good.flatten()),
        "different sizes: 3 and 2": lambda: mmd(good, good[:, :2]),
        "Frechet distance between features of different sizes: 3 and 2": lambda: fid.distance(
            Normal.from_rows(good), Normal.from_rows(good[:, :2])
        ),
        "different sizes: {": lambda: frechet_distance(torch.zeros(3), eye, torch.zeros(4), torch.eye(4)),
        "the moments hold NaN": lambda: frechet_distance(torch.zeros(3), eye, torch.zeros(3), eye / 0),
        "not symmetric": lambda: frechet_distance(torch.zeros(3), skew, torch.zeros(3), eye),
        "negative eigenvalues": lambda: frechet_distance(torch.zeros(3), eye - torch.ones(3, 3), torch.zeros(3), eye),
        "subsets of 9 rows of 6 and 6: expected from 2 to 6": lambda: kernel_distance(good, good, size=9),
        "subsets of 4 rows of 3 and 6": lambda: KernelStream(good, 4).update(good[:3]).result(),
        "0 subsets for a kernel distance": lambda: kernel_distance(good, good, size=3, subsets=0),
    }.items():
        with pytest.raises(ValueError, match=sentence):
            call()
