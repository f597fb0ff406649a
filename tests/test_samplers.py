"""Samplers against a Gaussian, whose denoiser and probability flow are closed form."""

import itertools

import pytest
import torch

from diffusion_model import samplers
from diffusion_model.experiment import sample_noise

VARIANCE = torch.tensor([4.0, 1.0, 0.25, 0.01], dtype=torch.float64)
MEAN = torch.tensor([1.0, -2.0, 0.5, 0.0], dtype=torch.float64)


def denoise(x, level):
    """E[x0 | x] of N(MEAN, diag(VARIANCE))."""
    return MEAN.to(x) + VARIANCE.to(x) / (VARIANCE.to(x) + level**2) * (x - MEAN.to(x))


def flow(x, start, end):
    """Where the probability flow takes x from one level to another."""
    return MEAN + ((VARIANCE + end**2) / (VARIANCE + start**2)).sqrt() * (x - MEAN)


def last(states):
    """The last state."""
    *_, state = states
    return state


def starts(count=64):
    """States at level 10."""
    return sample_noise("start", range(count), (4,)).double() * 10


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_order(name):
    sampler, order = samplers.SAMPLERS[name]
    x = starts()
    errors = []
    for steps in (40, 80, 160):
        levels = torch.linspace(10**0.2, 0.5**0.2, steps + 1, dtype=torch.float64) ** 5
        errors.append((last(sampler(denoise, x, levels)) - flow(x, 10.0, 0.5)).abs().max().item())
    for coarse, fine in itertools.pairwise(errors):
        assert coarse / fine == pytest.approx(2**order, rel=0.15)


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_the_trajectory_is_the_value(name):
    x, levels = starts(3), samplers.edm_levels(9, 0.01, 10.0)
    states = list(samplers.SAMPLERS[name][0](denoise, x, levels))
    assert len(states) == len(levels) == 10
    assert states[0] is x
    assert last(samplers.SAMPLERS[name][0](denoise, x, levels)).equal(states[-1])


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_number_of_evaluations(name):
    calls = []

    def counted(x, level):
        calls.append(float(level))
        return denoise(x, level)

    for levels in (samplers.edm_levels(18), samplers.edm_levels(18)[:-1], samplers.edm_levels(18)[5:]):
        calls.clear()
        last(samplers.SAMPLERS[name][0](counted, starts(1), levels))
        assert len(calls) == samplers.evaluations(name, levels)
        assert min(calls) > 0
    assert samplers.evaluations("heun", samplers.edm_levels(18)) == 35  # Karras et al. 2022, section 3


def test_the_grid_of_the_paper():
    levels = samplers.edm_levels(18)
    assert levels.dtype == torch.float64
    assert levels[-1] == 0
    expected = torch.tensor(
        [80, 57.586, 40.786, 28.375, 19.352, 12.910, 8.401, 5.315, 3.257, 1.923, 1.088], dtype=torch.float64
    )
    torch.testing.assert_close(levels[:11], expected, atol=6e-4, rtol=0)
    assert levels[17].item() == pytest.approx(0.002)
    assert (levels.diff() < 0).all()


def test_the_tail_of_a_grid_is_a_grid():
    whole = samplers.edm_levels(18)
    torch.testing.assert_close(samplers.edm_levels(14, level_max=whole[4].item()), whole[4:], atol=0, rtol=1e-12)


@pytest.mark.parametrize(("arguments", "sentence"), [((1,), "1 solver steps: expected at least 2"), ((9, 0.0), "expected 0 <"),
                                                     ((9, 2.0, 1.0), "expected 0 < minimum < maximum")])  # fmt: skip
def test_wrong_grids(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        samplers.edm_levels(*arguments)


def test_samples_have_the_mean_and_variance_of_the_data():
    levels = samplers.edm_levels(40, 0.002, 80.0)
    x = sample_noise("start", range(4000), (4,)).double() * 80
    x = last(samplers.heun(denoise, MEAN + x * ((VARIANCE + 80**2).sqrt() / 80), levels))
    torch.testing.assert_close(x.mean(0), MEAN, atol=0.1, rtol=0)
    torch.testing.assert_close(x.var(0), VARIANCE, atol=0.01, rtol=0.08)


def test_start_noise_is_bit_equal_and_samples_agree_whatever_the_batch():
    levels = samplers.edm_levels(12, 0.01, 10.0)
    whole = sample_noise("start", range(7), (4,))
    for size in (1, 3):
        parts = [sample_noise("start", range(low, min(low + size, 7)), (4,)) for low in range(0, 7, size)]
        assert torch.cat(parts).equal(whole)
        sampled = torch.cat([last(samplers.heun(denoise, part * 10, levels)) for part in parts])
        torch.testing.assert_close(sampled, last(samplers.heun(denoise, whole * 10, levels)), atol=1e-3, rtol=0)
    assert not sample_noise("other", range(7), (4,)).equal(whole)


def test_no_gradients_are_kept():
    x = starts(2).requires_grad_()
    assert not last(samplers.heun(denoise, x, samplers.edm_levels(4))).requires_grad
