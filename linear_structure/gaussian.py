"""What would the score be if the data were Gaussian? Score, denoiser and probability flow in closed form.

The data is N(mu, U diag(lambdas) U^T + rest (I - U U^T)) with U [D, R] orthonormal; noised to a level s it has the same
eigenvectors and each variance v becomes v + s^2. Along an eigenvector of variance v, with r = x - mu:

    score      -r / (v + s^2)
    denoiser    r v / (v + s^2)                            (the Wiener filter)
    flow        r sqrt((v + b^2) / (v + a^2))              from level a to level b: d ln r / ds = s / (v + s^2)

    log density -(r^2 / (v + s^2) + ln(2 pi (v + s^2))) / 2, summed over all directions, in nats

(Wang & Vastola 2023, section 3; in the coordinate x / alpha this holds for every linear SDE.) The first three are
mu + o r + U diag(i - o) U^T r with `o` the factor at v = rest and `i` at v = lambdas: two thin products, never a D x D matrix.
Rank 0 is the isotropic Gaussian: rest = 0 "mean only", rest = tr / D "mean and variance". A direction of variance 0 has a
score and a density at levels above 0 alone.

On disk the statistics are those of uint8 pixels, so that one folder serves every run; `mapped` takes them to a run's model
space. A common scale only scales `lambdas`. Scales that differ by channel, S, turn the covariance into S U diag(lambdas)
U^T S, whose eigenvectors are others: they follow exactly from the thin factor S U diag(sqrt(lambdas)) [D, R] by a singular
value decomposition, so neither the D x D covariance nor the images are needed again.

Dimensions: B batch, D = C*H*W, R rank. Decompositions and log densities are in float64, products in the precision of x.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg
import torch

from diffusion_model import arrays
from diffusion_model.data import Scaling
from diffusion_model.moments import Moments

CUT_OFF = (
    1e-6  # variance of images on [-1, 1]; what lies below is dropped (the covariance of uint8 images rounds at 5e-6)
)
NEGATIVE = 1e-4  # of the largest eigenvalue: what rounding may leave below 0
LIKE = {"mu": "finite [D]", "U": "finite [D, R]", "lambdas": "finite [R]", "variance": "finite [D]"}  # of its folder
UNIT = 127.5**2  # pixel variance of one unit of variance on [-1, 1]


class Gaussian:
    """N(mu [D], U diag(lambdas) U^T + rest (I - U U^T)), U [D, R], lambdas [R] decreasing, all held in float64.

    `variance` [D] is the diagonal of the whole covariance, also where U leaves part of it out; `isotropic` needs its mean.
    """

    def __init__(
        self,
        mu: torch.Tensor,
        U: torch.Tensor,
        lambdas: torch.Tensor,
        rest: float = 0.0,
        variance: torch.Tensor | None = None,
        meta: dict[str, Any] | None = None,
    ) -> None:
        self.mu, self.U, self.lambdas = (torch.as_tensor(value, dtype=torch.float64) for value in (mu, U, lambdas))
        self.rest = float(rest)
        dimension, rank = self.U.shape if self.U.ndim == 2 else (None, None)
        if self.mu.shape != (dimension,) or self.lambdas.shape != (rank,) or self.mu.ndim != 1:
            shapes = [list(value.shape) for value in (self.mu, self.U, self.lambdas)]
            raise ValueError(f"mu, U and lambdas have shapes {shapes}, expected [D], [D, R] and [R]")
        if self.rest < 0 or (self.lambdas < 0).any():
            raise ValueError(f"variances below 0: lambdas from {self.lambdas.min()}, rest {self.rest}")
        if variance is None:
            variance = self.rest + self.U.square() @ (self.lambdas - self.rest)
        self.variance = torch.as_tensor(variance, dtype=torch.float64)
        self.meta = dict(meta or {})
        self._means, self._bases = {}, {}

    @property
    def dimension(self) -> int:
        """D."""
        return len(self.mu)

    @property
    def rank(self) -> int:
        """R."""
        return len(self.lambdas)

    @classmethod
    def fit(
        cls,
        moments: Moments,
        rank: int | None = None,
        cut_off: float = CUT_OFF * UNIT,
        spread: bool = False,
        spend: bool = False,
    ) -> "Gaussian":
        """The Gaussian with these moments, in their space; directions of variance up to `cut_off` are dropped.

        `rank` keeps that many directions at most; `spread` gives the variance left out evenly to the directions left out;
        `spend` takes the memory of the moments, which are gone then.
        """
        mean, variance = moments.mean, moments.variance
        if rank == 0:
            values, vectors = mean.new_zeros(0), mean.new_zeros(moments.dimension, 0)
        else:
            values, vectors = eigen(moments.take_covariance() if spend else moments.covariance)
            if values[-1] < -NEGATIVE * values.abs().max():
                raise ValueError(
                    f"the covariance has eigenvalues from {float(values[-1]):.4g} to {float(values[0]):.4g}, expected none "
                    "below 0: it is no covariance, or was rounded too far; make the statistics from the images"
                )
        kept = min(int((values > cut_off).sum()), moments.dimension if rank is None else rank)
        return cls.of_directions(mean, vectors[:, :kept].contiguous(), values[:kept].clone(), variance, spread)

    @classmethod
    def of_directions(
        cls, mean: torch.Tensor, U: torch.Tensor, lambdas: torch.Tensor, variance: torch.Tensor, spread: bool
    ) -> "Gaussian":
        """The Gaussian of these directions; `spread` gives the variance left out evenly to the directions left out."""
        left = len(mean) - len(lambdas)
        rest = max(0.0, float(variance.sum() - lambdas.sum())) / left if spread and left else 0.0
        return cls(mean, U, lambdas, rest, variance)

    def mapped(self, scaling: Scaling, shape: tuple[int, int, int]) -> "Gaussian":
        """This Gaussian of uint8 pixels [C, H, W] in the model space of `scaling`; `rest` keeps the trace."""
        scale, shift = per_pixel(scaling, shape, self.dimension)
        variance = self.variance * scale.square()
        if (scale == scale[0]).all():
            U, lambdas = self.U, self.lambdas * scale[0].square()
        else:
            U, roots, _ = torch.linalg.svd(scale[:, None] * self.U * self.lambdas.sqrt(), full_matrices=False)
            lambdas = roots.square()
        rest = 0.0
        if self.rest:
            rest = max(0.0, float(variance.sum() - lambdas.sum())) / (self.dimension - self.rank)
        return Gaussian(self.mu * scale + shift, U, lambdas, rest, variance, self.meta)

    def isotropic(self, with_variance: bool = True) -> "Gaussian":
        """The rank-0 Gaussian of the same mean: with the mean variance in every direction, or with none (mean only)."""
        rest = float(self.variance.mean()) if with_variance else 0.0
        return Gaussian(self.mu, self.U[:, :0], self.lambdas[:0], rest, None, self.meta)

    def moved(self, mu: torch.Tensor) -> "Gaussian":
        """The same covariance around another mean [D]; both share one U in memory."""
        moved = Gaussian(mu, self.U, self.lambdas, self.rest, self.variance, self.meta)
        moved._bases = self._bases
        return moved

    def score(self, x: torch.Tensor, level: torch.Tensor | float) -> torch.Tensor:
        """Gradient of the log density at noise std `level` > 0 (scalar or [B]); x [B, ...] as everywhere here."""
        level = column(level)
        return self._apply(x, -1 / (self.lambdas + level**2), -1 / (self.rest + level**2), centred=False)

    def denoise(self, x: torch.Tensor, level: torch.Tensor | float) -> torch.Tensor:
        """E[x0 | x] for x = x0 + level * noise; interchangeable with a network's denoiser."""
        level = column(level)
        return self._apply(x, ratio(self.lambdas, level), ratio(torch.full_like(level, self.rest), level))

    def teleport(self, x: torch.Tensor, a: torch.Tensor | float, b: torch.Tensor | float) -> torch.Tensor:
        """The probability flow from level a > 0 to level b, in one jump without a network."""
        a, b = jump_levels(a, b)
        inside = ((self.lambdas + b**2) / (self.lambdas + a**2)).sqrt()
        return self._apply(x, inside, ((self.rest + b**2) / (self.rest + a**2)).sqrt())

    def log_density(self, x: torch.Tensor, level: torch.Tensor | float) -> torch.Tensor:
        """ln of the density of noised data at x, in nats, float64 [B]; at level 0 the covariance must be invertible."""
        level = column(level)
        left = self.dimension - self.rank
        outside, inside = self.rest + level**2, self.lambdas + level**2
        if (left and (outside <= 0).any()) or (inside <= 0).any():
            flat = (left if self.rest == 0 else 0) + int((self.lambdas == 0).sum())
            raise ValueError(
                f"no density at level 0: {flat} of the {self.dimension} directions have variance 0; give a level above 0"
            )
        rows = self._rows(x.double())
        mu, U = self._held(rows)
        residual = rows - mu
        along = residual @ U
        found = inside.log().sum(1).to(rows) + (along.square() / inside.to(rows)).sum(1)
        if left:
            across = (residual - along @ U.T).square().sum(1)
            found = found + left * outside.log()[:, 0].to(rows) + across / outside[:, 0].to(rows)
        return -(found + self.dimension * math.log(2 * math.pi)) / 2

    def sample(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Draws without noise, float64 [count, D]."""
        noise = torch.randn(count, self.dimension, generator=generator, dtype=torch.float64)
        return self._apply(self.mu + noise, self.lambdas.sqrt()[None], self.mu.new_full((1, 1), self.rest**0.5))

    def _apply(
        self, x: torch.Tensor, inside: torch.Tensor, outside: torch.Tensor, centred: bool = True
    ) -> torch.Tensor:
        """outside * r + U diag(inside - outside) U^T r (+ mu if centred), factors [1 or B, R] and [1 or B, 1]."""
        rows = self._rows(x)
        mu, U = self._held(x)
        residual = rows - mu
        outside, apart = outside.to(x), (inside - outside).to(x)
        found = torch.addcmul(mu, outside, residual) if centred else outside * residual
        if self.rank:
            found.addmm_((residual @ U).mul_(apart), U.T)
        return found.reshape(x.shape)

    def _held(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """mu and U in the precision and on the device of x, cast once."""
        key = (x.dtype, x.device)
        if key not in self._means:
            self._means[key] = self.mu.to(x)
        if key not in self._bases:
            self._bases[key] = self.U.to(x)
        return self._means[key], self._bases[key]

    def _rows(self, x: torch.Tensor) -> torch.Tensor:
        """x [B, ...] as [B, D]."""
        return rows_of(x, self.dimension)

    def save(self, folder: Path, **meta: Any) -> Path:
        """Write an arrays folder of kind "gaussian"; `meta` is added to what the Gaussian carries."""
        content = {name: getattr(self, name).numpy() for name in ("mu", "U", "lambdas", "variance")}
        return arrays.write_folder(folder, "gaussian", content, **{**self.meta, **meta, "rest": self.rest})

    @classmethod
    def load(cls, folder: Path, remedy: str = "run `python linear_structure/get_parameters.py` first") -> "Gaussian":
        """The Gaussian as saved, bit for bit, in the space it was saved in."""
        content, meta = arrays.read_folder(folder, "gaussian", remedy, LIKE)
        arrays.expect(meta, Path(folder) / "meta.json", {"rest": float}, remedy)
        held = {name: torch.from_numpy(np.array(content[name])) for name in LIKE}
        given = {name: value for name, value in meta.items() if name not in ("format", "kind", "arrays", "rest")}
        return cls(**held, rest=meta["rest"], meta=given)


def closed_forms(gaussian: Gaussian) -> dict[str, Gaussian]:
    """The closed forms that are compared, least first: mean only, mean and variance (isotropic), Gaussian."""
    return {"mean": gaussian.isotropic(False), "isotropic": gaussian.isotropic(True), "gaussian": gaussian}


def eigen(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvalues [D], decreasing, and eigenvectors [D, D] of a symmetric float64 matrix, whose memory they take."""
    # the transpose of a symmetric matrix is itself, in the order of LAPACK: no copy is made
    values, vectors = scipy.linalg.eigh(matrix.numpy().T, driver="evd", overwrite_a=True, check_finite=False)
    return torch.from_numpy(values[::-1].copy()), torch.from_numpy(np.ascontiguousarray(vectors[:, ::-1]))


def rows_of(x: torch.Tensor, dimension: int) -> torch.Tensor:
    """Images x [B, ...] as rows [B, D]; images of another size are refused."""
    rows = x.reshape(len(x), -1)
    if rows.shape[1] != dimension:
        raise ValueError(f"images {list(x.shape)} of {rows.shape[1]} numbers, the statistics have {dimension}")
    return rows


def per_pixel(scaling: Scaling, shape: tuple[int, int, int], dimension: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and shift of every pixel of images [C, H, W], float64 [D] each."""
    scale, shift = (
        torch.as_tensor(value, dtype=torch.float64).expand(shape[0]).repeat_interleave(shape[1] * shape[2])
        for value in (scaling.scale, scaling.shift)
    )
    if len(scale) != dimension:
        raise ValueError(f"statistics of {dimension} pixels, expected {len(scale)} for images {list(shape)}")
    return scale, shift


def column(level: torch.Tensor | float) -> torch.Tensor:
    """A level, scalar or [B], as float64 [1, 1] or [B, 1] on the CPU."""
    return torch.as_tensor(level, dtype=torch.float64).detach().cpu().reshape(-1, 1)


def jump_levels(a: torch.Tensor | float, b: torch.Tensor | float) -> tuple[torch.Tensor, torch.Tensor]:
    """The ends of a flow as columns; one from level 0, or to one below it, is refused."""
    a, b = column(a), column(b)
    if not ((a > 0).all() and (b >= 0).all()):
        raise ValueError(f"the flow from level {a.min():g} to {b.min():g}: expected one above 0 to one not below 0")
    return a, b


def ratio(variance: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
    """v / (v + s^2), 0 where both are 0: a direction without variance carries no data."""
    total = variance + level**2
    return torch.where(total > 0, variance / total, 0.0)
