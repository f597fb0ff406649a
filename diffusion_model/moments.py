"""How are these vectors distributed, to second order? Streaming, mergeable mean and covariance in float64.

The sums of x and of x x^T are kept, not their averages: two halves merged are the whole, and a block taken away again
leaves the rest (a jackknife). For uint8 pixels every sum is an integer below 2^53, hence exact however the data is cut
into batches and ranks. One class serves the Gaussian of images and the Frechet distance of features.

Dimensions: B batch, D features.
"""

from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from diffusion_model import arrays, data, experiment, ranks


class Moments:
    """Count, sum [D] and sum of outer products [D, D] of the vectors seen so far; `meta` says what they are of."""

    def __init__(self, dimension: int, **meta: Any) -> None:
        self.count = 0
        self.total = torch.zeros(dimension, dtype=torch.float64)
        self.second = torch.zeros(dimension, dimension, dtype=torch.float64)
        self.meta = meta

    @property
    def dimension(self) -> int:
        """D."""
        return len(self.total)

    def update(self, batch: torch.Tensor | np.ndarray) -> Self:
        """Add the rows of batch [B, ...], uint8 or float, flattened to [B, D]."""
        rows = batch if isinstance(batch, torch.Tensor) else torch.from_numpy(np.array(batch))
        rows = rows.reshape(len(rows), -1).to(torch.float64)
        if rows.shape[1] != self.dimension:
            raise ValueError(f"rows of {rows.shape[1]} numbers {tuple(batch.shape)}, expected {self.dimension}")
        if not torch.isfinite(rows).all():
            raise ValueError(f"a batch of {len(rows)} rows holds NaN or infinite values: moments are of finite numbers")
        self.count += len(rows)
        self.total += rows.sum(0).cpu()
        self.second += (rows.T @ rows).cpu()
        return self

    def merge(self, other: "Moments") -> Self:
        """Add what another has seen."""
        return self._combine(other, 1)

    def merge_ranks(self) -> Self:
        """Add what the other ranks have seen, in every rank; exact for uint8. All ranks call it."""
        self.count = sum(ranks.collect(self.count))
        ranks.sum_([self.total])
        ranks.sum_([self.second])
        return self

    def remove(self, other: "Moments") -> Self:
        """Take away what another has seen; it must be part of what this one has."""
        if other.count > self.count:
            raise ValueError(f"cannot take {other.count} rows from moments of {self.count}")
        return self._combine(other, -1)

    def _combine(self, other: "Moments", sign: int) -> Self:
        if other.dimension != self.dimension:
            raise ValueError(f"moments of {other.dimension} dimensions, expected {self.dimension}")
        self.count += sign * other.count
        self.total += sign * other.total
        self.second += sign * other.second
        return self

    def copy(self) -> "Moments":
        """An independent copy."""
        return Moments(self.dimension, **self.meta).merge(self)

    @property
    def mean(self) -> torch.Tensor:
        """Mean [D]."""
        if not self.count:
            raise ValueError("moments of no rows have no mean: update them first")
        return self.total / self.count

    @property
    def covariance(self) -> torch.Tensor:
        """Unbiased covariance [D, D] (divided by count - 1, as pytorch-fid and numpy.cov do)."""
        if self.count < 2:
            raise ValueError(f"the covariance needs at least 2 rows, {self.count} were seen")
        return (self.second - torch.outer(self.total, self.mean)) / (self.count - 1)

    def save(self, folder: Path, **meta: Any) -> Path:
        """Write the sums as an arrays folder of kind "moments"; `meta` is added to what the moments carry."""
        content = {"total": self.total.numpy(), "second": self.second.numpy()}
        return arrays.write_folder(folder, "moments", content, count=self.count, **{**self.meta, **meta})

    @classmethod
    def load(cls, folder: Path, remedy: str = "run the command that writes it") -> "Moments":
        """Moments as saved, bit for bit, with their meta."""
        content, meta = arrays.read_folder(folder, "moments", remedy)
        shapes = {name: list(content[name].shape) if name in content else None for name in ("total", "second")}
        dimension = (shapes["total"] or [0])[0]
        if not dimension or shapes != {"total": [dimension], "second": [dimension, dimension]} or "count" not in meta:
            raise ValueError(f"{folder} holds {shapes}, expected total [D], second [D, D] and a count: {remedy}")
        given = {name: value for name, value in meta.items() if name not in ("format", "kind", "arrays", "count")}
        moments = cls(0, **given)
        moments.count = int(meta["count"])
        moments.total, moments.second = (torch.from_numpy(np.array(content[name])) for name in ("total", "second"))
        return moments


def of_images(split: data.Split, batch: int = 1024) -> Moments:
    """Moments of a split's uint8 pixels [C*H*W], streamed, with what names the split as their meta.

    Ranks share the batches, and every rank gets the sums of all, which are one rank's bit for bit. All ranks call it.
    """
    shape = list(split.images.shape[1:])
    moments = Moments(
        int(np.prod(shape)), dataset=split.name, split=split.split, data_hash=split.hash, shape=shape, values="uint8"
    )
    rows = ranks.share(len(split.images), batch)
    starts = range(rows.start, rows.stop, batch)
    for start in experiment.progress(starts, f"moments of {split.name}/{split.split}", "batch"):
        moments.update(split.images[start : min(start + batch, rows.stop)])
    return moments.merge_ranks()
