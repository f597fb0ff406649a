"""bootstrap.py: intervals cover what they should, equal heads differ by exactly 0, images common to all count once."""

import numpy as np
import pytest

from downstream_classification import bootstrap

SEEDS = (0, 1, 2)


def draw_hits(random, encoder, head, image, accuracy=0.7):
    """Hits of many fits [E, S, N], and of a twin 0.1 better: both shift with encoder, head seed and image alike."""
    shift = 0.05 * random.normal(size=(encoder, 1, 1)) + 0.02 * random.normal(size=(1, head, 1))
    threshold = 0.5 * random.random((1, 1, image)) + 0.5 * random.random((encoder, head, image))
    level = np.quantile(0.5 * random.random(10**5) + 0.5 * random.random(10**5), [accuracy, accuracy + 0.1])
    return [(threshold < value + shift).astype(np.uint8) for value in level]


def test_the_interval_of_one_fit_is_the_binomial_one():
    hits = (np.arange(2000) < 1200).astype(np.uint8)[None, None]
    low, high = bootstrap.interval(hits, (0,))
    deviation = (0.6 * 0.4 / 2000) ** 0.5
    assert low == pytest.approx(0.6 - 1.96 * deviation, abs=0.1 * deviation + 1e-3)
    assert high == pytest.approx(0.6 + 1.96 * deviation, abs=0.1 * deviation + 1e-3)
    assert bootstrap.interval(hits, (0,)) == (low, high)


def test_images_that_all_seeds_share_are_not_counted_anew():
    hits = np.random.default_rng(0).integers(0, 2, (1, 1, 500)).astype(np.uint8)
    one = bootstrap.interval(hits, (0,))
    assert bootstrap.interval(np.tile(hits, (3, 4, 1)), (0, 1, 2, 3)) == pytest.approx(one, abs=1e-12)


def test_the_interval_covers_encoders_and_head_seeds():
    accuracy = np.array([[0.2, 0.4], [0.6, 0.8]])  # [E, S], without any spread over images but its own
    hits = (np.arange(1000)[None, None] / 1000 < accuracy[:, :, None]).astype(np.uint8)
    low, high = bootstrap.interval(hits, (0, 1))
    assert low < 0.3 and high > 0.7  # an encoder drawn twice comes once in two
    narrow = bootstrap.interval(hits[:1], (0, 1))
    assert narrow[0] > 0.15 and narrow[1] < 0.45


def test_weights_are_those_of_a_draw_within_a_draw():
    drawn = bootstrap.run_draws(4, 200)
    weights = bootstrap.seed_weights(drawn, SEEDS)
    np.testing.assert_allclose(weights.sum((1, 2)), 1)
    for run in range(4):  # a run that was drawn c times has c / E of the weight
        np.testing.assert_allclose(weights[:, run].sum(1), (drawn == run).mean(1))


def test_equal_heads_differ_by_exactly_nothing():
    ours, _ = draw_hits(np.random.default_rng(1), 3, 3, 200)
    assert bootstrap.difference(ours, ours.copy(), SEEDS, SEEDS) == (0.0, 0.0, 0.0)


def test_a_difference_is_antisymmetric_and_sharper_than_its_sides():
    worse, better = draw_hits(np.random.default_rng(2), 4, 3, 300)
    middle, low, high = bootstrap.difference(better, worse, SEEDS, SEEDS)
    assert middle == pytest.approx(better.mean() - worse.mean(), abs=1e-9)
    back = bootstrap.difference(worse, better, SEEDS, SEEDS)
    assert back == pytest.approx((-middle, -high, -low), abs=1e-9)
    side = bootstrap.interval(better, SEEDS)
    assert high - low < 0.7 * (side[1] - side[0])
    apart = bootstrap.difference(better, worse[:, :2], SEEDS, (0, 1))
    assert apart[1] < middle < apart[2] and apart[2] - apart[1] > high - low


def test_intervals_cover_a_known_difference():
    random = np.random.default_rng(3)
    studies = [draw_hits(random, 8, 3, 300) for _ in range(60)]
    truth = np.mean([better.mean() - worse.mean() for worse, better in studies])
    found = [bootstrap.difference(better, worse, SEEDS, SEEDS) for worse, better in studies]
    covered = [low <= truth <= high for _, low, high in found]
    assert 0.8 <= np.mean(covered) <= 1.0  # 95 %, a little less for eight encoders
    assert all(low > 0 for _, low, _ in found)
