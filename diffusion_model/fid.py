"""How far apart are two sets of features? The Frechet distance of their moments, and the kernel distance of the sets.

Frechet:  |m1 - m2|^2 + tr(C1) + tr(C2) - 2 tr((C1 C2)^(1/2))           (Heusel et al. 2017, equation 6)
kernel:   E k(x, x') + E k(y, y') - 2 E k(x, y),  k(x, y) = (x.y / D + 1)^3   (Binkowski et al. 2018, equations 3 and 4)

With any factors C = F F^T the last trace is the sum of the singular values of F1^T F2. A Cholesky factor replaces the
general matrix root, cut at its rank where a covariance is singular; of fewer rows than features the rows themselves are
a factor, and no matrix of D x D is made. The kernel distance is unbiased at every number of rows: it may be negative.
Only with Inception features of natural images are these two called FID and KID.

Dimensions: N, M rows, D features, R rank.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from scipy.linalg import lapack

from diffusion_model import experiment

PAIRS = 2**24  # of a kernel matrix at once
SIZE = 1000  # rows of a subset in Binkowski et al. 2018
INDEFINITE = 1e-3  # of the largest number: float32 covariances of others hold less than that below 0
ROUNDING = 1e-8  # of the distance's scale: beyond it the square roots of eigenvalues are taken more carefully


@dataclass(frozen=True)
class Normal:
    """A mean [D] and a factor [D, R] of the covariance, factor factor^T, in float64: what a Frechet distance needs."""

    mean: torch.Tensor
    factor: torch.Tensor

    @classmethod
    def from_covariance(cls, mean: torch.Tensor, covariance: torch.Tensor) -> Self:
        """From mean [D] and covariance [D, D]."""
        mean, covariance = (torch.as_tensor(value, dtype=torch.float64) for value in (mean, covariance))
        _check_moments(mean, covariance)
        return cls(mean, factor(covariance))

    @classmethod
    def from_rows(cls, rows: torch.Tensor | np.ndarray) -> Self:
        """From features [N, D]; where N <= D the factor is made of the rows, by a reflection that takes their mean away."""
        rows = check_rows(rows)
        mean = rows.mean(0)
        centred = rows - mean
        if len(rows) > rows.shape[1]:
            return cls(mean, factor(centred.T @ centred / (len(rows) - 1)))
        # A reflection takes (1, ..., 1)/sqrt(N) to -e1: the rows after the first are N - 1 with the same outer products.
        normal = torch.full((len(rows),), len(rows) ** -0.5, dtype=torch.float64)
        normal[0] += 1
        reflected = centred - torch.outer(normal, normal @ centred) * (2 / normal.square().sum())
        return cls(mean, reflected[1:].T / (len(rows) - 1) ** 0.5)


def distance(first: Normal, second: Normal) -> float:
    """Squared Frechet distance between two normal distributions."""
    if len(first.mean) != len(second.mean):
        raise ValueError(
            f"a Frechet distance between features of different sizes: {len(first.mean)} and {len(second.mean)}"
        )
    scale = float(first.factor.square().sum() + second.factor.square().sum())
    apart = float((first.mean - second.mean).square().sum())
    return apart + scale - 2 * nuclear_norm(first.factor.T @ second.factor, ROUNDING * scale)


def frechet_distance(
    mean1: torch.Tensor,
    covariance1: torch.Tensor,
    mean2: torch.Tensor,
    covariance2: torch.Tensor,
    root1: torch.Tensor | None = None,
) -> float:
    """Squared Frechet distance between N(mean1, covariance1) and N(mean2, covariance2), means [D], covariances [D, D].

    `root1`, a factor of covariance1 (`factor`, `symmetric_root`), spares one decomposition where a reference is used again.
    """
    mean1, covariance1, mean2, covariance2 = (
        torch.as_tensor(value, dtype=torch.float64) for value in (mean1, covariance1, mean2, covariance2)
    )
    sizes = {"means": [*mean1.shape, *mean2.shape], "covariances": [*covariance1.shape, *covariance2.shape]}
    if len({*sizes["means"], *sizes["covariances"]}) != 1 or mean1.ndim != 1 or covariance1.ndim != 2:
        raise ValueError(f"a Frechet distance between features of different sizes: {sizes}")
    first = Normal.from_covariance(mean1, covariance1) if root1 is None else Normal(mean1, root1)
    return distance(first, Normal.from_covariance(mean2, covariance2))


def factor(covariance: torch.Tensor) -> torch.Tensor:
    """A factor F [D, R] in float64 of a covariance F F^T [D, D]: Cholesky, with pivots and cut at the rank if singular."""
    covariance = torch.as_tensor(covariance, dtype=torch.float64)
    least = len(covariance) * torch.finfo(torch.float64).eps * covariance.diagonal().max()
    lower, failed = torch.linalg.cholesky_ex(covariance)
    if not failed and lower.diagonal().square().min() > least:
        return lower
    lower, order, rank, _ = lapack.dpstrf(covariance.numpy(), lower=1)
    found = np.zeros((len(covariance), rank))
    found[order - 1] = np.tril(lower)[:, :rank]
    if np.abs(found @ found.T - covariance.numpy()).max() > INDEFINITE * float(covariance.abs().max()):
        raise ValueError(f"a matrix {list(covariance.shape)} has negative eigenvalues: it is no covariance")
    return torch.from_numpy(found)


def symmetric_root(covariance: torch.Tensor) -> torch.Tensor:
    """The symmetric positive root of a covariance [D, D], in float64; eigenvalues that are rounding count as 0."""
    values, vectors = torch.linalg.eigh(torch.as_tensor(covariance, dtype=torch.float64))
    least = len(values) * torch.finfo(torch.float64).eps * values.max()
    return (vectors * torch.where(values > least, values, 0).clamp(min=0).sqrt()) @ vectors.T


def nuclear_norm(matrix: torch.Tensor, tolerance: float) -> float:
    """The sum of the singular values of a matrix, by the eigenvalues of its smaller Gram matrix.

    Those err by rounding of the largest, and roots of small ones by more: where that could sum to more than the
    tolerance, the singular values themselves are computed, four times as slowly.
    """
    if not matrix.numel():
        return 0.0
    gram = matrix @ matrix.T if len(matrix) <= matrix.shape[1] else matrix.T @ matrix
    values = torch.linalg.eigvalsh(gram).clamp(min=0)
    error = torch.finfo(torch.float64).eps * values.max()
    if float((error / (values + error).sqrt()).sum()) > tolerance:
        return float(torch.linalg.svdvals(matrix).sum())
    return float(values.sqrt().sum())


@dataclass(frozen=True)
class Kernel:
    """A kernel distance: the mean over subsets of `size` rows, the standard deviation over them (None of one), how many."""

    value: float
    deviation: float | None
    subsets: int
    size: int

    @classmethod
    def over(cls, found: list[float], size: int) -> Self:
        """From the estimates of the subsets."""
        deviation = float(np.std(found, ddof=1)) if len(found) > 1 else None
        return cls(float(np.mean(found)), deviation, len(found), size)


def mmd(first: torch.Tensor | np.ndarray, second: torch.Tensor | np.ndarray) -> float:
    """The unbiased estimate of the squared kernel distance from all pairs of rows of [N, D] and [M, D]."""
    first, second = check_pair(first, second)
    within = [(_kernel_sum(rows, rows) - _own(rows)) / (len(rows) * (len(rows) - 1)) for rows in (first, second)]
    return sum(within) - 2 * _kernel_sum(first, second) / (len(first) * len(second))


def kernel_distance(
    first: torch.Tensor | np.ndarray,
    second: torch.Tensor | np.ndarray,
    size: int = SIZE,
    subsets: int = 100,
    seed: int = 0,
) -> Kernel:
    """The kernel distance over `subsets` pairs of subsets of `size` rows, each drawn without replacement."""
    first, second = check_pair(first, second)
    _check_size(size, len(first), len(second))
    if subsets < 1:
        raise ValueError(f"{subsets} subsets for a kernel distance: expected at least 1")
    random = experiment.generator("kernel distance", seed)
    draws = ([torch.randperm(len(rows), generator=random)[:size] for rows in (first, second)] for _ in range(subsets))
    return Kernel.over([mmd(first[chosen], second[others]) for chosen, others in draws], size)


class KernelStream:
    """The kernel distance of features that pass by: each `size` rows make one subset, against the next of the reference.

    The rows of the reference [M, D] must be in random order; where they run out they are taken again from the first.
    """

    def __init__(self, reference: torch.Tensor | np.ndarray, size: int = SIZE) -> None:
        self.reference, self.size = check_rows(reference), size
        _check_size(size, size, len(self.reference))
        self.waiting = torch.zeros(0, self.reference.shape[1], dtype=torch.float64)
        self.found: list[float] = []

    def update(self, batch: torch.Tensor | np.ndarray) -> Self:
        """Add the rows of a batch [B, D]."""
        self.waiting = torch.cat([self.waiting, check_pair(batch, self.reference, least=0)[0]])
        blocks = len(self.reference) // self.size
        while len(self.waiting) >= self.size:
            start = len(self.found) % blocks * self.size
            self.found.append(mmd(self.waiting[: self.size], self.reference[start : start + self.size]))
            self.waiting = self.waiting[self.size :]
        return self

    def result(self) -> Kernel:
        """The distance so far; rows that fill no subset are left out."""
        if not self.found:
            _check_size(self.size, len(self.waiting), len(self.reference))
        return Kernel.over(self.found, self.size)


def _kernel_sum(first: torch.Tensor, second: torch.Tensor) -> float:
    """The sum of k over all pairs of rows."""
    dimension = first.shape[1]
    return sum(float((part @ second.T / dimension + 1).pow(3).sum()) for part in _parts(first, len(second)))


def _own(rows: torch.Tensor) -> float:
    """The sum of k of each row with itself."""
    return float((rows.square().sum(1) / rows.shape[1] + 1).pow(3).sum())


def _parts(rows: torch.Tensor, others: int) -> Iterator[torch.Tensor]:
    """The rows in parts whose products with so many others stay below PAIRS numbers."""
    return iter(rows.split(max(1, PAIRS // others)))


def check_rows(rows: torch.Tensor | np.ndarray, least: int = 2) -> torch.Tensor:
    """Features [N, D] in float64; too few, or numbers that are not finite, are a ValueError."""
    rows = rows.detach().cpu().double() if isinstance(rows, torch.Tensor) else torch.from_numpy(np.array(rows, float))
    if rows.ndim != 2:
        raise ValueError(f"features are {list(rows.shape)}, expected [N, D]: a row an image")
    if len(rows) < least:
        raise ValueError(f"features of {len(rows)} images: a distance needs at least {least}")
    if not torch.isfinite(rows).all():
        bad = int((~torch.isfinite(rows)).any(1).sum())
        raise ValueError(
            f"the features of {bad} of {len(rows)} images are NaN or infinite: a distance needs finite ones"
        )
    return rows


def check_pair(
    first: torch.Tensor | np.ndarray, second: torch.Tensor | np.ndarray, least: int = 2
) -> tuple[torch.Tensor, torch.Tensor]:
    """Two sets of features with the same D."""
    first, second = check_rows(first, least), check_rows(second)
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"a distance between features of different sizes: {first.shape[1]} and {second.shape[1]}")
    return first, second


def _check_size(size: int, first: int, second: int) -> None:
    if not 2 <= size <= min(first, second):
        raise ValueError(f"subsets of {size} rows of {first} and {second}: expected from 2 to {min(first, second)}")


def _check_moments(mean: torch.Tensor, covariance: torch.Tensor, where: str = "the moments") -> None:
    """Refuse what is no mean [D] with a covariance [D, D] of finite numbers."""
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)) or not len(mean):
        raise ValueError(f"{where} are {list(mean.shape)} and {list(covariance.shape)}, expected [D] and [D, D]")
    if not (torch.isfinite(mean).all() and torch.isfinite(covariance).all()):
        raise ValueError(f"{where} hold NaN or infinite numbers: a distance needs finite ones")
    if float((covariance - covariance.T).abs().max()) > INDEFINITE * float(covariance.diagonal().abs().max()):
        raise ValueError(f"{where} hold a matrix that is not symmetric: it is no covariance")
