"""Eigenvectors and eigenvalues of the covariance of images, exactly, in the memory of a few D x D matrices.

The covariance is turned into its eigenvectors in place: `PEAK` matrices of D x D in float64 at the worst, 4.8 GB at
64 x 64 x 3. Images too large for that are decomposed by low_rank.py. Where only means and variances of pixels are asked
for, they are streamed by themselves, with D numbers of memory.

Dimensions: N images, D = C*H*W, R rank.
"""

from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg
import torch

from diffusion_model import passes
from diffusion_model.moments import Moments, pixels
from linear_structure.gaussian import CUT_OFF, UNIT, Gaussian

PEAK = 4  # the covariance, two as workspace of the decomposition, one to spare
BLOCK = 2**28  # bytes of a block of images in float32
ROWS = 1024  # images whose sums of centred squares float32 holds exactly: 128^2 * ROWS = 2^24


def bytes_in_full(dimension: int) -> int:
    """Memory that `full` needs at the worst."""
    return 8 * PEAK * dimension**2


def full(moments: Moments, rank: int | None = None, cut_off: float = CUT_OFF * UNIT, spread: bool = False) -> Gaussian:
    """`Gaussian.fit` in less memory: the moments are spent."""
    variance = variances(moments)
    mean = moments.mean
    values, vectors = eigen(moments.take_covariance())
    kept = min(int((values > cut_off).sum()), len(values) if rank is None else rank)
    return of_directions(mean, vectors[:, :kept].contiguous(), values[:kept].clone(), variance, spread)


def variances(moments: Moments) -> torch.Tensor:
    """The diagonal [D] of the covariance, without the rest of it."""
    squares = moments.second.diagonal()
    return ((squares - moments.total * moments.mean) / (moments.count - 1)).clamp(min=0)


def eigen(covariance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvalues [D], decreasing, and eigenvectors [D, D] of a symmetric float64 matrix, whose memory they take."""
    # the transpose of a symmetric matrix is itself, in the order of LAPACK: no copy is made
    matrix = covariance.numpy().T
    values, vectors = scipy.linalg.eigh(matrix, driver="evd", overwrite_a=True, check_finite=False)
    return torch.from_numpy(values[::-1].copy()), torch.from_numpy(np.ascontiguousarray(vectors[:, ::-1]))


def of_directions(
    mean: torch.Tensor, U: torch.Tensor, lambdas: torch.Tensor, variance: torch.Tensor, spread: bool
) -> Gaussian:
    """The Gaussian of these directions; `spread` gives the variance left out evenly to the directions left out."""
    left = len(mean) - len(lambdas)
    rest = max(0.0, float(variance.sum() - lambdas.sum())) / left if spread and left else 0.0
    return Gaussian(mean, U, lambdas, rest, variance)


def marginals(
    images: np.ndarray, chosen: np.ndarray | None = None, folder: Path | None = None, key: dict[str, Any] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance [D] of every pixel of uint8 images (rows `chosen` of them, else all), of exact sums.

    All ranks call it.
    """
    count, dimension = len(images) if chosen is None else len(chosen), int(np.prod(images.shape[1:]))
    if count < 2:
        raise ValueError(f"a variance needs at least 2 images, {count} were given")
    sums = {name: torch.zeros(dimension, dtype=torch.float64) for name in ("total", "squares")}

    def add(rows: slice) -> None:
        for part in pixels(images, rows, chosen).split(ROWS):
            centred = part.float() - 128
            ones = torch.ones(len(part))
            first, second = (ones @ centred).double(), (ones @ centred.square()).double()
            sums["total"] += first + 128 * len(part)
            sums["squares"] += second + 256 * first + 128**2 * len(part)

    block = max(1, BLOCK // (4 * dimension))
    passes.accumulate(sums, count, block, add, "means and variances", folder, key)
    mean = sums["total"] / count
    return mean, ((sums["squares"] - sums["total"] * mean) / (count - 1)).clamp(min=0)
