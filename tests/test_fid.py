"""Laws of the Frechet distance: closed form between normals, equal to the general matrix root, zero to itself."""

import numpy as np
import pytest
import scipy.linalg
import torch

from diffusion_model.fid import frechet_distance, symmetric_root
from diffusion_model.moments import Moments


def random_moments(seed: int, dimension: int, count: int) -> Moments:
    """Moments of correlated normal rows."""
    random = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dimension, dimension, generator=random)
    rows = torch.randn(count, dimension, generator=random) @ mixing + torch.randn(dimension, generator=random)
    return Moments(dimension).update(rows)


def between(first: Moments, second: Moments) -> float:
    """Distance of two moments."""
    return frechet_distance(first.mean, first.covariance, second.mean, second.covariance)


@pytest.mark.parametrize(("shift", "scale", "dimension"), [(0.0, 1.0, 5), (0.3, 2.0, 64), (-2.0, 0.1, 17)])
def test_isotropic_normals(shift: float, scale: float, dimension: int) -> None:
    one = torch.eye(dimension, dtype=torch.float64)
    mean = torch.full((dimension,), shift, dtype=torch.float64)
    found = frechet_distance(torch.zeros(dimension), one, mean, scale**2 * one)
    assert found == pytest.approx(dimension * shift**2 + dimension * (1 - scale) ** 2, rel=1e-10, abs=1e-10)


def test_equals_the_general_matrix_root() -> None:
    first, second = random_moments(0, 40, 400), random_moments(1, 40, 400)
    root = scipy.linalg.sqrtm(first.covariance.numpy() @ second.covariance.numpy())
    apart = float(((first.mean - second.mean) ** 2).sum())
    expected = apart + float(torch.trace(first.covariance + second.covariance)) - 2 * np.trace(root).real
    assert between(first, second) == pytest.approx(expected, rel=1e-6)


def test_symmetric_and_zero_to_itself_even_where_singular() -> None:
    first, second = random_moments(0, 40, 20), random_moments(1, 40, 20)
    assert between(first, second) == pytest.approx(between(second, first), rel=1e-7)
    assert between(first, first) == pytest.approx(0, abs=1e-6 * float(torch.trace(first.covariance)))


def test_a_given_root_changes_nothing() -> None:
    first, second = random_moments(0, 10, 50), random_moments(1, 10, 50)
    root = symmetric_root(first.covariance)
    assert torch.allclose(root @ root, first.covariance)
    given = frechet_distance(first.mean, first.covariance, second.mean, second.covariance, root)
    assert given == pytest.approx(between(first, second), rel=1e-12)


def test_sizes_must_agree() -> None:
    with pytest.raises(ValueError, match="different sizes"):
        frechet_distance(torch.zeros(3), torch.eye(3), torch.zeros(4), torch.eye(4))
