"""The score model against closed forms: preconditioning, loss of a known denoiser, conditioning, gradients."""

import math

import pytest
import torch

from diffusion_model.data import Scaling
from diffusion_model.objective import LEVELS, WEIGHTS
from diffusion_model.precondition import PRECONDITIONS
from diffusion_model.score_model import MODES, ScoreModel

SHAPE = (3, 8, 8)


def make(mode="none", precondition="edm", **objective):
    config = {
        "model": {
            "mode": mode, "precondition": precondition, "unit": "data", "features": 8, "multipliers": (1, 2), "blocks": 1,
            "attention": (4,), "dropout": 0.0, "embedding": "fourier", "fourier_scale": 4.0,
        },
        "encoder": {"widen": 0.25, "fourier_scale": 4.0},
        "sde": {"name": "ve", "sigma_min": 0.01, "sigma_max": 50.0},
        "objective": {"weight": "dsm", "levels": "uniform-time", "mean": -1.2, "std": 1.2, "lambda_z": None} | objective,
    }  # fmt: skip
    torch.manual_seed(0)
    return ScoreModel(config, SHAPE, Scaling((1 / 127.5,) * 3, (-1.0,) * 3), std=0.5)


@torch.no_grad()
def moved(model):
    """Output convolutions start near zero (1e-10): move them, or what lies before them hardly shows."""
    for parameter in model.parameters():
        parameter.add_(0.02 * torch.randn_like(parameter))


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
    moved(model)
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
    for mode, terms in (
        ("probabilistic-drl", {"score", "kl"}), ("reg-drl", {"score", "l1"}), ("noreg-drl", {"score"}),
        ("vae-l2", {"reconstruction", "kl"}), ("ae-bce", {"reconstruction"}),
    ):  # fmt: skip
        model = make(mode)
        assert set(model.loss(torch.randn(6, *SHAPE), draws_for(model))) == terms
        assert (model.net is None) == ("reconstruction" in terms) == (model.decoder is not None)


@pytest.mark.parametrize(("mode", "weight"), [("probabilistic-drl", 1e-5), ("vae-l2", 1.0), ("vae-bce", 1.0)])
def test_the_regulariser_is_the_divergence_at_the_modes_weight_or_the_one_given(mode, weight):
    model = make(mode).eval()
    x0, draws = torch.randn(6, *SHAPE), draws_for(make(mode))
    with torch.no_grad():
        posterior = model.encode(x0, model.time_of(draws["level"]))
        normal = torch.distributions.Normal(posterior.mean, (posterior.logvar / 2).exp())
        divergence = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0, 1)).sum(1).mean()
        assert torch.allclose(model.loss(x0, draws)["kl"], weight * divergence, rtol=1e-5)
        model.config["objective"]["lambda_z"] = 0.25
        assert torch.allclose(model.loss(x0, draws)["kl"], 0.25 * divergence, rtol=1e-5)


@pytest.mark.parametrize("kind", ["l2", "bce"])
def test_the_reconstruction_loss_is_half_the_sum_over_pixels(kind, monkeypatch):
    """l2: 0.5 |d - x0|^2. bce: half the entropy of the pixels where the decoder gives exactly their logits."""
    model, pixels = make(f"ae-{kind}"), torch.randint(1, 255, (5, *SHAPE), dtype=torch.uint8)
    x0, draws = model.scaling.to_model(pixels), draws_for(model, 5)
    unit = pixels / 255
    output, exact = {
        "l2": (x0 + 0.3, 0.5 * 0.09 * math.prod(SHAPE)),
        "bce": (torch.logit(unit), -0.5 * (torch.xlogy(unit, unit) + torch.xlogy(1 - unit, 1 - unit)).sum() / 5),
    }[kind]
    monkeypatch.setattr(model.decoder, "forward", lambda c_noise, code: output)
    assert float(model.loss(x0, draws)["reconstruction"]) == pytest.approx(float(exact), rel=1e-5)
    made = model.scaling.to_pixels(model.reconstruct(draws["level"], torch.zeros(5, model.encoder.dimension)))
    assert torch.equal(made, pixels if kind == "bce" else model.scaling.to_pixels(x0 + 0.3))


def test_a_model_that_reconstructs_has_no_score_and_one_that_scores_no_decoder():
    with pytest.raises(ValueError, match="it reconstructs and has no score"):
        make("vae-l2").denoise(torch.randn(2, *SHAPE), torch.tensor(1.0), torch.randn(2, 16))
    with pytest.raises(ValueError, match="no decoder"):
        make("reg-drl").reconstruct(torch.tensor(1.0), torch.randn(2, 16))


@pytest.mark.parametrize("mode", ["none", "probabilistic-drl", "ae-bce"])
def test_bfloat16_products_change_a_loss_by_their_rounding_alone(mode):
    model = make(mode).eval()
    x0, draws = torch.randn(6, *SHAPE), draws_for(model)
    moved(model)
    with torch.no_grad():
        exact = model.loss(x0, draws)
        model.precision = torch.bfloat16
        rounded = model.loss(x0, draws)
    for name, value in exact.items():
        assert rounded[name].dtype == torch.float32
        assert 0 < abs(float(rounded[name] / value) - 1) < 0.02, name


def test_a_drl_model_has_no_unconditional_score():
    with pytest.raises(ValueError, match=r"no unconditional score; use a run of configs/edm.py"):
        make("reg-drl").denoise(torch.randn(2, *SHAPE), torch.tensor(1.0))
    with pytest.raises(ValueError, match="no encoder"):
        make().encode(torch.randn(2, *SHAPE), torch.tensor(0.5))


def test_mixup_with_share_one_is_no_mixup_at_twice_the_weight():
    model = make("reg-drl").eval()
    x0, draws = torch.randn(6, *SHAPE), draws_for(model)
    plain = model.loss(x0, draws)
    mixed = model.loss(x0, draws | {"share": torch.ones(6), "other": torch.randn(6, *SHAPE)})
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
