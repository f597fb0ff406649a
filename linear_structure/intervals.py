"""How sure is a distance? Delete-one-block jackknife over blocks of seeds, with Student's t quantile.

Two cells of a sweep start from the same noise, seed by seed, so the change between them is far surer than either: the
same block is left out of both, and the spread of the paired change gives its interval.

Dimensions: N samples, F features, G blocks.
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from diffusion_model.features import Reference
from diffusion_model.fid import frechet_distance
from diffusion_model.moments import Moments

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A number, the ends of its 95 % interval, and its value with each block left out."""

    value: float
    low: float
    high: float
    without: np.ndarray

    def as_dict(self, name: str = "value") -> dict[str, float]:
        """As JSON holds it."""
        return {name: self.value, "low": self.low, "high": self.high}


def distances(features: np.ndarray, reference: Reference, blocks: int) -> Estimate:
    """Frechet distance of features [N, F] to the reference, with its interval over `blocks` blocks of rows."""
    if not 2 <= blocks <= len(features) // 2:
        raise ValueError(f"{blocks} blocks of {len(features)} samples: expected from 2 to {len(features) // 2}")
    parts = [Moments(features.shape[1]).update(rows) for rows in np.array_split(features, blocks)]
    whole = Moments(features.shape[1])
    for part in parts:
        whole.merge(part)
    value = distance(whole, reference)
    return jackknife(value, np.array([distance(whole.copy().remove(part), reference) for part in parts]))


def distance(moments: Moments, reference: Reference) -> float:
    """Frechet distance of moments of features to the reference."""
    known = reference.moments
    return frechet_distance(known.mean, known.covariance, moments.mean, moments.covariance, reference.root)


def increase(cell: Estimate, start: Estimate) -> Estimate:
    """Relative change cell / start - 1 of two paired distances."""
    return jackknife(cell.value / start.value - 1, cell.without / start.without - 1)


def jackknife(value: float, without: np.ndarray) -> Estimate:
    """An estimate from its value on everything and its values [G] with each block left out."""
    count = len(without)
    error = np.sqrt((count - 1) / count * np.square(without - without.mean()).sum())
    reach = stats.t.ppf((1 + CONFIDENCE) / 2, count - 1) * error
    return Estimate(float(value), float(value - reach), float(value + reach), without)
