"""Laws of every SDE: the two identities that define it, and the inverse of its level."""

import pytest
import torch

from diffusion_model.sde import SDES


@pytest.fixture(params=SDES)
def sde(request):
    return SDES[request.param]()


@pytest.fixture
def times(sde):
    return torch.linspace(1e-4, 1, 50, dtype=torch.float64, requires_grad=True)


def derivative(value, times):
    return torch.autograd.grad(value.sum(), times)[0]


def test_drift_is_the_derivative_of_log_alpha(sde, times):
    slope = derivative(torch.log(sde.alpha(times)) + 0 * times, times)
    assert torch.allclose(slope, sde.drift(times), rtol=1e-9, atol=1e-12)


def test_diffusion_is_the_growth_of_the_squared_level(sde, times):
    slope = derivative(sde.level(times) ** 2, times)
    assert torch.allclose(slope, (sde.diffusion(times) / sde.alpha(times)) ** 2, rtol=1e-7)


def test_level_is_sigma_over_alpha(sde, times):
    assert torch.allclose(sde.level(times), sde.sigma(times) / sde.alpha(times), rtol=1e-10)


def test_time_inverts_level(sde):
    times = torch.linspace(sde.eps, 1, 200, dtype=torch.float64)
    assert torch.allclose(sde.time(sde.level(times)), times, rtol=1e-8, atol=1e-10)


def test_vp_keeps_unit_variance_and_sub_vp_its_square():
    times = torch.linspace(0.01, 1, 20, dtype=torch.float64)
    vp, sub = SDES["vp"](), SDES["subvp"]()
    assert torch.allclose(vp.alpha(times) ** 2 + vp.sigma(times) ** 2, torch.ones_like(times), rtol=1e-12)
    assert torch.allclose(sub.sigma(times), vp.sigma(times) ** 2, rtol=1e-12)


def test_ve_matches_the_papers_grid():
    """sigma at the k = 10 grid: .01 .0234 .0549 .1287 .3017 .7071 1.657 3.884 9.103 21.33 50."""
    sigma = SDES["ve"]().sigma(torch.arange(11, dtype=torch.float64) / 10)
    paper = torch.tensor(
        [0.01, 0.0234, 0.0549, 0.1287, 0.3017, 0.7071, 1.657, 3.884, 9.103, 21.33, 50], dtype=torch.float64
    )
    assert torch.allclose(sigma, paper, rtol=2e-3)
