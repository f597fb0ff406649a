"""What would the score be if pixels, or spatial frequencies, were independent? A Gaussian with a diagonal covariance.

N(mu, H diag(variances) H), where H is the identity ("pixel") or, channel by channel, the orthonormal Hartley transform
("fourier"), the real form of Fourier's: with F the unitary 2-D discrete Fourier transform, H = Re F - Im F is symmetric and
its own inverse (Bracewell 1983). A covariance that is the same after every cyclic shift of the image is diagonal in it, with
the power spectrum as its variances, equal at k and -k. `fit` keeps the power spectrum E |F (x - mean)|^2, so it finds the
Gaussian of all images in all their cyclic shifts around the true mean. Channels are independent in both bases.

Every formula is that of gaussian.py along each coordinate: an elementwise product between two fast transforms, D numbers
in all and no eigenvectors.

Dimensions: B batch, D = C*H*W.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffusion_model import arrays
from diffusion_model.data import Scaling
from diffusion_model.moments import Moments
from linear_structure.gaussian import column, jump_levels, per_pixel, ratio, rows_of

BASES = ("pixel", "fourier")
KIND = "diagonal gaussian"


class Diagonal:
    """N(mu [D], H diag(variances [D]) H) of images `shape` [C, H, W], in one of `BASES`."""

    def __init__(
        self,
        mu: torch.Tensor,
        variances: torch.Tensor,
        shape: tuple[int, int, int],
        basis: str,
        meta: dict[str, Any] | None = None,
    ) -> None:
        self.mu, self.variances = (torch.as_tensor(value, dtype=torch.float64) for value in (mu, variances))
        self.shape, self.basis, self.meta = tuple(shape), basis, dict(meta or {})
        if basis not in BASES:
            raise ValueError(f"basis {basis!r}: expected one of {', '.join(BASES)}")
        if not self.mu.shape == self.variances.shape == (math.prod(self.shape),) or len(self.shape) != 3:
            shapes = [list(value.shape) for value in (self.mu, self.variances)]
            raise ValueError(f"mu and variances have shapes {shapes}, expected [D] both for images {list(shape)}")
        if not (self.variances >= 0).all():
            raise ValueError(f"variances from {self.variances.min()}: expected none below 0")

    @property
    def dimension(self) -> int:
        """D."""
        return len(self.mu)

    @classmethod
    def fit(cls, moments: Moments, shape: tuple[int, int, int], basis: str) -> "Diagonal":
        """The diagonal Gaussian with these moments of images [C, H, W], in their space."""
        if moments.dimension != math.prod(shape):
            raise ValueError(f"moments of {moments.dimension} pixels, expected {math.prod(shape)} for {list(shape)}")
        variances = moments.covariance.diagonal()
        if basis == "fourier":
            size = shape[1] * shape[2]
            blocks = [slice(start, start + size) for start in range(0, moments.dimension, size)]
            variances = torch.cat([_power(moments.covariance[block, block], shape[1:]) for block in blocks])
        return cls(moments.mean, variances.clamp(min=0).clone(), shape, basis)

    @classmethod
    def of_images(cls, images: np.ndarray, basis: str, batch: int = 1024) -> "Diagonal":
        """The same from uint8 images [N, C, H, W] themselves, in two streams over them and D numbers of memory."""
        if len(images) < 2:
            raise ValueError(f"variances need at least 2 images, {len(images)} were given")
        shape = images.shape[1:]
        starts = range(0, len(images), batch)
        parts = (torch.from_numpy(np.array(images[start : start + batch])).flatten(1).double() for start in starts)
        mean = sum(part.sum(0) for part in parts) / len(images)
        empty = cls(mean, torch.zeros_like(mean), shape, basis)
        total = torch.zeros_like(mean)
        for start in starts:
            rows = torch.from_numpy(np.array(images[start : start + batch])).flatten(1).double() - mean
            if basis == "fourier":
                total += torch.fft.fft2(rows.reshape(-1, *shape), norm="ortho").abs().square().sum(0).flatten()
            else:
                total += rows.square().sum(0)
        return cls(mean, total / (len(images) - 1), empty.shape, basis)

    def mapped(self, scaling: Scaling, shape: tuple[int, int, int]) -> "Diagonal":
        """This Gaussian of uint8 pixels [C, H, W] in the model space of `scaling`, exactly."""
        scale, shift = per_pixel(scaling, shape, self.dimension)
        if tuple(shape) != self.shape:
            raise ValueError(f"statistics of images {list(self.shape)}, expected {list(shape)}")
        return Diagonal(self.mu * scale + shift, self.variances * scale.square(), self.shape, self.basis, self.meta)

    def score(self, x: torch.Tensor, level: torch.Tensor | float) -> torch.Tensor:
        """Gradient of the log density at a level above 0 (scalar or [B]); x [B, ...] as everywhere here."""
        return self._apply(x, -1 / (self.variances + column(level) ** 2), centred=False)

    def denoise(self, x: torch.Tensor, level: torch.Tensor | float) -> torch.Tensor:
        """E[x0 | x] for x = x0 + level * noise."""
        return self._apply(x, ratio(self.variances, column(level)))

    def teleport(self, x: torch.Tensor, a: torch.Tensor | float, b: torch.Tensor | float) -> torch.Tensor:
        """The probability flow from level a > 0 to level b, in one jump."""
        a, b = jump_levels(a, b)
        return self._apply(x, ((self.variances + b**2) / (self.variances + a**2)).sqrt())

    def log_density(self, x: torch.Tensor, level: torch.Tensor | float) -> torch.Tensor:
        """ln of the density of noised data at x, in nats, float64 [B]; at level 0 every variance must be above 0."""
        total = self.variances + column(level) ** 2
        if (total <= 0).any():
            flat = int((self.variances == 0).sum())
            raise ValueError(
                f"no density at level 0: {flat} of the {self.dimension} directions have variance 0; give a level above 0"
            )
        rows = rows_of(x.double(), self.dimension)
        total = total.to(rows)
        along = self._turned(rows - self.mu.to(rows))
        return -(along.square() / total + (2 * math.pi * total).log()).sum(1) / 2

    def sample(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Draws without noise, float64 [count, D]."""
        noise = torch.randn(count, self.dimension, generator=generator, dtype=torch.float64)
        return self.mu + self._turned(noise * self.variances.sqrt())

    def _apply(self, x: torch.Tensor, factors: torch.Tensor, centred: bool = True) -> torch.Tensor:
        """H diag(factors) H (x - mu) (+ mu if centred), factors [1 or B, D]."""
        rows = rows_of(x, self.dimension)
        mu = self.mu.to(rows)
        found = self._turned(factors.to(rows) * self._turned(rows - mu))
        return (found + mu if centred else found).reshape(x.shape)

    def _turned(self, rows: torch.Tensor) -> torch.Tensor:
        """H times each row of [B, D]."""
        if self.basis == "pixel":
            return rows
        waves = torch.fft.fft2(rows.reshape(-1, *self.shape), norm="ortho")
        return (waves.real - waves.imag).reshape(rows.shape)

    def save(self, folder: Path, **meta: Any) -> Path:
        """Write an arrays folder; `meta` is added to what the Gaussian carries."""
        content = {"mu": self.mu.numpy(), "variances": self.variances.numpy()}
        said = {**self.meta, **meta, "basis": self.basis, "image": list(self.shape)}
        return arrays.write_folder(folder, KIND, content, **said)

    @classmethod
    def load(cls, folder: Path, remedy: str = "run the command that writes it") -> "Diagonal":
        """The Gaussian as saved, bit for bit."""
        content, meta = arrays.read_folder(folder, KIND, remedy, {"mu": "finite [D]", "variances": "finite [D]"})
        arrays.expect(meta, Path(folder) / "meta.json", {"basis": str, "image": [int]}, remedy)
        held = [torch.from_numpy(np.array(content[name])) for name in ("mu", "variances")]
        given = {name: meta[name] for name in meta if name not in ("format", "kind", "arrays", "basis", "image")}
        return cls(*held, tuple(meta["image"]), meta["basis"], given)


def _power(covariance: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """E |F x|^2 [H*W] of one channel with this covariance [H*W, H*W]: the diagonal of F covariance F*."""
    rows = torch.fft.fft2(covariance.reshape(-1, *size), norm="ortho").conj().reshape(len(covariance), -1)
    both = torch.fft.fft2(rows.T.reshape(-1, *size), norm="ortho").reshape(len(covariance), -1)
    return both.diagonal().real
