"""Mutual information: closed forms, held-out rows, one critic among many, and what is refused."""

import math

import numpy as np
import pytest
import torch

from qualitative_analysis import information

QUICK = information.Mine(width=32, steps=300, batch=256, learning_rate=4e-3, check_every=25, patience=3)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Critics this small lose more to a second thread than it gives."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def estimates(one_thread) -> dict:
    """Every task with a known answer, two seeds: name -> (estimate, nats)."""
    found = {}
    for name, task in information.TASKS.items():
        x, y, nats = task(3000, 0)
        found[name] = information.estimate(x, y, settings=QUICK, seeds=(0, 1)), nats
    return found


@pytest.mark.parametrize("name", ["bivariate normal", "normals in 4 dimensions"])
def test_correlated_normals_have_their_closed_form(estimates, name):
    estimate, nats = estimates[name]
    assert estimate.nats == pytest.approx(nats, abs=0.05 + 3 * estimate.error)
    assert estimate.nats > 0.8 * nats


def test_independent_codes_have_no_information(estimates):
    estimate, _ = estimates["independent"]
    assert abs(estimate.nats) < 0.02


@pytest.mark.parametrize("name", list(information.TASKS))
def test_a_bound_on_held_out_rows_stays_below_the_truth(estimates, name):
    estimate, nats = estimates[name]
    assert estimate.nats < nats + 3 * estimate.error + 0.01
    assert not estimate.beyond_ceiling


def test_the_known_answers_are_the_benchmarks():
    known = {"bivariate normal": 0.4133, "additive uniform": 1 / 3, "independent": 0.0}
    for name, nats in known.items():
        assert information.TASKS[name](10, 0)[2] == pytest.approx(nats, abs=1e-4)
    assert information.additive_uniform(10, 0.1, 0)[2] == pytest.approx(1.709, abs=1e-3)
    assert information.correlated_normals(10, 3, 0.6, 0)[2] == pytest.approx(-1.5 * math.log(1 - 0.36))


def test_rows_that_trained_a_critic_would_have_given_information_to_independent_codes():
    x, y, _ = information.correlated_normals(400, 8, 0.0, 0)
    z, rows = np.stack([x, y], axis=1), information.split_rows(400)
    same = information.Rows(rows.fit, rows.fit, rows.fit)
    settings = information.Mine(width=64, steps=200, batch=128, learning_rate=2e-3)
    (_, trained), (_, held_out) = (
        next(information.estimate_pairs(z, [(0, 1)], part, settings)) for part in (same, rows)
    )
    assert trained.nats > 0.3
    assert held_out.nats < 0.05


def test_a_pair_is_the_same_alone_and_among_others():
    draws = np.random.default_rng(0)
    z = draws.standard_normal((300, 3, 5)) + draws.standard_normal((300, 1, 5))
    rows = information.split_rows(300)
    settings = information.Mine(width=16, steps=60, batch=64, learning_rate=1e-3, check_every=20)
    together = dict(information.estimate_pairs(z, [(0, 1), (0, 2), (1, 2)], rows, settings, (0, 1)))
    alone = dict(information.estimate_pairs(z, [(0, 2)], rows, settings, (1,)))
    assert alone[0, 2].per_seed[0] == pytest.approx(together[0, 2].per_seed[1], abs=1e-4)
    assert together[0, 2].deviation is not None and alone[0, 2].deviation is None


def test_scale_shift_and_dead_features_change_nothing():
    x, y, _ = information.correlated_normals(400, 2, 0.8, 1)
    settings = information.Mine(width=16, steps=60, batch=64, learning_rate=2e-3)
    plain = information.estimate(x, y, settings=settings)
    other = information.estimate(1000 * x + 7, 0.01 * y - 3, settings=settings)
    assert other.nats == pytest.approx(plain.nats, abs=1e-3)
    dead = information.estimate(np.concatenate([x, np.zeros((400, 1))], axis=1), y, settings=settings)
    assert math.isfinite(dead.nats)


def test_the_ceiling_is_the_logarithm_of_the_held_out_rows():
    rows = information.split_rows(100)
    assert rows.ceiling == pytest.approx(math.log(30))
    assert sorted(np.concatenate([rows.fit, rows.validation, rows.held_out])) == list(range(100))


def test_elu_is_torchs():
    x = torch.linspace(-4, 4, 81, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(torch.nn.functional.elu(x).sum(), x)
    (found,) = torch.autograd.grad(information.Elu.apply(x).sum(), x)
    assert torch.allclose(information.Elu.apply(x), torch.nn.functional.elu(x)) and torch.allclose(found, expected)


@pytest.mark.parametrize(
    ("x", "y", "sentence"),
    [
        (np.zeros((40, 2)), np.zeros((39, 2)), r"one N, got \(40, 2\) and \(39, 2\)"),
        (np.zeros(40), np.zeros((40, 2)), "x .N, D. and y .N, D'."),
        (np.full((40, 2), np.nan), np.zeros((40, 2)), "not finite"),
        (np.zeros((12, 2)), np.zeros((12, 2)), "too few rows .* expected at least 8"),
    ],
)
def test_bad_rows_are_refused(x, y, sentence):
    with pytest.raises(ValueError, match=sentence):
        information.estimate(x, y)


@pytest.mark.parametrize(("field", "value"), [("width", 0), ("steps", -1), ("learning_rate", 0.0), ("batch", 1)])
def test_bad_settings_are_refused(field, value):
    with pytest.raises(ValueError, match=f"{field} is {value}, expected"):
        information.Mine(**{field: value})
