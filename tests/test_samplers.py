"""Samplers against a Gaussian, whose denoiser and probability flow are closed form."""

import functools
import itertools
import math
import weakref
from fractions import Fraction

import numpy as np
import pytest
import torch

from diffusion_model import data, experiment, main, samplers, sampling
from diffusion_model.experiment import sample_noise
from diffusion_model.samplers import last
from diffusion_model.sde import SDES
from linear_structure import sweeps

VARIANCE = torch.tensor([4.0, 1.0, 0.25, 0.01], dtype=torch.float64)
MEAN = torch.tensor([1.0, -2.0, 0.5, 0.0], dtype=torch.float64)


def denoise(x, level):
    """E[x0 | x] of N(MEAN, diag(VARIANCE))."""
    return MEAN.to(x) + VARIANCE.to(x) / (VARIANCE.to(x) + level**2) * (x - MEAN.to(x))


def flow(x, start, end):
    """Where the probability flow takes x from one level to another."""
    return MEAN + ((VARIANCE + end**2) / (VARIANCE + start**2)).sqrt() * (x - MEAN)


def starts(count=64):
    """States at level 10."""
    return sample_noise("start", range(count), (4,)).double() * 10


def orders(sampler, make):
    """Measured orders of a sampler's error, from 40, 80 and 160 steps on the grids that `make` makes of a number."""
    x, errors = starts(), []
    for steps in (40, 80, 160):
        levels = make(steps)
        errors.append((last(sampler(denoise, x, levels)) - flow(x, levels[0], levels[-1])).abs().max().item())
    return [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]


def power_levels(steps):
    """A grid from 10 to .5 that does not end at 0."""
    return torch.linspace(10**0.2, 0.5**0.2, steps + 1, dtype=torch.float64) ** 5


def gentle_levels(steps):
    """The same range uniform in ln level, with a few short steps first, that the order of the start costs nothing."""
    whole = torch.linspace(math.log(10), math.log(0.5), steps + 1, dtype=torch.float64)
    short = whole[0] + (whole[1] - whole[0]) / steps * torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    return torch.cat([whole[:1], short, whole[1:]]).exp()


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_order(name):
    sampler, order, _ = samplers.SAMPLERS[name]
    # UniPC-3 gains one by its corrector, until the error of its first step, of order 3, is the largest
    least, most = order, order + name.startswith("unipc")
    for found in orders(sampler, power_levels):
        assert least - 0.1 < found < most + 0.1


@pytest.mark.parametrize("variant", samplers.B)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_order_of_unipc_is_its_own_and_one_more_with_the_corrector(order, variant):
    for corrector in (False, True):
        sampler = functools.partial(samplers.unipc, order=order, variant=variant, corrector=corrector)
        for found in orders(sampler, gentle_levels):
            assert found == pytest.approx(order + corrector, abs=0.25)


def test_lowering_the_last_steps_costs_unipc_its_order_on_a_grid_that_ends_high():
    assert orders(functools.partial(samplers.unipc, lower_final=True), power_levels) == pytest.approx([2, 2], abs=0.05)
    assert orders(functools.partial(samplers.dpmpp_2m, lower_final=True), power_levels) == pytest.approx(
        [2, 2], abs=0.05
    )


def test_the_last_steps_are_lowered_where_the_grid_is_short_or_ends_at_0():
    whole = samplers.edm_levels(12, 0.01, 10.0)
    for levels, lowered in ((whole, True), (whole[4:], True), (whole[:-1], False), (whole[4:-1], True)):
        chosen, yes, no = (
            last(samplers.unipc(denoise, starts(3), levels, lower_final=lower)) for lower in (None, True, False)
        )
        assert (chosen.equal(yes), chosen.equal(no)) == (lowered, not lowered)


def test_first_order_unipc_without_corrector_is_ddim_is_euler_is_the_exponential_step():
    x, levels = starts(5), samplers.edm_levels(9, 0.01, 10.0)
    plain = samplers.unipc(denoise, x, levels, order=1, corrector=False)
    for ours, theirs, before, level, following in zip(
        itertools.islice(plain, 1, None), itertools.islice(samplers.euler(denoise, x, levels), 1, None),
        samplers.euler(denoise, x, levels), levels, levels[1:], strict=False,
    ):  # fmt: skip
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)
        ddim = following / level * before + (1 - following / level) * denoise(before, level)
        torch.testing.assert_close(ours, ddim, atol=1e-12, rtol=1e-12)


def test_one_step_of_2m_is_ddim():
    x, levels = starts(5), torch.tensor([7.0, 3.0], dtype=torch.float64)
    torch.testing.assert_close(
        last(samplers.dpmpp_2m(denoise, x, levels)), last(samplers.euler(denoise, x, levels)), atol=1e-13, rtol=1e-13
    )


@pytest.mark.parametrize("lower_final", [None, True, False])
def test_2m_is_the_predictor_of_second_order_unipc(lower_final):
    x = starts(5)
    for levels in (samplers.edm_levels(9, 0.01, 10.0), samplers.edm_levels(9, 0.01, 10.0)[:-1]):
        ours = samplers.unipc(denoise, x, levels, 2, "bh2", corrector=False, lower_final=lower_final)
        for one, other in zip(ours, samplers.dpmpp_2m(denoise, x, levels, lower_final), strict=True):
            torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12)


def test_2m_is_the_published_formula():
    """Equations of Lu et al. 2022, algorithm 2, by logarithms, in three steps."""
    x, levels = starts(5), torch.tensor([8.0, 5.0, 2.0, 1.5], dtype=torch.float64)
    states = list(samplers.dpmpp_2m(denoise, x, levels, lower_final=False))
    h = levels[:-1].log() - levels[1:].log()
    for step in (1, 2):
        r = h[step - 1] / h[step]
        now, before = (denoise(states[index], levels[index]) for index in (step, step - 1))
        mixed = (1 + 1 / (2 * r)) * now - 1 / (2 * r) * before
        expected = levels[step + 1] / levels[step] * states[step] - torch.expm1(-h[step]) * mixed
        torch.testing.assert_close(states[step + 1], expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize(("order", "corrected"), [(3, 0), (4, 0), (2, 1), (3, 1), (4, 1)])
def test_unipc_weights_integrate_polynomials_in_the_log_level_exactly(order, corrected):
    """Integral of e^(u - h) u^i over a step, against Gauss-Legendre quadrature; whatever B."""
    known, following = [2.0, 2.6, 3.5, 5.0][:order], 1.3
    h = math.log(known[0] / following)
    nodes, masses = np.polynomial.legendre.leggauss(20)
    nodes, masses = (nodes + 1) * h / 2, masses * h / 2
    others = [*known[1:], *[following] * corrected]
    for variant in samplers.B:
        weights = samplers.unipc_weights([known[0], *others], following, variant)
        for degree in range(1, len(others) + 1):
            found = sum(w * math.log(known[0] / level) ** degree for w, level in zip(weights, others, strict=True))
            assert found == pytest.approx(float(masses @ (np.exp(nodes - h) * nodes**degree)), rel=1e-11)


def test_a_polynomial_denoiser_is_solved_exactly():
    """D quadratic in lambda alone: UniPC-3 makes no error once it has two evaluations behind it, and lowers nothing."""

    def known(x, level):
        return torch.ones_like(x) * (1 - 2 * level.log() + 3 * level.log() ** 2)

    levels = torch.tensor([9.0, 6.0, 4.0, 3.0, 1.0], dtype=torch.float64)
    # e^-u integrals of D with lambda = -ln level: y = (1, 2, 3) against 1, lambda, lambda^2 has x = 5 - 4 lambda + 3 lambda^2
    states = list(samplers.unipc(known, starts(2), levels, lower_final=False))
    for now, following, level, after in zip(states[2:], states[3:], levels[2:], levels[3:], strict=False):
        particular = [5 - 4 * -value.log() + 3 * value.log() ** 2 for value in (level, after)]
        torch.testing.assert_close(following - particular[1], (now - particular[0]) * after / level, atol=1e-11, rtol=0)


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

    whole = samplers.edm_levels(18)
    for levels in (whole, whole[:-1], whole[5:], whole[-3:], whole[-2:], whole[:2], whole[:1]):
        calls.clear()
        last(samplers.SAMPLERS[name][0](counted, starts(1), levels))
        assert len(calls) == samplers.evaluations(name, levels)
        assert min(calls, default=1) > 0
    assert samplers.evaluations("heun", samplers.edm_levels(18)) == 35  # Karras et al. 2022, section 3
    assert samplers.evaluations("unipc-bh2", samplers.edm_levels(10)) == 10


@pytest.mark.parametrize("name", samplers.SAMPLERS)
@pytest.mark.parametrize("to_zero", [True, False])
def test_steps_within_a_budget_are_the_most_that_fit(name, to_zero):
    for budget in range(5, 30):
        steps = samplers.steps_within(name, budget, to_zero)
        # a grid of N steps has N levels above 0 where it ends at 0, else N + 1
        least, more = (
            samplers.evaluations(
                name, samplers.edm_levels(count + 1)[1:] if to_zero else samplers.edm_levels(count + 1)[:-1]
            )
            for count in (steps, steps + 1)
        )
        assert least <= budget < more


def test_budgets_of_the_authors():
    # Wang & Vastola 2024: budget // 2 steps of Heun, and one of Euler to 0 where the budget is odd
    for budget in (5, 15, 25):
        assert samplers.steps_within("heun", budget) == budget // 2 + 1
        assert samplers.steps_within("dpmpp-2m", budget) == budget
    assert samplers.steps_within("heun", 6, to_zero=False) == 3
    with pytest.raises(ValueError, match="a budget of 2 evaluations: heun needs at least 3, for two steps"):
        samplers.steps_within("heun", 2)


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


class Plain(torch.nn.Module):
    """A denoiser with what a run's model has beside it."""

    def __init__(self):
        super().__init__()
        self.shape, self.scaling, self.weight = (
            (1, 2, 2),
            data.Scaling((1.0,), (0.0,)),
            torch.nn.Parameter(torch.ones(1)),
        )

    def denoise(self, x, level):
        return x / (1 + level**2)


@pytest.mark.parametrize("who", ["last", "a sweep", "samples"])
@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_the_last_state_of_many_is_kept_and_no_other(name, who, monkeypatch):
    """However many steps there are, at most a few states live at once: memory does not grow with them."""
    run, model, held, most = samplers.SAMPLERS[name].run, Plain(), [], 0

    def watched(*given):
        nonlocal most
        for state in run(*given):
            held.append(weakref.ref(state))
            most = max(most, sum(entry() is not None for entry in held))
            yield state

    monkeypatch.setitem(samplers.SAMPLERS, name, samplers.Sampler(watched, 1, 1))
    levels = samplers.edm_levels(40, 0.01, 10.0)
    if who == "last":
        x = levels[0].float() * sample_noise("start", range(3), model.shape)
        assert torch.equal(
            last(samplers.SAMPLERS[name].run(model.denoise, x, levels)), list(run(model.denoise, x, levels))[-1]
        )
    elif who == "a sweep":
        list(sweeps.draw(model.denoise, None, name, 10.0, levels, range(4), model.shape, 2))
    else:
        sampling.sample_images(model, range(4), name, levels, 2)
    assert len(held) >= len(levels) and most <= 4


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_a_last_step_to_0_is_the_last_evaluation(name):
    """For UniPC the evaluation is at the prediction, which its corrector then moves; for all others at the state itself."""
    levels, seen = samplers.edm_levels(9, 0.01, 10.0), []

    def record(x, level):
        seen.append(denoise(x, level))
        return seen[-1]

    *_, before, end = samplers.SAMPLERS[name].run(record, starts(3), levels)
    torch.testing.assert_close(end, seen[-1], atol=1e-14, rtol=1e-14)
    if not name.startswith("unipc"):
        torch.testing.assert_close(end, denoise(before, levels[-2]), atol=1e-14, rtol=1e-14)


def test_a_last_step_to_0_is_the_limit_of_last_steps():
    levels = samplers.edm_levels(9, 0.01, 10.0)
    for sampler in (samplers.dpmpp_2m, samplers.unipc):
        end = last(sampler(denoise, starts(3), levels))
        for small in (1e-6, 1e-12):
            levels[-1] = small
            near = last(sampler(denoise, starts(3), levels, lower_final=True))
            torch.testing.assert_close(near, end, atol=1e3 * small + 1e-13, rtol=0)
        levels[-1] = 0


@pytest.mark.parametrize("name", ["euler", "heun"])
def test_one_step_methods_go_on_from_their_own_state_exactly(name):
    x, levels = starts(3), samplers.edm_levels(9, 0.01, 10.0)
    states = list(samplers.SAMPLERS[name].run(denoise, x, levels))
    for skip in range(9):
        for ours, theirs in zip(
            samplers.SAMPLERS[name].run(denoise, states[skip], levels[skip:]), states[skip:], strict=True
        ):
            assert ours.equal(theirs)


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_multistep_methods_go_on_from_their_own_state_up_to_their_error(name):
    """The history begins anew there, which costs no more than the order of the solver has it."""
    run, order, _ = samplers.SAMPLERS[name]
    differences = []
    for steps in (40, 80, 160):
        levels, x = power_levels(steps), starts()
        states = list(run(denoise, x, levels))
        differences.append(
            (last(run(denoise, states[steps // 2], levels[steps // 2 :])) - states[-1]).abs().max().item()
        )
    for coarse, fine in itertools.pairwise(differences):
        assert fine == 0 or coarse / fine > 0.8 * 2**order


@pytest.mark.parametrize("to_zero", [True, False])
@pytest.mark.parametrize("steps", [5, 18, 400])
@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_float32_agrees_with_float64(name, steps, to_zero):
    levels = samplers.edm_levels(steps)[: steps + to_zero]
    x = 8 * starts(16)
    found = last(samplers.SAMPLERS[name].run(denoise, x.float(), levels))
    assert found.dtype == torch.float32
    torch.testing.assert_close(
        found.double(), last(samplers.SAMPLERS[name].run(denoise, x, levels)), atol=2e-4, rtol=2e-5
    )


@pytest.mark.parametrize("k", [0, 1, 2, 3, 4])
def test_phi_functions_against_their_series_in_exact_fractions(k):
    for z in ("-1/1000000000000", "-1/1000", "-1/2", "-999/1000", "-1", "-3/2", "-6", "-11"):
        z, total, term = Fraction(z), Fraction(0), Fraction(1, math.factorial(k))
        for j in range(120):
            total += term
            term *= z / (j + k + 1)
        assert samplers.phi(k, float(z)) == pytest.approx(float(total), rel=1e-12)


def test_log_ratio_does_not_cancel():
    for tiny in (1e-15, 1e-8, 1e-3):
        level = 3.0
        following = level * (1 - tiny)
        exact = Fraction(level) / Fraction(following) - 1
        expected = sum((-1) ** (n + 1) * exact**n / n for n in range(1, 9))
        assert samplers.log_ratio(level, following) == pytest.approx(float(expected), rel=1e-15)
    assert samplers.log_ratio(80.0, 0.002) == pytest.approx(math.log(40000), rel=1e-15)
    assert samplers.log_ratio(1.0, 0.0) == math.inf


@pytest.mark.parametrize("sampler", [samplers.dpmpp_2m, samplers.unipc])
@pytest.mark.parametrize("levels", [[3.0, 3.0, 1.0], [1.0, 2.0], [2.0, -1.0], [2.0, 0.0, 0.0], [2.0, float("nan")]])
def test_multistep_methods_refuse_levels_that_do_not_decrease(sampler, levels):
    with pytest.raises(ValueError, match="expected them to decrease, from above 0 to 0 or more"):
        list(sampler(denoise, starts(1), torch.tensor(levels)))


def test_wrong_options_of_unipc():
    for options in ({"order": 0}, {"variant": "bh3"}):
        with pytest.raises(ValueError, match="expected order 1 or more, and one of bh1, bh2"):
            list(samplers.unipc(denoise, starts(1), samplers.edm_levels(4), **options))


def seeded(seeds):
    """The noise of each step, row by row a function of the seed."""
    return lambda step: sample_noise(f"churn {step}", seeds, (4,))


def test_no_churn_is_heun_bit_for_bit():
    x, levels = starts(5).float(), samplers.edm_levels(9, 0.01, 10.0)
    plain = list(samplers.heun(denoise, x, levels))
    for churn in (samplers.Churn(), samplers.Churn(40, low=20.0), samplers.Churn(40, high=0.001)):
        churned = list(samplers.heun(denoise, x, levels, churn, seeded(range(5))))
        assert all(one.equal(other) for one, other in zip(plain, churned, strict=True))


def test_churn_is_bit_equal_whatever_the_batch_and_resumes():
    levels, churn = samplers.edm_levels(12, 0.01, 10.0), samplers.Churn(20, 0.05, 8.0, 1.003, steps=12)
    x = 10 * sample_noise("start", range(7), (4,))
    states = list(samplers.heun(denoise, x, levels, churn, seeded(range(7))))
    for size in (1, 3):
        parts = [range(low, min(low + size, 7)) for low in range(0, 7, size)]
        ends = [last(samplers.heun(denoise, x[part.start : part.stop], levels, churn, seeded(part))) for part in parts]
        assert torch.cat(ends).equal(states[-1])
    resumed = last(samplers.heun(denoise, states[4], levels[4:], churn, lambda step: seeded(range(7))(step + 4)))
    assert resumed.equal(states[-1])
    assert not last(samplers.heun(denoise, x, levels)).equal(states[-1])


def churned_variances(steps, churn):
    """Variances [4] of a solver's last state, exactly: the sampler is linear, so each row carries one source of noise."""

    def linear(x, level):
        return VARIANCE / (VARIANCE + level**2) * x

    levels = power_levels(steps)
    sources = torch.zeros(steps + 1, 4, dtype=torch.float64)
    sources[0] = (VARIANCE + levels[0] ** 2).sqrt()
    rows = torch.eye(steps + 1, dtype=torch.float64)
    end = last(samplers.heun(linear, sources, levels, churn, lambda step: rows[step + 1][:, None].expand(-1, 4)))
    return end.square().sum(0)


@pytest.mark.parametrize("amount", [0.0, 3.0, 20.0])
def test_churn_keeps_the_variance_of_a_gaussian_to_the_order_of_the_solver(amount):
    errors = []
    for steps in (80, 160, 320):
        found = churned_variances(steps, samplers.Churn(amount, 0.6, 9.0))
        errors.append((found / (VARIANCE + 0.25) - 1).abs().max().item())
    assert errors[-1] < 2e-3
    for coarse, fine in itertools.pairwise(errors):
        assert coarse / fine > 3.4


def test_churn_with_too_much_noise_adds_variance():
    assert (churned_variances(160, samplers.Churn(20.0, 0.6, 9.0, 1.05)) > 1.01 * (VARIANCE + 0.25)).all()


def test_churn_raises_the_level_as_algorithm_2_has_it():
    levels, seen = samplers.edm_levels(18), []

    def record(x, level):
        seen.append(float(level))
        return denoise(x, level)

    # Karras et al. 2022, table 5, ImageNet-64: S_churn 40, S_min .05, S_max 50, S_noise 1.003; 40 / 18 exceeds the cap
    last(samplers.heun(record, 8 * starts(2), levels, samplers.Churn(40, 0.05, 50.0, 1.003), lambda step: starts(2)))
    assert len(seen) == samplers.evaluations("heun", levels)
    for level, first in zip(levels[:-1], seen[::2], strict=True):
        assert first == pytest.approx(float(level) * (2**0.5 if 0.05 <= level <= 50 else 1))


def test_wrong_churn_is_a_sentence():
    with pytest.raises(ValueError, match="churn of 3 and no noise"):
        list(samplers.heun(denoise, starts(1), samplers.edm_levels(4), samplers.Churn(3)))
    for values in ((-1,), (1, 3.0, 2.0), (float("nan"),), (1, 0, 1, -1)):
        with pytest.raises(ValueError, match="expected an amount and a scale of at least 0, and 0 <= low <= high"):
            samplers.Churn(*values)


@pytest.mark.parametrize("process", SDES)
@pytest.mark.parametrize("grid", samplers.GRIDS)
def test_grids_fall_from_the_greatest_level_to_the_least_and_0(grid, process):
    sde = SDES[process]()
    levels = samplers.make_levels(grid, sde, 18)
    assert (levels.dtype, len(levels), float(levels[-1])) == (torch.float64, 19, 0.0)
    assert (levels.diff() < 0).all()
    torch.testing.assert_close(levels[[-2, 0]], torch.tensor(sde.level_range(), dtype=torch.float64))
    ends = samplers.make_levels(grid, sde, 5, 0.3, 20.0)[[-2, 0]]
    torch.testing.assert_close(ends, torch.tensor([0.3, 20.0], dtype=torch.float64))


def test_grids_are_uniform_in_what_they_say():
    steps = samplers.log_levels(18)[:-1].log().diff()
    torch.testing.assert_close(steps, steps[:1].expand(17))
    for kind in SDES.values():
        steps = kind().time(samplers.time_levels(kind(), 18, 0.05, 15.0)[:-1]).diff()
        torch.testing.assert_close(steps, steps[:1].expand(17), rtol=1e-9, atol=0)
    ve = SDES["ve"]()
    torch.testing.assert_close(samplers.make_levels("time", ve, 18), samplers.make_levels("log", ve, 18))


def test_a_time_grid_beyond_the_times_of_the_process_is_refused():
    with pytest.raises(
        ValueError, match=r"levels from 80 to 0.002: the noise process has times for levels from 50 to 0.01"
    ):
        samplers.time_levels(SDES["ve"](), 18, 0.002, 80.0)
    for make in (samplers.log_levels, functools.partial(samplers.time_levels, SDES["ve"]())):
        with pytest.raises(ValueError, match="1 solver steps: expected at least 2"):
            make(1, 0.1, 1.0)


@pytest.mark.parametrize("grid", samplers.GRIDS)
@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_each_sampler_on_each_grid_lands_near_the_flow(name, grid):
    x = MEAN + starts() / 10 * (VARIANCE + 30**2).sqrt()
    levels = samplers.make_levels(grid, SDES["vp"](), 60, 0.02, 30.0)
    error = (last(samplers.SAMPLERS[name].run(denoise, x, levels)) - flow(x, levels[0], 0.0)).abs().max().item()
    assert error < (0.6 if name == "euler" else 0.1)


def command(*argv):
    """Exit status of main.py."""
    with pytest.raises(SystemExit) as stop:
        experiment.launch(main.main, [str(entry) for entry in argv])
    return stop.value.code


def test_the_command_samples_with_solvers_grids_and_churn(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DATA", str(tmp_path / "data"))
    options = ("--workdir", tmp_path / "run", "--device", "cpu")
    preset = ("--config", "configs/edm.py:smoke", "--config.training.images=16", "--config.training.batch=8")
    assert command("--mode", "train", *options, *preset) == 0
    sample = ("--mode", "sample", *options, "--n", 2, "--steps", 3)
    assert command(*sample) == 0
    for name, grid in (("dpmpp-2m", "log"), ("unipc-bh1", "time")):
        assert command(*sample, "--sampler", name, "--grid", grid) == 0
    churn = ("--churn", 2, "--churn-levels", 0.05, 50, "--churn-noise", 1.003)
    assert command(*sample, *churn, "--n", 3, "--batch", 2) == 0
    assert command(*sample, *churn, "--seed-base", 2, "--n", 1) == 0
    made = {path.stem: np.load(path, allow_pickle=False) for path in (tmp_path / "run" / "samples").glob("*3*.npy")}
    assert made.keys() == {
        "heun3_seed0_n2", "dpmpp-2m3_log_seed0_n2", "unipc-bh1-3_time_seed0_n2",
        "heun3_churn2-0.05-50-1.003_seed0_n3", "heun3_churn2-0.05-50-1.003_seed2_n1",
    }  # fmt: skip
    first, alone = (made[f"heun3_churn2-0.05-50-1.003_{rest}"] for rest in ("seed0_n3", "seed2_n1"))
    assert np.array_equal(first[2], alone[0])
    assert not np.array_equal(first[:2], made["heun3_seed0_n2"])
    capsys.readouterr()
    for wrong, sentence in (
        (("--sampler", "unipc-bh1", "--churn", 2), "--sampler unipc-bh1 is deterministic: --churn goes with --sampler heun"),
        (("--churn-noise", 1.003), "say how to churn: pass --churn, above 0, too"),
        (("--churn", 2, "--churn-levels", 3, 1), "--churn-levels 3 1: expected the lower one first"),
        (("--churn", -1), "--churn -1: expected at least 0"),
        (("--sampler", "dpmpp"), "nearest: dpmpp-2m"),
        (("--grid", "lin"), "--grid: 'lin' is not known"),
    ):  # fmt: skip
        assert command(*sample, *wrong) == 2
        assert sentence in capsys.readouterr().err
