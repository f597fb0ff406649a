"""Level distributions by their quantiles; weights against the losses they stand for, written in x_t coordinates."""

import math

import pytest
import torch

from diffusion_model.objective import LEVELS, WEIGHTS
from diffusion_model.sde import SDES

STD = 0.5


@pytest.fixture(params=SDES)
def process(request):
    return SDES[request.param]()


@pytest.fixture
def uniform():
    return torch.linspace(0, 1, 1001, dtype=torch.float64)


def x_t_world(process):
    """Times, a clean value, x_t and any score of x_t: (t, x0, x, score)."""
    t = torch.linspace(1e-4, 1, 60, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    x0, noise, guess = (torch.randn(60, dtype=torch.float64, generator=generator) for _ in range(3))
    return t, x0, process.alpha(t) * x0 + process.sigma(t) * noise, guess / process.sigma(t)


@pytest.mark.parametrize("name", ["dsm", "likelihood"])
def test_weights_are_score_sdes_losses(name, process):
    """0.5 lambda(t) (s - grad log p_0t)^2 with lambda sigma^2 or g^2, for any score s, is weight * (denoise - x0)^2."""
    t, x0, x, score = x_t_world(process)
    alpha, sigma = process.alpha(t), process.sigma(t)
    kernel = -(x - alpha * x0) / sigma**2
    scale = sigma**2 if name == "dsm" else process.diffusion(t) ** 2
    direct = 0.5 * scale * (score - kernel) ** 2
    denoised = (x + sigma**2 * score) / alpha
    weight = WEIGHTS[name](process.level(t), process, STD)
    assert torch.allclose(weight * (denoised - x0) ** 2, direct, rtol=1e-6)


def test_likelihood_is_dsm_times_the_growth_of_the_log_level(process):
    t = torch.linspace(1e-3, 1, 50, dtype=torch.float64, requires_grad=True)
    level = process.level(t)
    growth = torch.autograd.grad(torch.log(level).sum(), t)[0]
    level = level.detach()
    ratio = WEIGHTS["likelihood"](level, process, STD) / WEIGHTS["dsm"](level, process, STD)
    assert torch.allclose(ratio, 2 * growth, rtol=1e-7)
    if isinstance(process, SDES["ve"]):
        assert torch.allclose(ratio, torch.full_like(ratio, 2 * math.log(5000)))


def test_uniform_time_with_likelihood_weights_bounds_the_whole_path(process, uniform):
    """E over t of weight * level^4 is half the integral of d level^2: half the squared levels between the ends."""
    levels = LEVELS["uniform-time"](uniform, process, {})
    growth = WEIGHTS["likelihood"](levels, process, STD) * levels**4
    integral = torch.trapezoid(growth, process.time(levels))
    ends = process.level(torch.tensor([process.eps, 1.0], dtype=torch.float64))
    assert float(integral) == pytest.approx(float(ends[1] ** 2 - ends[0] ** 2) / 2, rel=1e-3)


def test_edm_weight_makes_every_level_count_alike():
    """The weight is 1 / c_out^2, so that a network in error by one at any level costs one."""
    level = torch.logspace(-3, 3, 30, dtype=torch.float64)
    c_out = level * STD / torch.sqrt(level**2 + STD**2)
    assert torch.allclose(WEIGHTS["edm"](level, SDES["ve"](), STD) * c_out**2, torch.ones_like(level))


def test_uniform_time_is_uniform_in_time(process, uniform):
    levels = LEVELS["uniform-time"](uniform, process, {})
    assert torch.allclose(process.time(levels), process.eps + (1 - process.eps) * uniform, rtol=1e-7, atol=1e-9)


def test_uniform_time_of_ve_is_log_uniform(uniform):
    logs = torch.log(LEVELS["uniform-time"](uniform, SDES["ve"](eps=1e-9), {}))
    assert torch.allclose(logs.diff(), torch.full((1000,), math.log(5000) / 1000, dtype=torch.float64), rtol=1e-6)


def test_log_normal_has_the_stated_quantiles_whatever_the_process(process):
    uniform = torch.tensor([0.022750131948, 0.5, 0.841344746069, 0.0, 1.0], dtype=torch.float64)
    logs = torch.log(LEVELS["log-normal"](uniform, process, {"mean": -1.2, "std": 1.2}))
    assert torch.allclose(logs[:3], torch.tensor([-3.6, -1.2, 0.0], dtype=torch.float64), atol=1e-8)
    assert logs.isfinite().all()


def test_any_pair_of_levels_and_weight_is_finite(process, uniform):
    for levels in LEVELS.values():
        drawn = levels(uniform, process, {"mean": -1.2, "std": 1.2})
        for weight in WEIGHTS.values():
            value = weight(drawn, process, STD)
            assert value.shape == drawn.shape and (value > 0).all() and value.float().isfinite().all()
