"""Preconditioning against the definitions it stands for, written in x_t coordinates."""

import math

import pytest
import torch

from diffusion_model.precondition import PRECONDITIONS
from diffusion_model.sde import SDES

STD, DIMENSION = 0.5, 6
LEVELS = torch.logspace(-3, 5, 60, dtype=torch.float64)


@pytest.fixture(params=SDES)
def process(request):
    return SDES[request.param]()


@pytest.fixture
def net():
    """A linear network of input and noise label, F(x, c) = A x + c b."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(DIMENSION, DIMENSION, dtype=torch.float64, generator=generator)
    vector = torch.randn(DIMENSION, dtype=torch.float64, generator=generator)
    return lambda x, c: x @ matrix.T + c[:, None] * vector


def denoise(form, net, y, level, process, unit=1.0):
    c_skip, c_out, c_in, c_noise = PRECONDITIONS[form](level, process, unit, STD)
    return c_skip[:, None] * y + c_out[:, None] * net(c_in[:, None] * y, c_noise)


def normal(count, seed=1):
    return torch.randn(count, DIMENSION, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", ["vp", "subvp"])
def test_vp_and_sub_vp_are_score_sdes_score_of_x_t(name, net):
    """score(x_t) = -net(x_t, 999 t) / std there; Tweedie's formula then gives x0 = (x_t + std^2 score) / alpha."""
    process, t = SDES[name](), torch.linspace(1e-5, 1, 40, dtype=torch.float64)
    integral = 0.1 * t + 19.9 * t**2 / 2
    alpha, std = torch.exp(-integral / 2), -torch.expm1(-integral)
    std = torch.sqrt(std) if name == "vp" else std
    x = normal(len(t))
    score = -net(x, 999 * t) / std[:, None]
    expected = (x + std[:, None] ** 2 * score) / alpha[:, None]
    found = denoise("sde", net, x / alpha[:, None], std / alpha, process)
    assert torch.allclose(found, expected, rtol=1e-7, atol=1e-9 * float(expected.abs().max()))


def test_ve_is_score_sdes_score_over_sigma(net):
    """score(x) = net(x, ln sigma) / sigma there, x0 = x + sigma^2 score; sigma counted in units of the trained net."""
    process = SDES["ve"](unit=2.0)
    sigma = process.sigma(torch.linspace(0, 1, 40, dtype=torch.float64))
    x = normal(len(sigma))
    expected = x + sigma[:, None] * net(x, torch.log(sigma / 2.0))
    assert torch.allclose(denoise("ve", net, x, sigma, process, unit=2.0), expected)


def test_alpha_of_a_level_in_closed_form():
    """VP: alpha = 1 / sqrt(1 + level^2); sub-VP: exp(-asinh(level / 2)). They are not the same."""
    for name, closed in (("vp", 1 / torch.sqrt(1 + LEVELS**2)), ("subvp", torch.exp(-torch.asinh(LEVELS / 2)))):
        c_in = PRECONDITIONS["sde"](LEVELS, SDES[name](), 1.0, STD)[2]
        assert torch.allclose(c_in, closed, rtol=1e-9)


@pytest.mark.parametrize("name", PRECONDITIONS)
def test_coefficients_are_finite_from_end_to_end(name, process):
    for value in PRECONDITIONS[name](LEVELS, process, 1.0, STD):
        assert value.shape == LEVELS.shape and value.float().isfinite().all()


@pytest.mark.parametrize("name", PRECONDITIONS)
def test_what_a_form_asks_of_the_network_is_tame(name, process):
    """F = (x0 - c_skip y) / c_out for x0 ~ N(0, std^2): variance 1 for edm and the noise itself, +-1, for the others."""
    c_skip, c_out, c_in, _ = PRECONDITIONS[name](LEVELS, process, 1.0, STD)
    target = ((1 - c_skip) ** 2 * STD**2 + c_skip**2 * LEVELS**2) / c_out**2
    assert torch.allclose(target, torch.ones_like(LEVELS), rtol=1e-6)
    if name == "edm":
        assert torch.allclose(c_in**2 * (LEVELS**2 + STD**2), torch.ones_like(LEVELS))
    if name == "sde" and not isinstance(process, SDES["ve"]):
        assert float((c_in * LEVELS).max()) <= 1 + 1e-9  # x_t is never louder than unit noise


def test_edms_skip_is_the_best_linear_denoiser():
    c_skip, c_out, _, _ = PRECONDITIONS["edm"](LEVELS, SDES["ve"](), 1.0, STD)
    assert torch.allclose(c_skip, STD**2 / (STD**2 + LEVELS**2)) and torch.allclose(c_out**2, LEVELS**2 * c_skip)


@pytest.mark.parametrize("name", ["ve", "edm"])
def test_c_noise_keeps_the_units_of_training(name):
    """Levels and unit doubled together leave the label alone; its formula is ln level, over 4 for edm."""
    process, form = SDES["ve"](), PRECONDITIONS[name]
    label = form(LEVELS, process, 1.0, STD)[3]
    assert torch.allclose(form(2 * LEVELS, process, 2.0, STD)[3], label)
    assert torch.allclose(label, torch.log(LEVELS) / (4 if name == "edm" else 1))


def test_the_label_of_vp_is_999_at_t_1():
    level = torch.tensor([math.sqrt(math.expm1(0.1 + 19.9 / 2))], dtype=torch.float64)
    assert float(PRECONDITIONS["sde"](level, SDES["vp"](), 1.0, STD)[3]) == pytest.approx(999)


@pytest.mark.parametrize("name", ["ve", "edm"])
def test_the_forms_of_levels_alone_do_not_see_the_process(name):
    """So that runs with log-normal levels are the same training under any process."""
    for others in zip(*(PRECONDITIONS[name](LEVELS, kind(), 1.0, STD) for kind in SDES.values()), strict=True):
        assert all(torch.equal(value, others[0]) for value in others)
