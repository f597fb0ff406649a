"""The leading eigenvectors of the covariance of images, without a covariance: of few images, and of images too large.

Few images have their eigenvectors in the singular value decomposition of their rows (`by_rows`): all of them, to rounding.
Those of images too large for a covariance take a few streams over the images (`randomised`).

Halko, Martinsson & Tropp (2011): with A [D, D] the covariance and Q [D, K] random, orthonormal bases Q of A Q, again and
again, come to span the leading eigenvectors; those of Q^T A Q [K, K] are then the best within it. K is the rank asked for
and `OVERSAMPLING` more. A is never formed: a step streams the images once,

    A Q = sum over images of r (r^T Q) / (N - 1),   r = image - mean,

with Q, A Q and one block of images in memory, in float32: 2 GB at 256 x 256 x 3 and rank 1024. Before each step Q is turned
to its own best approximation of the eigenvectors, so that no small variance is lost beside a large one. The eigenvalues
are the variances of the images along the directions found, to 1e-7 of the largest; with the exact sum of all variances
they say what is left out.

Every stream is shared by ranks and resumed (diffusion_model/passes.py).

Dimensions: N images, D = C*H*W, K directions tried, R rank.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg
import torch

from diffusion_model import arrays, experiment, passes, ranks
from diffusion_model.moments import pixels
from linear_structure.decompose import BLOCK, PEAK, marginals
from linear_structure.gaussian import CUT_OFF, UNIT, Gaussian, eigen

OVERSAMPLING = 64
STEPS = 2  # power iterations after the first product
KIND = "basis"
NULL = 1e-12  # of the largest squared length: what lies below is no direction of the images but rounding in float32
NUMBERS = 2**24  # of a block of rows of Q in float64


def bytes_of_rows(count: int, dimension: int) -> int:
    """Memory that the decomposition of so many rows needs at the worst."""
    return 8 * PEAK * count * dimension


def by_rows(
    images: np.ndarray,
    rank: int | None = None,
    cut_off: float = CUT_OFF * UNIT,
    spread: bool = False,
    chosen: np.ndarray | None = None,
    folder: Path | None = None,
    key: dict[str, Any] | None = None,
) -> Gaussian:
    """The Gaussian of uint8 images (rows `chosen` of them, else all) that are fewer than their pixels.

    N images have N - 1 directions: the left singular vectors of (image - mean) / sqrt(N - 1), [D, N] in float64, whose
    squared singular values are the variances. folder and key are those of `randomised`. All ranks call it.
    """
    count = len(images) if chosen is None else len(chosen)
    mean, variance = marginals(images, chosen, folder and folder / "marginals", {"images": key})
    rows = pixels(images, slice(0, count), chosen).double().sub_(mean).div_((count - 1) ** 0.5)
    U, roots, _ = scipy.linalg.svd(rows.numpy().T, full_matrices=False, overwrite_a=True, check_finite=False)
    lambdas = torch.from_numpy(roots[: count - 1]).square()
    kept = min(int((lambdas > cut_off).sum()), count if rank is None else rank)
    return Gaussian.of_directions(mean, torch.from_numpy(U[:, :kept].copy()), lambdas[:kept].clone(), variance, spread)


def randomised(
    images: np.ndarray,
    rank: int,
    cut_off: float = CUT_OFF * UNIT,
    spread: bool = False,
    chosen: np.ndarray | None = None,
    folder: Path | None = None,
    key: dict[str, Any] | None = None,
) -> Gaussian:
    """The Gaussian of the `rank` leading directions of uint8 images (rows `chosen` of them, else all).

    folder: where a killed fit leaves what it has, and goes on from; key: what the images are (JSON). All ranks call it.
    """
    count, dimension = len(images) if chosen is None else len(chosen), int(np.prod(images.shape[1:]))
    key = {"images": key, "rank": rank}
    mean, variance = marginals(images, chosen, folder and folder / "marginals", key)
    if not variance.any():
        return Gaussian.of_directions(mean, mean.new_zeros(dimension, 0), mean.new_zeros(0), variance, spread)
    mean_row, block = mean.float(), max(1, BLOCK // (4 * dimension))

    def stream(name: str, target: torch.Tensor, add: Callable[[torch.Tensor], None]) -> None:
        def add_rows(rows: slice) -> None:
            add(pixels(images, rows, chosen).float().sub_(mean_row))

        at = folder and folder / name.replace(" ", "-")
        passes.accumulate({"sum": target}, count, block, add_rows, name, at, key)

    done, basis = _resume(folder, key, dimension, min(rank + OVERSAMPLING, dimension, count - 1))
    for step in range(done, STEPS + 1):
        image = torch.zeros_like(basis)
        stream(f"step {step + 1} of {STEPS + 2}", image, lambda rows, q=basis, to=image: to.addmm_(rows.T, rows @ q))
        basis = _agreed(_next(basis, image))
        del image
        _keep(folder, key, basis, step + 1)
    inside = torch.zeros(basis.shape[1], basis.shape[1], dtype=torch.float64)
    stream(f"step {STEPS + 2} of {STEPS + 2}", inside, lambda rows: _add_outer(inside, (rows @ basis).double()))
    values, turn = eigen(inside / (count - 1))
    kept = min(rank, int((values > cut_off).sum()))
    U = torch.empty(dimension, kept, dtype=torch.float64)
    for rows in _parts(basis):
        U[rows] = basis[rows].double() @ turn[:, :kept]
    return Gaussian.of_directions(mean, orthonormal(U), values[:kept].clone(), variance, spread)


def _next(basis: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """An orthonormal basis of A Q from Q and A Q (whose memory it takes), turned to approximate eigenvectors, first the largest."""
    inside = sum(basis[rows].double().T @ image[rows].double() for rows in _parts(basis))
    _, turn = eigen((inside + inside.T) / 2)
    for rows in _parts(image):
        image[rows] = (image[rows].double() @ turn).to(image.dtype)
    return orthonormal(image)


def orthonormal(vectors: torch.Tensor) -> torch.Tensor:
    """The nearest orthonormal columns, in the same memory; of columns that depend on each other, a basis of fewer."""
    for _ in range(2):  # the first leaves errors of rounding times the condition, the second of rounding alone
        lengths = sum(vectors[rows].double().square().sum(0) for rows in _parts(vectors)).sqrt()
        scale = torch.where(lengths > 0, 1 / lengths, 0.0)
        gram = sum(_outer(vectors[rows].double() * scale) for rows in _parts(vectors))
        values, turn = eigen(gram)
        kept = int((values > NULL * values[0]).sum())
        back = turn.T if kept == len(values) else torch.eye(kept, dtype=torch.float64)
        turn = scale[:, None] * (turn[:, :kept] / values[:kept].sqrt()) @ back
        for rows in _parts(vectors):
            vectors[rows, :kept] = (vectors[rows].double() @ turn).to(vectors.dtype)
        vectors = vectors[:, :kept].contiguous()
    return vectors


def _outer(rows: torch.Tensor) -> torch.Tensor:
    """rows^T rows."""
    return rows.T @ rows


def _add_outer(total: torch.Tensor, rows: torch.Tensor) -> None:
    """Add rows^T rows to a sum."""
    total.addmm_(rows.T, rows)


def _parts(vectors: torch.Tensor) -> Iterator[slice]:
    """Slices of the rows of [D, K] that are small in float64."""
    size = max(1, NUMBERS // max(1, vectors.shape[1]))
    for start in range(0, len(vectors), size):
        yield slice(start, start + size)


def _agreed(basis: torch.Tensor) -> torch.Tensor:
    """The first rank's basis in every rank: processors that round differently find others. All ranks call it."""
    if experiment.world() == 1:
        return basis
    shape = ranks.from_first(list(basis.shape))
    basis = basis if ranks.first() else torch.zeros(shape, dtype=basis.dtype)
    ranks.sum_([basis])
    return basis


def _resume(folder: Path | None, key: dict[str, Any], dimension: int, width: int) -> tuple[int, torch.Tensor]:
    """Steps that are done and their basis; else none, and a random one. All ranks call it."""
    steps, path = passes.last(folder, "basis")
    steps, path = ranks.from_first([steps, path and str(path)])
    if path is None:
        generator = torch.Generator().manual_seed(0)
        return 0, torch.randn(dimension, width, generator=generator)
    content, meta = arrays.read_folder(Path(path), KIND, f"remove {folder}")
    passes.check_key(folder, meta, key)
    ranks.say(f"going on from {path}: {steps} of {STEPS + 2} steps are done")
    return steps, torch.from_numpy(np.array(content["basis"]))


def _keep(folder: Path | None, key: dict[str, Any], basis: torch.Tensor, steps: int) -> None:
    """Write the basis after so many steps, and then remove what led to it."""
    if folder is None:
        return
    if ranks.first():
        content = {"basis": basis.numpy()}
        passes.keep(folder, "basis", steps, lambda path: arrays.write_folder(path, KIND, content, key=key))
        passes.forget(folder / f"step-{steps}-of-{STEPS + 2}")
    ranks.barrier()
