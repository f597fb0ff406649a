"""Laws of the decompositions: the same eigenvalues however they are found, and nothing unaccounted for."""

import numpy as np
import pytest
import torch

from diffusion_model import passes
from diffusion_model.moments import Moments, of_rows
from linear_structure import decompose, low_rank
from linear_structure.gaussian import Gaussian

SHAPE = (3, 8, 8)
D = 192


def images(count: int = 600, decay: float = 1.5, seed: int = 0) -> np.ndarray:
    """uint8 images [count, 3, 8, 8] whose eigenvalues fall by a power law, as those of photographs do."""
    random = np.random.default_rng(seed)
    basis = np.linalg.qr(random.standard_normal((D, D)))[0]
    scales = 400 * np.arange(1, D + 1) ** -decay
    rows = 127 + (random.standard_normal((count, D)) * scales) @ basis.T
    return rows.round().clip(0, 255).astype(np.uint8).reshape(count, *SHAPE)


def moments(pixels: np.ndarray) -> Moments:
    """Moments of images."""
    return Moments(D).update(pixels)


def test_in_place_is_the_gaussian_of_the_moments() -> None:
    held = moments(images())
    wanted = Gaussian.fit(held, cut_off=1e-6)
    found = Gaussian.fit(held, cut_off=1e-6, spend=True)
    assert np.allclose(found.lambdas, wanted.lambdas, rtol=1e-12, atol=1e-12 * wanted.lambdas[0])
    assert torch.equal(found.variance, wanted.variance)
    assert np.allclose((found.U * found.lambdas) @ found.U.T, (wanted.U * wanted.lambdas) @ wanted.U.T, atol=1e-8)
    spread = Gaussian.fit(moments(images()), rank=5, spread=True, spend=True)
    assert float(spread.lambdas.sum()) + (D - 5) * spread.rest == pytest.approx(float(wanted.variance.sum()))


def test_streamed_means_and_variances_are_exact() -> None:
    pixels = images()
    mean, variance = decompose.marginals(pixels)
    held = moments(pixels)
    assert torch.equal(mean, held.mean)
    assert torch.equal(variance, held.variance)
    chosen = np.arange(1, 600, 3)
    mean, variance = decompose.marginals(pixels, chosen)
    assert np.allclose(variance, pixels[chosen].reshape(200, -1).var(0, ddof=1), rtol=1e-12)
    with pytest.raises(ValueError, match="at least 2 images, 1"):
        decompose.marginals(pixels, chosen[:1])


def test_leading_directions_and_what_is_left_out() -> None:
    pixels = images()
    covariance = moments(pixels).covariance
    values, vectors = (part.flip(-1) for part in torch.linalg.eigh(covariance))
    found = low_rank.randomised(pixels, 10)
    assert np.allclose(found.lambdas, values[:10], rtol=1e-6, atol=1e-7 * values[0])
    assert (found.U.T @ vectors[:, :10]).abs().diagonal().min() > 1 - 1e-6
    assert np.allclose(found.U.T @ found.U, np.eye(10), atol=1e-12)
    left = float(found.variance.sum() - found.lambdas.sum())
    assert left == pytest.approx(float(values[10:].sum()), abs=1e-6 * float(values[0]))


def test_a_small_variance_is_found_beside_one_a_million_times_as_large() -> None:
    random = np.random.default_rng(3)
    rows = np.full((500, D), 128.0)
    rows[:, :96] += 90 * random.choice([-1, 1], (500, 1))  # one direction of variance 780,000
    rows[:, 100:110] += random.choice([-1, 1], (500, 10))  # ten of variance 1
    found = low_rank.randomised(rows.astype(np.uint8).reshape(-1, *SHAPE), 11)
    exact = np.linalg.eigvalsh(np.cov(rows.T))[::-1][:11]
    assert np.allclose(found.lambdas, exact, rtol=1e-4)


def test_fewer_images_than_directions_asked_for() -> None:
    pixels = images(30)
    found = low_rank.randomised(pixels, 100)
    exact = np.linalg.eigvalsh(np.cov(pixels.reshape(30, -1).T.astype(np.float64)))[::-1]
    assert found.rank == 29
    assert np.allclose(found.lambdas, exact[:29], rtol=1e-5)
    assert float(found.variance.sum() - found.lambdas.sum()) == pytest.approx(0, abs=1e-5 * exact.sum())
    assert low_rank.randomised(np.full((9, *SHAPE), 7, np.uint8), 3).rank == 0


def test_a_killed_fit_goes_on_bit_for_bit(tmp_path, monkeypatch, capsys) -> None:
    pixels = images()
    monkeypatch.setattr(low_rank, "BLOCK", 4 * D * 100)
    monkeypatch.setattr(passes, "EVERY", 0.0)
    whole = low_rank.randomised(pixels, 10)
    real = low_rank.pixels
    for kill in (2, 7, 5, 3):  # blocks until the kill, in turn; there are 4 steps of 6
        left = iter(range(kill))

        def read(*arguments, left=left) -> torch.Tensor:
            if next(left, None) is None:
                raise KeyboardInterrupt
            return real(*arguments)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(low_rank, "pixels", read)
            low_rank.randomised(pixels, 10, folder=tmp_path / "fit", key={"data": "a"})
    found = low_rank.randomised(pixels, 10, folder=tmp_path / "fit", key={"data": "a"})
    assert "steps are done" in capsys.readouterr().out
    assert torch.equal(found.lambdas, whole.lambdas) and torch.equal(found.U, whole.U)
    with pytest.raises(ValueError, match="unfinished"):
        low_rank.randomised(pixels, 10, folder=tmp_path / "fit", key={"data": "b"})


def test_few_images_have_in_their_rows_what_the_covariance_has() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 3, 6, 6), dtype=np.uint8)
    for chosen, rank, spread in ((None, None, False), (np.arange(3, 40, 2), 5, True)):
        found = low_rank.by_rows(pixels, rank, spread=spread, chosen=chosen)
        whole = Gaussian.fit(of_rows(pixels, chosen), rank, spread=spread)
        assert torch.equal(found.mu, whole.mu) and torch.equal(found.variance, whole.variance)
        assert found.rank == whole.rank == (rank or 49)
        assert found.rest == pytest.approx(whole.rest, rel=1e-12)
        assert torch.allclose(found.lambdas, whole.lambdas, rtol=0, atol=1e-14 * float(whole.lambdas[0]))
        one, other = ((form.U * form.lambdas) @ form.U.T for form in (found, whole))
        assert float((one - other).abs().max()) < 2e-14 * float(other.abs().max())
        assert torch.allclose(found.U.T @ found.U, torch.eye(found.rank, dtype=torch.float64), atol=1e-13)
    same = low_rank.by_rows(np.repeat(pixels[:1], 4, 0), cut_off=0.0)
    assert same.rank == 0 and float(same.variance.max()) == 0
