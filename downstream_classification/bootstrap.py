"""Intervals of accuracies and of their paired differences, by resampling encoders, head seeds and test images.

Hits are [E, S, N]: whether the head of seed s on the encoder of run e is right about test image n. A resample draws E runs
with replacement, S head seeds inside each of them, and N test images. The images are the same for every run and seed, so
one draw of them serves all: a draw for each would count every image as that many new ones. Both sides of a difference
share every draw, so that what two heads have in common cancels, and equal heads differ by exactly 0. Where the sides have
other seeds, these are drawn apart. What validation chose is not chosen anew. (Efron & Tibshirani 1993, chapter 8.)

Legend: E runs (encoders), S head seeds, N test images, R resamples.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from diffusion_model import experiment

RESAMPLES = 2000
BLOCK = 250  # resamples whose counts of images become float32 at once: 250 x 10,000 are 10 MB


@lru_cache(maxsize=2)
def image_counts(images: int, resamples: int = RESAMPLES) -> np.ndarray:
    """How often each resample drew each test image, uint8 [R, N]; a function of the number of images alone."""
    random = np.random.default_rng(experiment.seed_of("bootstrap images", images))
    counts = np.empty((resamples, images), np.uint8)
    for row in counts:
        row[:] = np.bincount(random.integers(images, size=images), minlength=images)  # above 255: once in 10^500
    return counts


def run_draws(runs: int, resamples: int = RESAMPLES) -> np.ndarray:
    """Which runs each resample drew [R, E]."""
    random = np.random.default_rng(experiment.seed_of("bootstrap runs", runs))
    return random.integers(runs, size=(resamples, runs))


def seed_weights(drawn: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
    """Weight of each run and head seed in each resample [R, E, S], for the runs drawn [R, E]; each resample sums to 1."""
    resamples, runs = drawn.shape
    random = np.random.default_rng(experiment.seed_of("bootstrap seeds", runs, list(seeds)))
    inside = random.integers(len(seeds), size=(resamples, runs, len(seeds)))  # a draw for each place of a run
    weights = np.zeros((resamples, runs, len(seeds)))
    places = (np.arange(resamples)[:, None, None], drawn[:, :, None], inside)
    np.add.at(weights, places, 1 / inside[0].size)
    return weights


def means(hits: np.ndarray, drawn: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
    """The mean of hits [E, S, N] in each resample [R]."""
    images = hits.shape[-1]
    counts, weights = image_counts(images, len(drawn)), seed_weights(drawn, seeds)
    flat = hits.reshape(-1, images).astype(np.float32).T  # [N, E S]
    found = [  # [R, E S]; whole numbers below 2^24 add up exactly
        counts[start : start + BLOCK].astype(np.float32) @ flat for start in range(0, len(counts), BLOCK)
    ]
    return (np.concatenate(found) * weights.reshape(len(drawn), -1)).sum(1, dtype=np.float64) / images


def central(resampled: np.ndarray) -> tuple[float, float]:
    """The central 95 % of resampled values."""
    low, high = np.quantile(resampled, [0.025, 0.975])
    return float(low), float(high)


def interval(hits: np.ndarray, seeds: Sequence[int]) -> tuple[float, float]:
    """95 % interval of the mean of hits [E, S, N]."""
    return central(means(hits, run_draws(len(hits)), seeds))


def difference(
    ours: np.ndarray, theirs: np.ndarray, our_seeds: Sequence[int], their_seeds: Sequence[int]
) -> tuple[float, float, float]:
    """Mean of ours [E, S, N] minus mean of theirs [E, S', N] on the same runs and images, with its 95 % interval."""
    drawn = run_draws(len(ours))
    if tuple(our_seeds) == tuple(their_seeds):
        paired = ours.astype(np.float32) - theirs.astype(np.float32)
        resampled, middle = means(paired, drawn, our_seeds), paired.mean(dtype=np.float64)
    else:
        resampled = means(ours, drawn, our_seeds) - means(theirs, drawn, their_seeds)
        middle = ours.mean(dtype=np.float64) - theirs.mean(dtype=np.float64)
    return float(middle), *central(resampled)
