"""How are these vectors distributed, to second order? Streaming, mergeable mean and covariance in float64.

The sums of x and of x x^T are kept, not their averages: two halves merged are the whole, and a block taken away again
leaves the rest (a jackknife). For uint8 pixels every sum is an integer below 2^53, hence exact however the data is cut
into batches and ranks. One class serves the Gaussian of images and the Frechet distance of features.

Sums of pixels are made of integer products: with c = x - 128 in int8 and n rows,

    sum x_i x_j = sum c_i c_j + 128 (sum c_i + sum c_j) + 128^2 n

where an int32 holds the left side for up to `ROWS` rows, and hence the right one too, whose carries cancel.

A `.npz` of `mu` and `sigma` is the layout of pytorch-fid's and EDM's reference statistics.

Dimensions: B batch, D features.
"""

import functools
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from diffusion_model import arrays, data, passes, ranks

ROWS = 2**15  # 255^2 * ROWS < 2^31
STRIP = 1536  # columns of a product: wide enough to be fast, narrow enough to skip most of the lower triangle
EXACT = 1024  # rows whose centred products float32 sums exactly: 128^2 * EXACT = 2^24
ASYMMETRY = 1e-4  # of the largest variance: what float32 covariances of others may differ by across the diagonal
BATCH = 2**25  # bytes of images at once; what is read once more for each batch is the D x D sum


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
        rows = rows.reshape(len(rows), -1)
        if rows.shape[1] != self.dimension:
            raise ValueError(f"rows of {rows.shape[1]} numbers {tuple(batch.shape)}, expected {self.dimension}")
        if rows.dtype == torch.uint8 and rows.device.type == "cpu":
            for part in rows.split(ROWS):
                add_pixels(part, self.total, self.second)
            self.count += len(rows)
            return self
        rows = rows.to(torch.float64)
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
    def variance(self) -> torch.Tensor:
        """The diagonal [D] of the covariance, without the rest of it."""
        if self.count < 2:
            raise ValueError(f"a variance needs at least 2 rows, {self.count} were seen")
        return ((self.second.diagonal() - self.total * self.mean) / (self.count - 1)).clamp(min=0)

    @property
    def covariance(self) -> torch.Tensor:
        """Unbiased covariance [D, D] (divided by count - 1, as pytorch-fid and numpy.cov do)."""
        if self.count < 2:
            raise ValueError(f"the covariance needs at least 2 rows, {self.count} were seen")
        return (self.second - torch.outer(self.total, self.mean)) / (self.count - 1)

    def take_covariance(self) -> torch.Tensor:
        """The covariance [D, D] in the memory of the second moment, which is gone with it: these moments are spent."""
        if self.count < 2:
            raise ValueError(f"the covariance needs at least 2 rows, {self.count} were seen")
        covariance, mean = self.second, self.mean
        for row, total in zip(covariance, self.total, strict=True):
            row.sub_(total * mean).div_(self.count - 1)
        self.second = covariance.new_zeros(0, 0)
        return covariance

    def save(self, folder: Path, **meta: Any) -> Path:
        """Write the sums as an arrays folder of kind "moments"; `meta` is added to what the moments carry."""
        content = {"total": self.total.numpy(), "second": self.second.numpy()}
        return arrays.write_folder(folder, "moments", content, count=self.count, **{**self.meta, **meta})

    @classmethod
    def load(cls, folder: Path, remedy: str = "run the command that writes it") -> "Moments":
        """Moments as saved, bit for bit, with their meta."""
        like = {"total": "finite [D]", "second": "finite [D, D]"}
        content, meta = arrays.read_folder(folder, "moments", remedy, like)
        arrays.expect(meta, Path(folder) / "meta.json", {"count": int}, remedy)
        given = {name: value for name, value in meta.items() if name not in ("format", "kind", "arrays", "count")}
        moments = cls(0, **given)
        moments.count = meta["count"]
        moments.total, moments.second = (torch.from_numpy(np.array(content[name])) for name in ("total", "second"))
        return moments


def of_images(
    split: data.Split, batch: int | None = None, chosen: np.ndarray | None = None, folder: Path | None = None
) -> Moments:
    """Moments of a split's uint8 pixels [C*H*W], streamed, with what names the split as their meta.

    chosen: rows of the split, else all; folder: where a killed stream leaves its sums and goes on from (see passes.py).
    Ranks share the batches, and every rank gets the sums of all, which are one rank's bit for bit. All ranks call it.
    """
    shape = list(split.images.shape[1:])
    meta = {"dataset": split.name, "split": split.split, "data_hash": split.hash, "shape": shape, "values": "uint8"}
    what = f"moments of {split.name}/{split.split}"
    return of_rows(split.images, chosen, folder, meta, what, batch)


def of_rows(
    images: np.ndarray,
    chosen: np.ndarray | None = None,
    folder: Path | None = None,
    meta: dict[str, Any] | None = None,
    what: str = "moments",
    batch: int | None = None,
) -> Moments:
    """The same of uint8 images [N, C, H, W], or of the rows `chosen` of them; `meta` says what they are of."""
    moments = Moments(int(np.prod(images.shape[1:])), **(meta or {}))
    moments.count = len(images) if chosen is None else len(chosen)
    sums = {"total": moments.total, "second": moments.second}
    batch = batch or max(1, min(ROWS, BATCH // moments.dimension))

    def add(rows: slice) -> None:
        add_pixels(pixels(images, rows, chosen), sums["total"], sums["second"])

    key = moments.meta | {"rows": None if chosen is None else zlib.crc32(np.ascontiguousarray(chosen))}
    passes.accumulate(sums, moments.count, batch, add, what, folder, key)
    return moments


def pixels(images: np.ndarray, rows: slice, chosen: np.ndarray | None = None) -> torch.Tensor:
    """Rows of uint8 images [N, C, H, W], or of those chosen among them, read into memory as [B, D]."""
    return torch.from_numpy(np.array(images[rows if chosen is None else chosen[rows]])).flatten(1)


def add_pixels(rows: torch.Tensor, total: torch.Tensor, second: torch.Tensor) -> None:
    """Add uint8 rows [B <= ROWS, D] to their sum [D] and their sum of outer products [D, D], exactly."""
    count, dimension = rows.shape
    centred = (rows ^ 128).view(torch.int8)
    sums = _product(torch.ones(count, 2, dtype=torch.int8), centred)[0]
    total += sums + 128 * count
    for start in range(0, dimension, STRIP):
        stop = min(start + STRIP, dimension)
        found = _product(centred[:, start:stop], centred[:, start:])
        found += 128 * (sums[start:stop, None] + sums[start:] + 128 * count)
        second[start:stop, start:] += found
        second[stop:, start:stop] += found[:, stop - start :].T


def _product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """left^T right of int8 [B, m] and [B, n] as int32 [m, n], without rounding."""
    # a dimension of size 1 may have any stride, at which torch's integer product silently computes nothing
    if min(*left.shape, *right.shape) > 1 and _integers_are_exact():
        return torch._int_mm(left.T, right)
    parts = zip(left.split(EXACT), right.split(EXACT), strict=True)
    return sum((a.float().T @ b.float()).to(torch.int32) for a, b in parts)


@functools.cache
def _integers_are_exact() -> bool:
    """Whether this machine's int8 product is right at the largest numbers: without VNNI, its pairs saturate at 2^15."""
    extremes = torch.tensor([-128, 127], dtype=torch.int8)
    rows = extremes[torch.randint(2, (256, 64), generator=torch.Generator().manual_seed(0))]
    rows[:, :2] = extremes
    try:
        found = torch._int_mm(rows.T, rows)
    except (RuntimeError, AttributeError):
        return False
    return torch.equal(found.double(), rows.double().T @ rows.double())


def write_npz(path: Path, moments: Moments) -> None:
    """Mean and covariance as the `mu` and `sigma` that pytorch-fid and EDM read, beside the count and the meta."""
    held = {"mu": moments.mean.numpy(), "sigma": moments.covariance.numpy(), "count": np.array(moments.count)}
    held["meta"] = np.array(json.dumps(moments.meta))

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez(file, **held)

    arrays.write_atomically(path, write)


@dataclass(frozen=True)
class Statistics:
    """Mean [D] and covariance [D, D] that came without their sums, what they are of, and of how many rows (None: not told)."""

    mean: torch.Tensor
    covariance: torch.Tensor
    meta: dict[str, Any]
    count: int | None = None

    def moments(self, count: int | None = None) -> Moments:
        """The sums that have this mean and covariance, of `count` rows where it was not told."""
        count = count if self.count is None else self.count
        if count is None or count < 2:
            raise ValueError(f"mean and covariance of {count} rows: their sums need a number, at least 2")
        found = Moments(0, **self.meta)
        found.count, found.total = count, self.mean * count
        found.second = self.covariance * (count - 1) + torch.outer(found.total, self.mean)
        return found


NPZ = (
    ("mu", "fiu", "real ones"),
    ("sigma", "fiu", "real ones"),
    ("count", "iu", "an integer"),
    ("meta", "U", "a text"),
)


def read_npz(path: Path) -> Statistics:
    """The mean `mu` and covariance `sigma` in a file of pytorch-fid, of EDM or of `write_npz`; nothing in it is unpickled."""
    path = Path(path)
    held = arrays.read_archive(path, "mu [D] and sigma [D, D]")
    for name, kinds, what in NPZ:
        if name in held and held[name].dtype.kind not in kinds:
            raise ValueError(f"{path} holds {held[name].dtype} numbers in {name}, expected {what}")
    found = {name: torch.from_numpy(held[name].astype(np.float64)) for name in ("mu", "sigma") if name in held}
    shapes = {name: list(array.shape) for name, array in held.items()}
    dimension = (shapes.get("mu") or [0])[0]
    if not dimension or [shapes.get(name) for name in ("mu", "sigma")] != [[dimension], [dimension, dimension]]:
        raise ValueError(f"{path} holds {shapes or 'nothing'}, expected mu [D] and sigma [D, D]")
    mu, sigma = found["mu"], found["sigma"]
    if not (torch.isfinite(mu).all() and torch.isfinite(sigma).all()):
        raise ValueError(f"{path} holds NaN or infinite values: moments are of finite numbers")
    if float((sigma - sigma.T).abs().max()) > ASYMMETRY * float(sigma.diagonal().abs().max()):
        raise ValueError(f"sigma in {path} is not symmetric: it is no covariance")
    if any(held[name].size != 1 for name in ("count", "meta") if name in held):
        raise ValueError(f"{path} holds {shapes}, expected one count and one meta")
    try:
        meta = arrays.parse_json(str(held["meta"].item()), path) if "meta" in held else {}
        arrays.expect(meta, path, dict)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"meta in {path} is no JSON object ({str(error)[:80]}): write the file again") from None
    return Statistics(mu, sigma, meta, held["count"].item() if "count" in held else None)
