"""How much of a network's score does a closed form explain? The measures at one level, from any images in any batches.

At a state x of level s the network says D_nn and a closed form D; the scores are (D_nn - x) / s^2 and (D - x) / s^2, so
that s^2 cancels. Of each image:

    relative_error      |D_nn - D|^2 / |D_nn - x|^2       of the score; 1 minus it is the score's explained variance
    explained_variance  1 - |D_nn - D|^2 / |D_nn|^2       of the denoiser
    cosine              between D_nn - x and D - x, that is between the scores

each with its mean over images and the normal 95 % interval of that mean. Two measures are ratios of sums over images:

    centred             1 - sum |D_nn - D|^2 / sum |D_nn - mu|^2, of which the mean alone explains 0
    groups              the relative error of the score's component in a few eigenvectors u_k of the Gaussian at a time

with the interval of a ratio of means (delta method). `Directions` asks of each eigenvector alone how far the network acts
on it as the Wiener filter would: it measures the gain g_k of the regression

    u_k . (D_nn - mu) = g_k u_k . (x - mu),   which the Gaussian has at lambda_k / (lambda_k + s^2),

with the interval that holds whatever the residuals' variance is (White 1980). Images are projected and their sums kept, so
memory is that of one batch and of K numbers.

Dimensions: B batch, N images, D = C*H*W, K eigenvectors, G groups.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from linear_structure.gaussian import Gaussian, rows_of

MEASURES = ("relative_error", "explained_variance", "cosine", "centred")
NORMAL = 1.96  # half width of a normal 95 % interval, in standard errors
GROUPS = 12


class Comparison:
    """Closed forms, by name, against one network at one level; `mu` [D] is what "centred" is about."""

    def __init__(self, mu: torch.Tensor, directions: "Directions | None" = None) -> None:
        self.mu, self.directions = mu, directions
        self._gains = torch.zeros(5, 0 if directions is None else directions.gaussian.rank, dtype=torch.float64)
        self._neural: list[torch.Tensor] = []
        self._forms: dict[str, list[torch.Tensor]] = {}

    def update(self, x: torch.Tensor, neural: torch.Tensor, found: Mapping[str, torch.Tensor]) -> None:
        """Add a batch: states x, the network's denoised images and each closed form's, all [B, C, H, W]."""
        if not torch.isfinite(neural).all():
            raise FloatingPointError("the network's denoiser gave NaN or infinite values")
        mu = self.mu.reshape(x.shape[1:]).to(neural)
        score = neural - x
        sizes = [squares(score), squares(neural), squares(neural - mu)]
        self._neural.append(torch.cat([torch.stack(sizes, 1), self._groups(score)], 1))
        if self.directions is not None:
            a, b = self.directions.project(x - mu), self.directions.project(neural - mu)
            terms = (a.square(), a * b, a**4, a**3 * b, (a * b).square())
            self._gains += torch.stack([term.sum(0) for term in terms])
        for name, denoised in found.items():
            apart = [squares(neural - denoised), squares(unit(score) - unit(denoised - x)) / 2]
            rows = torch.cat([torch.stack(apart, 1), self._groups(neural - denoised)], 1)
            self._forms.setdefault(name, []).append(rows)

    def _groups(self, values: torch.Tensor) -> torch.Tensor:
        """Sums of squares in each group of directions, float64 [B, G]; none without directions."""
        return torch.empty(len(values), 0) if self.directions is None else self.directions.squares(values)

    def results(self) -> dict[str, dict[str, Any]]:
        """The measures of each closed form; numbers are {"mean", "low", "high"}."""
        score, whole, spread, *groups = torch.cat(self._neural).unbind(1)
        found = {}
        for name, parts in self._forms.items():
            difference, turned, *errors = torch.cat(parts).unbind(1)
            left = ratio_interval(difference, spread)
            found[name] = {
                "relative_error": mean_interval(difference / score),
                "explained_variance": mean_interval(1 - difference / whole),
                "cosine": mean_interval(1 - turned),
                "centred": {"mean": 1 - left["mean"], "low": 1 - left["high"], "high": 1 - left["low"]},
            }
            if self.directions is not None:
                pairs = zip(self.directions.groups, errors, groups, strict=True)
                found[name]["groups"] = [group | {"relative_error": ratio_interval(*sums)} for group, *sums in pairs]
        return found

    def gains(self) -> dict[str, np.ndarray]:
        """lambdas of the directions and the measured gain with the ends of its 95 % interval, float64 [K] each."""
        aa, ab, aaaa, aaab, aabb = self._gains
        gain = ab / aa
        residual = (aabb - 2 * gain * aaab + gain.square() * aaaa).clamp(min=0)
        reach = NORMAL * residual.sqrt() / aa
        found = {"lambdas": self.directions.gaussian.lambdas, "gain": gain, "low": gain - reach, "high": gain + reach}
        return {name: value.numpy() for name, value in found.items()}


class Directions:
    """The eigenvectors of a Gaussian, alone and in groups; one serves any number of comparisons.

    `groups` are even in ln k, each {"first", "last", "variance"} with k from 1 and the mean lambda; what lies outside the
    eigenvectors kept is the last.
    """

    def __init__(self, gaussian: Gaussian, groups: int = GROUPS) -> None:
        self.gaussian, self._U = gaussian, gaussian.U
        edges = np.unique(np.geomspace(1, gaussian.rank + 1, groups + 1).round().astype(int)).tolist()
        self.groups = [
            {"first": first, "last": after - 1, "variance": float(gaussian.lambdas[first - 1 : after - 1].mean())}
            for first, after in itertools.pairwise(edges)
        ]
        if gaussian.rank < gaussian.dimension:
            outside = {"first": gaussian.rank + 1, "last": gaussian.dimension, "variance": gaussian.rest}
            self.groups.append(outside)

    def project(self, values: torch.Tensor) -> torch.Tensor:
        """Components of values [B, ...] along the eigenvectors, float64 [B, K] on the CPU."""
        rows = rows_of(values, self.gaussian.dimension)
        self._U = self._U.to(rows)
        return (rows @ self._U).double().cpu()

    def squares(self, values: torch.Tensor) -> torch.Tensor:
        """Sum of squares of values [B, ...] in each group, float64 [B, G]."""
        along = self.project(values).square()
        inside = [group for group in self.groups if group["last"] <= self.gaussian.rank]
        sums = [along[:, group["first"] - 1 : group["last"]].sum(1) for group in inside]
        if len(inside) < len(self.groups):
            sums.append((squares(values) - along.sum(1)).clamp(min=0))
        return torch.stack(sums, 1)


def squares(values: torch.Tensor) -> torch.Tensor:
    """Sum of squares of each row, in float64 on the CPU [B]."""
    return values.double().square().flatten(1).sum(1).cpu()


def unit(values: torch.Tensor) -> torch.Tensor:
    """Each row scaled to length 1, float64 [B, D]."""
    return torch.nn.functional.normalize(values.double().flatten(1), dim=1)


def mean_interval(values: torch.Tensor) -> dict[str, float]:
    """Mean over images [N] with its normal 95 % interval."""
    mean, reach = float(values.mean()), NORMAL * float(values.std()) / len(values) ** 0.5
    return {"mean": mean, "low": mean - reach, "high": mean + reach}


def ratio_interval(above: torch.Tensor, below: torch.Tensor) -> dict[str, float]:
    """Ratio of two sums over the same images [N], with its normal 95 % interval."""
    ratio = float(above.sum() / below.sum())
    reach = NORMAL * float((above - ratio * below).std() / below.mean()) / len(above) ** 0.5
    return {"mean": ratio, "low": ratio - reach, "high": ratio + reach}


def level_from(levels: Sequence[float], explained: Sequence[float], share: float = 0.99) -> float | None:
    """The level from which on at least `share` is explained at every level, these increasing; None where it is never.

    Between two levels the unexplained part is taken as a power of the level, which it is nearly. The first of the levels
    is returned where all explain as much: the true one may lie below it.
    """
    left = [max(1 - value, 1e-12) for value in explained]
    bound = 1 - share
    above = len(left)
    while above and left[above - 1] <= bound:
        above -= 1
    if above == len(left):
        return None
    if above == 0:
        return float(levels[0])
    way = math.log(left[above - 1] / bound) / math.log(left[above - 1] / left[above])
    return float(levels[above - 1] * (levels[above] / levels[above - 1]) ** way)
