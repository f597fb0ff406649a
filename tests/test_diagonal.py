"""Laws of the diagonal Gaussians against the dense covariance that each stands for."""

import pytest
import torch

from diffusion_model.data import Scaling
from diffusion_model.moments import Moments
from linear_structure.diagonal import BASES, Diagonal
from linear_structure.flow import integrate
from linear_structure.gaussian import Gaussian

SHAPE = (2, 3, 4)
D = 24


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    """Normal numbers in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def images(count: int = 50) -> torch.Tensor:
    """Correlated uint8 images."""
    return (128 + 15 * random(count, D) @ random(D, D, seed=1)).clamp(0, 255).to(torch.uint8).reshape(-1, *SHAPE)


def example(basis: str) -> Diagonal:
    """The diagonal Gaussian of the images on [-1, 1]."""
    return Diagonal.fit(Moments(D).update(images()), SHAPE, basis).mapped(Scaling((1 / 127.5,), (-1.0,)), SHAPE)


def dense(form: Diagonal) -> torch.Tensor:
    """The covariance [D, D], its basis written out from the definition of the Hartley transform."""
    if form.basis == "pixel":
        return form.variances.diag()
    _, height, width = form.shape
    row, place = (torch.arange(size, dtype=torch.float64) / size for size in (height, width))
    down, across = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    turn = 2 * torch.pi * (
        down.flatten()[:, None] * row.repeat_interleave(width) + across.flatten()[:, None] * place.repeat(height)
    )  # fmt: skip
    basis = (turn.cos() + turn.sin()) / (height * width) ** 0.5
    whole = torch.block_diag(*[basis] * form.shape[0])
    return whole @ form.variances.diag() @ whole.T


def as_gaussian(form: Diagonal) -> Gaussian:
    """The same with its eigenvectors held."""
    values, vectors = torch.linalg.eigh(dense(form))
    return Gaussian(form.mu, vectors, values)


@pytest.mark.parametrize("basis", BASES)
def test_equal_to_the_dense_gaussian(basis: str) -> None:
    form = example(basis)
    gaussian, x = as_gaussian(form), 2 * random(3, *SHAPE)
    level = torch.tensor([0.01, 1.0, 80.0])
    for name, levels in (
        ("score", (level,)),
        ("denoise", (level,)),
        ("teleport", (level, 0.3)),
        ("log_density", (level,)),
    ):
        found, wanted = getattr(form, name)(x, *levels), getattr(gaussian, name)(x, *levels)
        assert torch.allclose(found, wanted, rtol=1e-8, atol=1e-9), name
    assert torch.allclose(form.log_density(x, 0.0), gaussian.log_density(x, 0.0))
    assert form.denoise(x.float(), 1.0).dtype == torch.float32


@pytest.mark.parametrize("basis", BASES)
def test_semigroup_flow_tweedie_and_gradient(basis: str) -> None:
    form, x = example(basis), 5 * random(3, *SHAPE)
    there = form.teleport(form.teleport(x, 80.0, 7.0), 7.0, 0.3)
    assert torch.allclose(there, form.teleport(x, 80.0, 0.3), rtol=1e-11, atol=1e-11)
    followed, closed = integrate(form.denoise, x, 5.0, 0.1), form.teleport(x, 5.0, 0.1)
    assert float((followed - closed).norm() / closed.norm()) < 1e-6
    assert torch.allclose(form.denoise(x, 0.5), x + 0.25 * form.score(x, 0.5))
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(form.log_density(x, 0.5).sum(), x)
    assert torch.allclose(gradient, form.score(x, 0.5))


def test_the_fourier_covariance_is_that_of_all_shifts() -> None:
    rows = images().double()
    shifts = [rows.roll((down, across), (2, 3)) for down in range(3) for across in range(4)]
    centred = torch.cat(
        [shift - rows.mean(0).roll((index // 4, index % 4), (1, 2)) for index, shift in enumerate(shifts)]
    )
    wanted = centred.flatten(1).T @ centred.flatten(1) / len(shifts) / (len(rows) - 1)
    channels = torch.block_diag(*[torch.ones(12, 12, dtype=torch.float64)] * 2)
    form = Diagonal.fit(Moments(D).update(images()), SHAPE, "fourier")
    assert torch.allclose(dense(form), wanted * channels, atol=1e-8)
    shifted = dense(form).reshape(2, 3, 4, 2, 3, 4).roll((1, 2, 1, 2), (1, 2, 4, 5)).reshape(D, D)
    assert torch.allclose(shifted, dense(form), atol=1e-9)


@pytest.mark.parametrize("basis", BASES)
def test_streamed_images_and_moments_agree(basis: str) -> None:
    one = Diagonal.fit(Moments(D).update(images()), SHAPE, basis)
    for batch in (7, 1000):
        other = Diagonal.of_images(images().numpy(), basis, batch)
        assert torch.allclose(one.variances, other.variances, rtol=1e-9)
        assert torch.allclose(one.mu, other.mu)


def test_mapped_channels_denoise_as_the_dense_covariance_says() -> None:
    scaling = Scaling((0.01, 0.02), (-1.0, 0.3))
    pixels = Diagonal.fit(Moments(D).update(images()), SHAPE, "fourier")
    scale = torch.tensor(scaling.scale, dtype=torch.float64).repeat_interleave(12)
    assert torch.allclose(dense(pixels.mapped(scaling, SHAPE)), scale[:, None] * dense(pixels) * scale)


@pytest.mark.parametrize("basis", BASES)
def test_saved_bit_for_bit_and_drawn(tmp_path, basis: str) -> None:
    form = example(basis)
    loaded = Diagonal.load(form.save(tmp_path / "params", dataset="dots"))
    assert torch.equal(loaded.mu, form.mu)
    assert torch.equal(loaded.variances, form.variances)
    assert (loaded.shape, loaded.basis, loaded.meta) == (SHAPE, basis, {"dataset": "dots"})
    drawn = form.sample(40_000, torch.Generator().manual_seed(0)) - form.mu
    assert torch.allclose(drawn.T @ drawn / len(drawn), dense(form), atol=0.05 * float(form.variances.max()))


def test_bad_input_is_a_sentence(tmp_path) -> None:
    with pytest.raises(ValueError, match="basis 'wavelet': expected one of pixel, fourier"):
        Diagonal(random(D), random(D).abs(), SHAPE, "wavelet")
    with pytest.raises(ValueError, match=r"expected \[D\] both"):
        Diagonal(random(D), random(3).abs(), SHAPE, "pixel")
    with pytest.raises(ValueError, match="expected none below 0"):
        Diagonal(random(D), -torch.ones(D), SHAPE, "pixel")
    flat = Diagonal(random(D), torch.arange(D), SHAPE, "fourier")
    with pytest.raises(ValueError, match="no density at level 0: 1 of the 24 directions"):
        flat.log_density(random(2, D), 0.0)
    with pytest.raises(ValueError, match="of 9 numbers"):
        flat.denoise(random(2, 9), 1.0)
    with pytest.raises(ValueError, match="moments of 24 pixels, expected 12"):
        Diagonal.fit(Moments(D).update(images()), (1, 3, 4), "pixel")
    with pytest.raises(ValueError, match=r"statistics of images \[2, 3, 4\], expected \[2, 4, 3\]"):
        flat.mapped(Scaling((1.0,), (0.0,)), (2, 4, 3))
    with pytest.raises(ValueError, match="at least 2 images"):
        Diagonal.of_images(images(1).numpy(), "pixel")
    with pytest.raises(FileNotFoundError, match="diagonal gaussian was expected"):
        Diagonal.load(tmp_path / "none")
