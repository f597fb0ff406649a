"""Layers against their definitions: what is fast on a CPU is what torch's own layer is."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from diffusion_model.layers import Dropout, GroupNorm, LevelEmbedding, Positional, attend


def test_dropout_keeps_its_share_and_the_mean_and_passes_the_gradient_of_what_it_kept():
    torch.manual_seed(0)
    x = torch.ones(64, 16, 33, 31).to(memory_format=torch.channels_last).requires_grad_()
    y = Dropout(0.1)(x)
    kept = y.detach() != 0
    count = x.numel()
    assert float(kept.double().mean()) == pytest.approx(0.9, abs=5 * math.sqrt(0.09 / count))
    assert torch.unique(y.detach()).tolist() == pytest.approx([0, 1 / 0.9], rel=1e-4)
    assert y.stride() == x.stride()
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())
    neighbours = (kept[..., 1:] & kept[..., :-1]).double().mean()  # the bits of one number are independent
    assert float(neighbours) == pytest.approx(0.81, abs=5 * math.sqrt(0.81 * 0.19 / count))


def test_dropout_is_a_function_of_the_seed_and_nothing_in_evaluation():
    x = torch.randn(3, 4, 5, 5)
    draws = []
    for _ in range(2):
        torch.manual_seed(7)
        draws.append(Dropout(0.5)(x))
    assert torch.equal(*draws) and not torch.equal(draws[0], Dropout(0.5)(x))
    assert Dropout(0.5).eval()(x) is x and Dropout(0.0)(x) is x


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_attention_is_its_formula(dtype, tolerance):
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 1, 49, 16).to(dtype)
    exact = torch.softmax(query.double() @ key.double().transpose(-1, -2) / 4, dim=-1) @ value.double()
    assert torch.allclose(attend(query, key, value).double(), exact, atol=tolerance)


def test_normalisation_is_torchs_in_float32_whatever_comes_in():
    torch.manual_seed(0)
    own, torchs = GroupNorm(4, 16), nn.GroupNorm(4, 16)
    x = torch.randn(2, 16, 5, 5).bfloat16()
    assert torch.equal(own(x), torchs(x.float())) and own.state_dict().keys() == torchs.state_dict().keys()


def test_positional_features_are_sines_at_geometric_wavelengths():
    c = torch.tensor([0.0, 1.0, 999.0])
    features = Positional(8)(c)
    angles = c[:, None] * torch.tensor([1, 10 ** (-4 / 3), 10 ** (-8 / 3), 1e-4])
    assert torch.allclose(features, torch.cat([angles.sin(), angles.cos()], 1), atol=1e-4)
    assert LevelEmbedding(8, 16.0, 32, "positional")(c).shape == (3, 32)


def test_attention_on_other_devices_and_types_is_torchs(monkeypatch):
    asked = []
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *parts: asked.append(parts) or parts[2])
    attend(*torch.randn(3, 1, 4, 4))
    attend(*torch.randn(3, 1, 4, 4).bfloat16())
    assert len(asked) == 1
