"""A mixture in the coordinates of its span: its denoiser and its flow are those of the pixels."""

import pytest
import torch

from linear_structure.flow import integrate
from linear_structure.gaussian import Gaussian
from linear_structure.mixture import Mixture
from linear_structure.span import Span

D = 30


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    """Normal numbers in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mixture(ranks: tuple[int, ...], rests: tuple[float, ...], apart: float = 1.0) -> Mixture:
    """Components of these ranks and variances elsewhere, means `apart`."""
    parts = []
    for seed, (rank, rest) in enumerate(zip(ranks, rests, strict=True)):
        U = torch.linalg.qr(random(D, D, seed=seed))[0][:, :rank]
        variances = torch.linspace(2.0, 0.1, rank, dtype=torch.float64)
        parts.append(Gaussian(apart * random(D, seed=10 + seed), U, variances, rest))
    weights = torch.arange(1.0, 1.0 + len(ranks))
    return Mixture(weights / weights.sum(), parts)


FORMS = {
    "few directions": ((4, 0, 3), (0.05, 0.3, 0.0)),
    "all directions": ((D, D, D), (0.0, 0.0, 0.0)),
    "many directions": ((D, 12, 0), (0.0, 0.1, 0.2)),
}


@pytest.mark.parametrize("apart", [0.1, 3.0])
@pytest.mark.parametrize("name", FORMS)
def test_the_denoiser_is_that_of_the_pixels(name: str, apart: float) -> None:
    form = mixture(*FORMS[name], apart)
    span, x = Span(form.weights, form.components), random(6, D)
    levels = torch.tensor([1e-3, 0.05, 0.7, 3.0, 30.0, 80.0], dtype=torch.float64)
    x = form.sample(6, torch.Generator().manual_seed(0)) + levels[:, None] * x
    y, outside = span.enter(x)
    assert y.shape[1] == (7 + 3 + 1 if name == "few directions" else D)
    assert torch.allclose(span.leave(y, outside), x, rtol=1e-12, atol=1e-12)
    found = span.leave(span.denoise(y, levels), outside)
    assert torch.allclose(found, form.denoise(x, levels), rtol=1e-8, atol=1e-8)
    assert torch.allclose(span.denoise(y, 0.5)[2], span.denoise(y[2:3], 0.5)[0])


@pytest.mark.parametrize("name", FORMS)
def test_the_flow_is_that_of_the_pixels(name: str) -> None:
    form, x = mixture(*FORMS[name]), 3 * random(1, 1, 5, 6)
    wanted, found = integrate(form.denoise, x, 3.0, 0.5), form.teleport(x, 3.0, 0.5)
    assert float((found - wanted).norm() / wanted.norm()) < 1e-6
    assert form.teleport(x.float(), 5.0, 0.5).dtype == torch.float32


def test_an_image_in_the_span_stays_in_it() -> None:
    form = mixture(*FORMS["few directions"])
    x = (form.weights @ torch.stack([part.mu for part in form.components]))[None]
    assert torch.isfinite(form.teleport(x, 5.0, 0.1)).all()
