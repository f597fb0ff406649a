"""Mutual information: closed forms, held-out rows, one critic among many, and what is refused."""

import math
import tracemalloc

import numpy as np
import pytest
import torch

from qualitative_analysis import information, known_answers

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
    for name, task in known_answers.TASKS.items():
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


@pytest.mark.parametrize("name", list(known_answers.TASKS))
def test_a_bound_on_held_out_rows_stays_below_the_truth(estimates, name):
    estimate, nats = estimates[name]
    assert estimate.nats < nats + 3 * estimate.error + 0.01
    assert not estimate.beyond_ceiling


def test_the_known_answers_are_the_benchmarks():
    known = {"bivariate normal": 0.4133, "additive uniform": 1 / 3, "independent": 0.0, "heavy tails": 0.4482}
    for name, nats in known.items():
        assert known_answers.TASKS[name](10, 0)[2] == pytest.approx(nats, abs=1e-4)
    assert known_answers.additive_uniform(10, 0.1, 0)[2] == pytest.approx(1.709, abs=1e-3)
    assert known_answers.correlated_normals(10, 3, 0.6, 0)[2] == pytest.approx(-1.5 * math.log(1 - 0.36))


def test_rows_that_trained_a_critic_would_have_given_information_to_independent_codes():
    x, y, _ = known_answers.correlated_normals(400, 8, 0.0, 0)
    rows = information.split_rows(400)
    same = information.Rows(rows.fit, rows.fit, rows.fit)
    settings = information.Mine(width=64, steps=200, batch=128, learning_rate=2e-3)
    (_, trained), (_, held_out) = (
        next(information.estimate_pairs([x, y], [(0, 1)], part, settings)) for part in (same, rows)
    )
    assert trained.nats > 0.3
    assert held_out.nats < 0.05


def test_a_pair_is_the_same_alone_and_among_others():
    draws = np.random.default_rng(0)
    z = draws.standard_normal((3, 300, 5)) + draws.standard_normal((300, 5))
    rows = information.split_rows(300)
    settings = information.Mine(width=16, steps=60, batch=64, learning_rate=1e-3, check_every=20)
    together = dict(information.estimate_pairs(z, [(0, 1), (0, 2), (1, 2)], rows, settings, (0, 1)))
    alone = dict(information.estimate_pairs(z, [(0, 2)], rows, settings, (1,)))
    assert alone[0, 2].per_seed[0] == pytest.approx(together[0, 2].per_seed[1], abs=1e-4)
    assert together[0, 2].deviation is not None and alone[0, 2].deviation is None


def test_scale_shift_and_dead_features_change_nothing():
    x, y, _ = known_answers.correlated_normals(400, 2, 0.8, 1)
    settings = information.Mine(width=16, steps=60, batch=64, learning_rate=2e-3)
    plain = information.estimate(x, y, settings=settings)
    other = information.estimate(1000 * x + 7, 0.01 * y - 3, settings=settings)
    assert other.nats == pytest.approx(plain.nats, abs=1e-3)
    dead = information.estimate(np.concatenate([x, np.zeros((400, 1))], axis=1), y, settings=settings)
    assert math.isfinite(dead.nats)


def classes(order):
    """Noisy codes of 20 classes, which say the class: ln 20 nats."""
    draws = np.random.default_rng(0)
    shared = draws.standard_normal((20, 4))[np.repeat(np.arange(20), 75)]
    x, y = (shared + 0.02 * draws.standard_normal((1500, 4)) for _ in range(2))
    return x[order], y[order]


def test_the_order_of_the_rows_decides_nothing():
    """Codes sorted by class have what they have shuffled, for every part of them: a neighbour is no independent row."""
    settings = information.Mine(width=32, steps=250, batch=256, learning_rate=5e-3, check_every=50)
    rows = information.Rows(*(np.arange(start, 1500, 3) for start in range(3)))  # each part as sorted as the whole
    found = [
        information.estimate(*classes(order), rows, settings)
        for order in (np.arange(1500), np.random.default_rng(1).permutation(1500))
    ]
    for estimate in found:
        assert 0.75 * math.log(20) < estimate.nats < math.log(20) + 3 * estimate.error
    assert found[0].nats == pytest.approx(found[1].nats, abs=3 * math.hypot(found[0].error, found[1].error))


@pytest.mark.parametrize("count", [8, 41, 1000])
def test_rows_of_a_product_are_never_paired_with_their_own_or_twice(count):
    others = information.product_rows(count, 8).numpy()
    assert all(sorted(part) == list(range(count)) for part in others)
    pairs = [*enumerate(range(count)), *((row, other) for part in others for row, other in enumerate(part))]
    assert len(set(pairs)) == len(pairs)
    if count == 1000:  # far and near alike: sorted rows give rows of every class
        distance = np.abs(others - np.arange(count))
        assert distance.mean(axis=1) == pytest.approx(np.full(8, count / 3), rel=0.1)


def test_monotone_maps_of_features_change_nothing():
    x, y, _ = known_answers.correlated_normals(1500, 2, 0.8, 1)
    settings = information.Mine(width=16, steps=100, batch=128, learning_rate=4e-3)
    plain = information.estimate(x, y, settings=settings)
    bent = information.estimate(np.exp(3 * x), y**3, settings=settings)
    assert bent.nats == pytest.approx(plain.nats, abs=0.01) and plain.nats > 0.5


def test_heavy_tails_hide_nothing():
    """Student's t in two dimensions with nu 1: I is known, and all of it lies in the scale that two tails share."""
    x, y, nats = known_answers.students(3000, 1, 1.0, 0)
    assert nats == pytest.approx(0.2242, abs=1e-4)
    settings = information.Mine(width=32, steps=300, batch=256, learning_rate=5e-3, check_every=50)
    estimate = information.estimate(x, y, settings=settings)
    assert 0.6 * nats < estimate.nats < nats + 3 * estimate.error


def test_normal_scores_are_quantiles_of_the_rows_that_fit():
    draws = np.random.default_rng(0)
    wild, ties, dead = draws.standard_cauchy(1000), draws.integers(0, 3, 1000), np.full(1000, 7.0)
    z, rows = np.stack([wild, ties, dead], axis=1).astype(np.float32), information.split_rows(1000)
    (parts,) = information.normal_scores([z], 1, rows, "cpu")["fit"].numpy()
    assert np.array_equal(np.argsort(parts[:, 0]), np.argsort(z[rows.fit, 0]))
    assert np.sort(parts[:, 0])[[25, 250, 475]] == pytest.approx([-1.62, 0.0, 1.62], abs=0.05)
    assert parts[:, :2].mean(0) == pytest.approx(0, abs=1e-5) and parts[:, :2].std(0) == pytest.approx(1, abs=1e-5)
    levels = [set(parts[z[rows.fit, 1] == value, 1]) for value in range(3)]
    assert [len(level) for level in levels] == [1, 1, 1] and max(levels[0]) < max(levels[1]) < max(levels[2])
    assert not parts[:, 2].any()
    held = information.normal_scores([z], 1, rows, "cpu")["held_out"].numpy()[0, :, 0]
    assert np.abs(held).max() <= np.abs(parts[:, 0]).max() and np.array_equal(
        np.sort(held), np.sort(held)[np.argsort(np.sort(z[rows.held_out, 0]))]
    )


def test_a_critic_that_had_too_few_steps_is_still_rising():
    x, y, _ = known_answers.correlated_normals(1000, 4, 0.9, 0)
    slow = information.Mine(width=16, steps=60, batch=64, learning_rate=2e-3, check_every=20)
    short = information.estimate(x, y, settings=slow, seeds=(0, 1))
    assert short.rising == 2 and short.still_rising and short.steps == (60, 60)
    done = information.Mine(width=16, steps=600, batch=64, learning_rate=2e-2, check_every=20, patience=5)
    long = information.estimate(x, y, settings=done, seeds=(0, 1))
    assert long.rising == 0 and not long.still_rising and long.nats > short.nats


def test_memory_holds_the_codes_once():
    """The parts are the codes in float32; beside them no more than a few times of the many."""
    count, times = 4000, 16
    one = np.random.default_rng(0).standard_normal((count, 16), np.float32)
    rows = information.split_rows(count)
    tracemalloc.start()
    parts = information.normal_scores((one + time for time in range(times)), times, rows, "cpu")
    peak = tracemalloc.get_traced_memory()[1]  # of numpy; the parts are torch's
    tracemalloc.stop()
    assert sum(part.nbytes for part in parts.values()) == times * one.nbytes
    assert peak < 5 * one.nbytes
    with pytest.raises(ValueError, match=r"needs finite codes \[N, 16\], got shape \(4000, 15\)"):
        information.normal_scores([one, one[:, 1:]], 2, rows, "cpu")


def test_known_answers_are_as_informative_as_they_say():
    """Of one x and y: the sample correlation of each pair of columns, and what several at once and one at a time give."""
    x, none, two = known_answers.codes((0.0, 2.0), 20_000, 4)
    for y, nats in ((none, 0.0), (two, 2.0)):
        rho = np.array([np.corrcoef(x[:, column], y[:, column])[0, 1] for column in range(4)])
        assert -0.5 * np.log1p(-(rho**2)).sum() == pytest.approx(nats, abs=0.05) and y.std() == pytest.approx(
            1, abs=0.02
        )
    rows, settings = information.split_rows(600), information.Mine(width=16, steps=40, batch=64, learning_rate=4e-3)
    found = [list(known_answers.estimate((0.0, 0.5, 2.0), 3, rows, settings, (0,), "cpu", size)) for size in (1, 3)]
    assert [truth for truth, _ in found[0]] == [0.0, 0.5, 2.0]
    for (_, alone), (_, among) in zip(*found, strict=True):
        assert alone.nats == pytest.approx(among.nats, abs=1e-3)


@pytest.mark.parametrize(
    ("known", "reached"),
    [
        ([(0, 0.01), (1, 0.9), (4, 3.0)], 0.9),
        ([(4, 3.5), (0, -0.02), (1, 0.7)], 0.0),  # 4 comes back, but not 1
        ([(0, 0.3), (1, 1.0)], None),
        ([(1, 0.85), (4, 3.3)], 3.3),
        ([], None),
    ],
)
def test_known_answers_vouch_up_to_the_first_that_is_missed(known, reached):
    assert known_answers.vouched(known) == reached


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
