"""The score model against closed forms: preconditioning, loss of a known denoiser, conditioning, gradients."""

import math

import pytest
import torch

from diffusion_model.data import Scaling
from diffusion_model.precondition import PRECONDITIONS
from diffusion_model.score_model import LEVELS, MODES, WEIGHTS, ScoreModel

SHAPE = (3, 8, 8)


def make(mode="none", precondition="edm", **objective):
    config = {
        "model": {
            "mode": mode, "precondition": precondition, "unit": "data", "features": 8, "multipliers": (1, 2), "blocks": 1,
            "attention": (4,), "dropout": 0.0, "fourier_scale": 4.0,
        },
        "encoder": {"widen": 0.25, "fourier_scale": 4.0},
        "sde": {"name": "ve", "sigma_min": 0.01, "sigma_max": 50.0},
        "objective": {"weight": "dsm", "levels": "uniform-time", "mean": -1.2, "std": 1.2, "lambda_z": 1e-5} | objective,
    }  # fmt: skip
    torch.manual_seed(0)
    return ScoreModel(config, SHAPE, Scaling((1 / 127.5,) * 3, (-1.0,) * 3), std=0.5)


def draws_for(model, batch=6):
    draws = {"level": torch.rand(batch) * 3 + 0.1, "noise": torch.randn(batch, *SHAPE)}
    if model.encoder is not None:
        draws["code_noise"] = torch.randn(batch, model.encoder.dimension)
    return draws


@pytest.mark.parametrize("weight", WEIGHTS)
def test_loss_of_the_exact_gaussian_denoiser_is_its_analytic_value(weight, monkeypatch):
    """x0 ~ N(0, s^2 I): the best denoiser s^2 / (s^2 + l^2) x has error D s^2 l^2 / (s^2 + l^2)."""
    model = make(weight=weight)
    std, level, count = model.std, 0.7, 4096
    monkeypatch.setattr(
        model, "denoise", lambda x, level, code=None: x * (std**2 / (std**2 + level**2))[:, None, None, None]
    )
    torch.manual_seed(1)
    x0 = std * torch.randn(count, *SHAPE)
    loss = model.loss(x0, {"level": torch.full((count,), level), "noise": torch.randn(count, *SHAPE)})["score"]
    dimension = math.prod(SHAPE)
    factor = float(WEIGHTS[weight](torch.tensor(level, dtype=torch.float64), model.sde, std))
    exact = factor * dimension * std**2 * level**2 / (std**2 + level**2)
    assert float(loss) == pytest.approx(exact, rel=6 * math.sqrt(2 / (count * dimension)))


def test_dsm_weight_is_the_papers_loss():
    """0.5 |sigma s + noise|^2 with s = (denoise - x) / sigma^2."""
    model, level = make(), torch.full((4,), 1.3)
    x0, noise = torch.randn(4, *SHAPE), torch.randn(4, *SHAPE)
    with torch.no_grad():
        score = model.score(x0 + 1.3 * noise, level)
        paper = 0.5 * (1.3 * score + noise).square().flatten(1).sum(1).mean()
        mine = model.loss(x0, {"level": level, "noise": noise})["score"]
    assert torch.allclose(mine, paper, rtol=1e-4)


@pytest.mark.parametrize("precondition", PRECONDITIONS)
@pytest.mark.parametrize("mode", MODES)
def test_gradients_reach_every_parameter(mode, precondition):
    model = make(mode, precondition)
    # output convolutions start near zero (1e-10): move them, or what lies before them sees no gradient to speak of
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    sum(model.loss(torch.randn(6, *SHAPE), draws_for(model)).values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        cancelled = name.startswith("encoder.") and name.endswith(
            ("conv0.bias", "conv1.bias", "shift.bias", "skip.bias", "stem.bias")
        )
        assert cancelled or parameter.grad.abs().sum() > 0, name  # batch-norm takes away a constant added before it


def test_what_a_mode_does_not_use_is_not_computed():
    assert make().encoder is None
    assert set(make().loss(torch.randn(6, *SHAPE), draws_for(make()))) == {"score"}
    for mode, term in (("probabilistic-drl", "kl"), ("reg-drl", "l1")):
        model = make(mode)
        assert set(model.loss(torch.randn(6, *SHAPE), draws_for(model))) == {"score", term}


def test_a_drl_model_has_no_unconditional_score():
    with pytest.raises(ValueError, match=r"no unconditional score; use a run of configs/edm.py"):
        make("reg-drl").denoise(torch.randn(2, *SHAPE), torch.tensor(1.0))
    with pytest.raises(ValueError, match="no encoder"):
        make().encode(torch.randn(2, *SHAPE), torch.tensor(0.5))


def test_mixup_with_share_one_is_no_mixup_at_twice_the_weight():
    model = make("reg-drl").eval()
    x0, draws = torch.randn(6, *SHAPE), draws_for(model)
    plain = model.loss(x0, draws)
    mixed = model.loss(x0, draws | {"share": torch.ones(6), "partner": torch.randperm(6)})
    assert torch.allclose(mixed["score"], 2 * plain["score"]) and torch.allclose(mixed["l1"], plain["l1"])


def test_the_encoders_time_labels_the_level_in_units_of_the_data():
    model = make("reg-drl")
    levels = model.std * 0.01 * 5000.0 ** torch.tensor([0.0, 0.3, 1.0])
    assert torch.allclose(model.time_of(levels), torch.tensor([0.0, 0.3, 1.0]), atol=1e-6)
    assert torch.equal(model.time_of(torch.tensor([1e-6, 1e6])), torch.tensor([0.0, 1.0]))


def test_level_distributions():
    """Uniform time is log-uniform between the ends; log-normal has the stated median and quantiles."""
    model = make()
    uniform = torch.linspace(0, 1, 10_001, dtype=torch.float64)
    levels = LEVELS["uniform-time"](uniform, model.sde, model.config["objective"])
    assert float(levels[0]) == pytest.approx(0.5 * 0.01, rel=1e-3) and float(levels[-1]) == pytest.approx(
        25.0, rel=1e-9
    )
    assert float(levels[5000]) == pytest.approx(0.5 * math.sqrt(0.01 * 50), rel=1e-3)
    levels = LEVELS["log-normal"](uniform, model.sde, model.config["objective"]).log()
    assert float(levels[5000]) == pytest.approx(-1.2) and float(levels[8413]) == pytest.approx(0.0, abs=2e-3)


def test_sides_that_cannot_be_halved_are_refused():
    model = make()
    with pytest.raises(ValueError, match="cannot be halved"):
        ScoreModel(
            model.config | {"model": model.config["model"] | {"multipliers": (1, 1, 1, 1, 1)}},
            SHAPE,
            model.scaling,
            0.5,
        )


def test_blocks_have_names_that_say_what_they_are():
    net = make().net
    assert list(net.down) == ["8x8_in", "8x8_block0", "4x4_down", "4x4_pyramid", "4x4_block0", "4x4_attention0"]
    assert list(net.up) == ["4x4_block0", "4x4_block1", "4x4_attention", "8x8_up", "8x8_block0", "8x8_block1"]
