"""What a covariance of images costs in memory, and means and variances of pixels without one.

`Gaussian.fit` turns a covariance into its eigenvectors in place: `PEAK` matrices of D x D in float64 at the worst, 4.8 GB
at 64 x 64 x 3. Images too large for that are decomposed by low_rank.py. Where only means and variances of pixels are
asked for, they are streamed by themselves, with D numbers of memory.

Dimensions: N images, D = C*H*W.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffusion_model import passes
from diffusion_model.moments import pixels

PEAK = 4  # the covariance, two as workspace of the decomposition, one to spare
BLOCK = 2**28  # bytes of a block of images in float32
ROWS = 1024  # images whose sums of centred squares float32 holds exactly: 128^2 * ROWS = 2^24


def bytes_in_full(dimension: int) -> int:
    """Memory that a covariance and its eigenvectors need at the worst."""
    return 8 * PEAK * dimension**2


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
