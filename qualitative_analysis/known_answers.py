"""What an estimator of mutual information says where the answer is known: tasks in closed form, and normals of any size.

A value on codes is only as good as the same estimator on as many rows of as many features whose information is known: the
bound of 64 correlated normals with 9.2 nats stays below 4, without a sign in its deviation over seeds. `estimate` takes
normals spread over the rows of a map, `vouched` says up to which value they came back.

Legend: N rows, D features.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from scipy import special

from diffusion_model import experiment
from qualitative_analysis import information

KNOWN = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)  # nats that a map's known answers have
RECOVERED, LEAST = 0.2, 0.1  # what is missed by at most this part of it, or by so many nats, is recovered


def correlated_normals(count: int, dimension: int, rho: float, seed: int) -> tuple[np.ndarray, np.ndarray, float]:
    """x, y [N, D] of standard normals whose columns correlate pairwise by rho, and I = -D/2 ln(1 - rho^2)."""
    draws = np.random.default_rng(experiment.seed_of("correlated normals", seed))
    x, noise = draws.standard_normal((2, count, dimension))
    return x, rho * x + math.sqrt(1 - rho**2) * noise, -dimension / 2 * math.log1p(-(rho**2))


def additive_uniform(count: int, spread: float, seed: int) -> tuple[np.ndarray, np.ndarray, float]:
    """x uniform on [0, 1], y = x + noise uniform on [-spread, spread]; I = spread - ln(2 spread), or 1/(4 spread) above 1/2."""
    draws = np.random.default_rng(experiment.seed_of("additive uniform", seed))
    x = draws.random((count, 1))
    nats = spread - math.log(2 * spread) if spread <= 0.5 else 1 / (4 * spread)
    return x, x + draws.uniform(-spread, spread, (count, 1)), nats


def students(count: int, dimension: int, freedom: float, seed: int) -> tuple[np.ndarray, np.ndarray, float]:
    """x, y [N, D] of one Student's t with `freedom` degrees: uncorrelated, of one random scale; I = 2 h(D) - h(2 D)."""
    draws = np.random.default_rng(experiment.seed_of("students", seed))
    both = draws.standard_normal((count, 2 * dimension)) / np.sqrt(draws.chisquare(freedom, (count, 1)) / freedom)

    def entropy(size: int) -> float:
        whole = (freedom + size) / 2
        scale = size / 2 * math.log(freedom * math.pi) + special.gammaln(freedom / 2) - special.gammaln(whole)
        return scale + whole * (special.digamma(whole) - special.digamma(freedom / 2))

    return both[:, :dimension], both[:, dimension:], 2 * entropy(dimension) - entropy(2 * dimension)


def codes(nats: Sequence[float], count: int, dimension: int) -> Iterator[np.ndarray]:
    """x, then a y for each entry of `nats`: standard normals [N, D] whose columns correlate pairwise, I(x; y) as asked."""
    key = "known answers"
    x = np.random.default_rng(experiment.seed_of(key)).standard_normal((count, dimension), np.float32)
    yield x
    for value in nats:
        y = np.random.default_rng(experiment.seed_of(key, value)).standard_normal((count, dimension), np.float32)
        y *= math.exp(-value / dimension)  # sqrt(1 - rho^2)
        y += np.float32(math.sqrt(-math.expm1(-2 * value / dimension))) * x
        yield y


def estimate(
    nats: Sequence[float],
    dimension: int,
    rows: information.Rows,
    settings: information.Mine,
    seeds: Sequence[int],
    device: str | torch.device,
    at_once: int,
) -> Iterator[tuple[float, information.Estimate]]:
    """Yield (truth, Estimate) of normals of D features spread over the same rows, `at_once` of them in memory."""
    count = sum(map(len, vars(rows).values()))
    for start in range(0, len(nats), at_once):
        some = nats[start : start + at_once]
        pairs = [(0, index) for index in range(1, 1 + len(some))]
        found = information.estimate_pairs(codes(some, count, dimension), pairs, rows, settings, seeds, device)
        yield from ((some[index - 1], estimate) for (_, index), estimate in found)


def vouched(known: Iterable[tuple[float, float]]) -> float | None:
    """The estimate up to which known answers (truth, estimate) were recovered, from the least on; None where none was."""
    reached = None
    for truth, nats in sorted(known):
        if not abs(nats - truth) <= max(LEAST, RECOVERED * truth):
            break
        reached = max(0.0, nats)
    return reached


def in_words(known: Iterable[tuple[float, float]]) -> str:
    """Truths and what was estimated."""
    return ", ".join(f"{truth:g} gives {nats:.2f}" for truth, nats in known)


# Pairs (x, y) whose mutual information is known in closed form; the numbers agree with the bmi benchmark's.
TASKS: dict[str, Callable[[int, int], tuple[np.ndarray, np.ndarray, float]]] = {
    "independent": lambda count, seed: correlated_normals(count, 4, 0.0, seed),
    "bivariate normal": lambda count, seed: correlated_normals(count, 1, 0.75, seed),
    "normals in 4 dimensions": lambda count, seed: correlated_normals(count, 4, 0.6, seed),
    "additive uniform": lambda count, seed: additive_uniform(count, 0.75, seed),
    "heavy tails": lambda count, seed: students(count, 5, 2.0, seed),
}
