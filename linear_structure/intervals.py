"""How sure is a distance? Delete-one-block jackknife over blocks of seeds, with Student's t quantile.

Two cells of a sweep start from the same noise, seed by seed, so the change between them is far surer than either: the
same block is left out of both, and the spread of the paired change gives its interval.

Dimensions: N samples, F features, G blocks.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from diffusion_model import fid
from diffusion_model.experiment import AtLeast
from diffusion_model.features import Reference
from diffusion_model.moments import Moments

CONFIDENCE = 0.95
SPREAD = "spread"


@dataclass(frozen=True)
class Estimate:
    """A number, the ends of its 95 % interval, and its value with each block left out."""

    value: float
    low: float
    high: float
    without: np.ndarray

    @property
    def error(self) -> float:
        """Its standard error: the spread of the number over as many samples of other, unpaired seeds."""
        return standard_error(self.without)

    def as_dict(self, name: str = "value") -> dict[str, float]:
        """As JSON holds it."""
        return {name: self.value, "low": self.low, "high": self.high}


class Margin(AtLeast):
    """The `type=` of the increase that is accepted: a share of the distance without skipping, or "spread"."""

    def __call__(self, text: str) -> float | str:
        return SPREAD if text == SPREAD else float(text)

    @property
    def __name__(self) -> str:
        return f"share or {SPREAD!r}"

    def check(self, option: str, value: Any) -> None:
        """Refuse a number below the bound."""
        if value != SPREAD:
            super().check(option, value)


def accepted(margin: float | str, start: Estimate) -> float:
    """A margin as a number: "spread" is the relative standard error of the distance without skipping."""
    return start.error / start.value if margin == SPREAD else margin


def distances(features: np.ndarray, reference: Reference, blocks: int) -> Estimate:
    """Frechet distance of features [N, F] to the reference, with its interval over `blocks` blocks of rows."""
    if not 2 <= blocks <= len(features) // 2:
        raise ValueError(f"{blocks} blocks of {len(features)} samples: expected from 2 to {len(features) // 2}")
    places = np.array_split(np.arange(len(features)), blocks)
    if len(features) <= features.shape[1]:  # no matrix of F x F is needed
        without = [measure(np.delete(features, rows, axis=0), reference) for rows in places]
        return jackknife(measure(features, reference), np.array(without))
    parts = [Moments(features.shape[1]).update(features[rows]) for rows in places]
    whole = Moments(features.shape[1])
    for part in parts:
        whole.merge(part)
    value = distance(whole, reference)
    return jackknife(value, np.array([distance(whole.copy().remove(part), reference) for part in parts]))


def measure(features: np.ndarray, reference: Reference) -> float:
    """Frechet distance of features [N, F] to the reference."""
    return fid.distance(reference.normal, fid.Normal.from_rows(features))


def distance(moments: Moments, reference: Reference) -> float:
    """Frechet distance of moments of features to the reference."""
    return fid.distance(reference.normal, fid.Normal.from_covariance(moments.mean, moments.covariance))


def increase(cell: Estimate, start: Estimate) -> Estimate:
    """Relative change cell / start - 1 of two paired distances."""
    return jackknife(cell.value / start.value - 1, cell.without / start.without - 1)


def jackknife(value: float, without: np.ndarray) -> Estimate:
    """An estimate from its value on everything and its values [G] with each block left out."""
    reach = stats.t.ppf((1 + CONFIDENCE) / 2, len(without) - 1) * standard_error(without)
    return Estimate(float(value), float(value - reach), float(value + reach), without)


def standard_error(without: np.ndarray) -> float:
    """The jackknife's standard error from the values [G] with each block left out."""
    count = len(without)
    return float(np.sqrt((count - 1) / count * np.square(without - without.mean()).sum()))
