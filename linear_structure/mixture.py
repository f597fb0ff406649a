"""Scores of mixtures: of Gaussians, of one Gaussian a class, and of the training images themselves.

Data that is N(mu_c, Sigma_c) with weight w_c has, noised to level s, the responsibilities

    p(c | x) = softmax_c( ln w_c + ln N(x; mu_c, Sigma_c + s^2 I) )

and its score and denoiser are the components' own, weighted by them. Where a class is known, p is 1 at it. Training images
as points of weight 1 / N have p(i | x) = softmax_i( -|x - x_i|^2 / (2 s^2) ) and the denoiser sum_i p(i | x) x_i: what a
network would learn that fitted its training set perfectly.

Logarithms and distances are in float64: at level 1e-3 they are differences of numbers near 1e9. At level 0 the
responsibilities are those of level `NEAR`, that is of the nearest component. The flow has no formula, as the
responsibilities change along it; it is integrated (flow.py) in the coordinates of span.py, without a network. One component
is its Gaussian, formula included.

Dimensions: B batch, C components, N images, D = C*H*W pixels, R rank.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffusion_model import arrays
from diffusion_model.data import Scaling
from linear_structure.flow import Integrated, integrate
from linear_structure.gaussian import Gaussian, column, per_pixel, rows_of
from linear_structure.span import Span

KIND = "gaussian mixture"
CLASSES = "class-conditional gaussian"
POINTS = "delta mixture"
NEAR = 1e-10
REMEDY = "run the command that writes it"
ARRAYS = {  # of its folder, as `arrays.read_folder` takes them
    "weights": "finite [C]", "mu": "finite [C, D]", "variance": "finite [C, D]", "rest": "finite [C]", "U": "finite [D, S]",
    "lambdas": "finite [L]", "rank": "integers [C]", "basis": "integers [C]",
}  # fmt: skip


class Mixture(Integrated):
    """sum_c weights[c] N(component c); weights [C] above 0 that sum to one, components of one dimension."""

    def __init__(
        self,
        weights: torch.Tensor | Sequence[float],
        components: Sequence[Gaussian],
        meta: dict[str, Any] | None = None,
    ) -> None:
        self.weights = torch.as_tensor(weights, dtype=torch.float64)
        self.components, self.meta = list(components), dict(meta or {})
        sizes = sorted({component.dimension for component in self.components})
        if self.weights.shape != (len(self.components),) or len(sizes) != 1:
            raise ValueError(
                f"weights {list(self.weights.shape)} for {len(self.components)} components of {sizes} dimensions: "
                "expected one weight a component and one dimension"
            )
        empty = (self.weights <= 0).nonzero()[:, 0].tolist()
        if empty:
            raise ValueError(f"components {empty} are empty (weight 0 or below): leave them out")
        if not abs(float(self.weights.sum()) - 1) < 1e-6:
            raise ValueError(f"weights sum to {float(self.weights.sum()):.9g}, expected 1")
        self._span: Span | None = None

    def __len__(self) -> int:
        """C."""
        return len(self.components)

    @property
    def dimension(self) -> int:
        """D."""
        return self.components[0].dimension

    def mapped(self, scaling: Scaling, shape: tuple[int, int, int]) -> "Mixture":
        """This mixture of uint8 pixels [C, H, W] in the model space of `scaling`, component by component."""
        scale, shift = per_pixel(scaling, shape, self.dimension)
        done, components = {}, []
        for component in self.components:
            key = (id(component.U), id(component.lambdas), component.rest, id(component.variance))
            if key not in done:
                done[key] = component.mapped(scaling, shape)
            components.append(done[key].moved(component.mu * scale + shift))
        return Mixture(self.weights, components, self.meta)

    def log_joint(self, x: torch.Tensor, level: torch.Tensor | float) -> torch.Tensor:
        """ln of weight times density of each component, float64 [B, C]."""
        parts = [component.log_density(x, level) for component in self.components]
        return torch.stack(parts, 1) + self.weights.log().to(x.device)

    def log_density(self, x: torch.Tensor, level: torch.Tensor | float) -> torch.Tensor:
        """ln of the density of noised data at x, in nats, float64 [B]; at level 0 every component must have one."""
        return self.log_joint(x, level).logsumexp(1)

    def responsibilities(self, x: torch.Tensor, level: torch.Tensor | float) -> torch.Tensor:
        """p(component | x), float64 [B, C]; rows sum to one at any level."""
        return self.log_joint(x, column(level).clamp(min=NEAR)[:, 0]).softmax(1)

    def score(self, x: torch.Tensor, level: torch.Tensor | float) -> torch.Tensor:
        """Gradient of the log density at a level above 0 (scalar or [B])."""
        return self._weighted(Gaussian.score, x, level)

    def denoise(self, x: torch.Tensor, level: torch.Tensor | float) -> torch.Tensor:
        """E[x0 | x] for x = x0 + level * noise."""
        return self._weighted(Gaussian.denoise, x, level)

    def _weighted(
        self, part: Callable[..., torch.Tensor], x: torch.Tensor, level: torch.Tensor | float
    ) -> torch.Tensor:
        """Sum over components of responsibility times `part`; images to which a component is impossible skip it."""
        if len(self) == 1:
            return part(self.components[0], x, level)
        shares = self.responsibilities(x, level).to(x.dtype)
        levels = column(level)[:, 0].expand(len(x))
        total = torch.zeros_like(x)
        for share, component in zip(shares.unbind(1), self.components, strict=True):
            rows = (share > 0).nonzero()[:, 0]
            if len(rows):
                found = part(component, x[rows], levels[rows.cpu()])
                total = total.index_add(0, rows, share[rows].reshape(-1, *(1,) * (x.ndim - 1)) * found)
        return total

    def _integrated(self, x: torch.Tensor, a: Any, b: Any, tolerance: float) -> torch.Tensor:
        """The flow in the coordinates of the components' span."""
        if len(self) == 1:
            return self.components[0].teleport(x, a, b)
        if self._span is None:
            self._span = Span(self.weights, self.components)
        start, outside = self._span.enter(x)
        end = integrate(self._span.denoise, start, a, b, tolerance)
        return self._span.leave(end, outside).to(x.dtype).reshape(x.shape)

    def sample(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Draws without noise, float64 [count, D]."""
        chosen = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        found = self.weights.new_empty(count, self.dimension)
        for index in chosen.unique().tolist():
            rows = chosen == index
            found[rows] = self.components[index].sample(int(rows.sum()), generator)
        return found

    def save(self, folder: Path, **meta: Any) -> Path:
        """Write an arrays folder; `meta` is added to what the mixture carries."""
        return arrays.write_folder(folder, KIND, _packed(self), **{**self.meta, **meta})

    @classmethod
    def load(cls, folder: Path, remedy: str = REMEDY) -> "Mixture":
        """The mixture as saved, bit for bit."""
        return _unpacked(folder, KIND, remedy)


class ClassConditional:
    """One Gaussian a class, with the classes' shares; every method takes labels [B], or is given them once by `given`.

    `mixture` is the same data without its labels.
    """

    def __init__(self, mixture: Mixture) -> None:
        self.mixture = mixture

    def given(self, labels: torch.Tensor) -> "Given":
        """The closed form of a batch with these labels [B], for samplers and everything else that knows no labels."""
        return Given(self, labels)

    def mapped(self, scaling: Scaling, shape: tuple[int, int, int]) -> "ClassConditional":
        """In the model space of `scaling`."""
        return ClassConditional(self.mixture.mapped(scaling, shape))

    def score(self, x: torch.Tensor, level: torch.Tensor | float, labels: torch.Tensor) -> torch.Tensor:
        """Gradient of the log density of x [B, ...] given its class, at a level above 0 (scalar or [B])."""
        return self._by_class(Gaussian.score, labels, x, level)

    def denoise(self, x: torch.Tensor, level: torch.Tensor | float, labels: torch.Tensor) -> torch.Tensor:
        """E[x0 | x, class]."""
        return self._by_class(Gaussian.denoise, labels, x, level)

    def teleport(
        self, x: torch.Tensor, a: torch.Tensor | float, b: torch.Tensor | float, labels: torch.Tensor
    ) -> torch.Tensor:
        """The probability flow of each image's class from level a > 0 to level b, in closed form."""
        return self._by_class(Gaussian.teleport, labels, x, a, b)

    def log_density(self, x: torch.Tensor, level: torch.Tensor | float, labels: torch.Tensor) -> torch.Tensor:
        """ln of the density given the class, in nats, float64 [B]."""
        return self._by_class(Gaussian.log_density, labels, x, level)

    def sample(self, count: int, generator: torch.Generator, labels: torch.Tensor) -> torch.Tensor:
        """Draws without noise, one a label, float64 [count, D]."""
        found = self.mixture.weights.new_empty(count, self.mixture.dimension)
        for label, rows in self._classes(labels, count):
            found[rows] = self.mixture.components[label].sample(len(rows), generator)
        return found

    def _by_class(
        self,
        part: Callable[..., torch.Tensor],
        labels: torch.Tensor,
        x: torch.Tensor,
        *levels: torch.Tensor | float,
    ) -> torch.Tensor:
        """`part` of each image's own component, in the order of x."""
        each = [column(level)[:, 0].expand(len(x)) for level in levels]
        order, found = [], []
        for label, rows in self._classes(labels, len(x)):
            order.append(rows)
            at = rows.to(x.device)
            found.append(part(self.mixture.components[label], x[at], *(level[rows] for level in each)))
        back = torch.cat(order).argsort().to(x.device)
        return torch.cat(found)[back]

    def _classes(self, labels: torch.Tensor, count: int) -> Iterator[tuple[int, torch.Tensor]]:
        """Each class of a batch of `count` images with its rows."""
        labels = torch.as_tensor(labels).detach().cpu()
        if labels.shape != (count,):
            raise ValueError(f"labels {list(labels.shape)} for {count} images: expected one label an image")
        for label in labels.unique().tolist():
            if not 0 <= label < len(self.mixture):
                raise ValueError(f"label {label}: expected a class from 0 to {len(self.mixture) - 1}")
            yield int(label), (labels == label).nonzero()[:, 0]

    def save(self, folder: Path, **meta: Any) -> Path:
        """Write an arrays folder; `meta` is added to what the mixture carries."""
        return arrays.write_folder(folder, CLASSES, _packed(self.mixture), **{**self.mixture.meta, **meta})

    @classmethod
    def load(cls, folder: Path, remedy: str = REMEDY) -> "ClassConditional":
        """The Gaussians as saved, bit for bit."""
        return cls(_unpacked(folder, CLASSES, remedy))


class Given:
    """A class-conditional Gaussian at the labels [B] of one batch: a closed form like the others."""

    def __init__(self, form: ClassConditional, labels: torch.Tensor) -> None:
        self.form, self.labels = form, labels

    def mapped(self, scaling: Scaling, shape: tuple[int, int, int]) -> "Given":
        """In the model space of `scaling`."""
        return Given(self.form.mapped(scaling, shape), self.labels)

    def score(self, x: torch.Tensor, level: torch.Tensor | float) -> torch.Tensor:
        """Gradient of the log density given the labels."""
        return self.form.score(x, level, self.labels)

    def denoise(self, x: torch.Tensor, level: torch.Tensor | float) -> torch.Tensor:
        """E[x0 | x, labels]."""
        return self.form.denoise(x, level, self.labels)

    def teleport(self, x: torch.Tensor, a: torch.Tensor | float, b: torch.Tensor | float) -> torch.Tensor:
        """The probability flow given the labels."""
        return self.form.teleport(x, a, b, self.labels)

    def log_density(self, x: torch.Tensor, level: torch.Tensor | float) -> torch.Tensor:
        """ln of the density given the labels, in nats, float64 [B]."""
        return self.form.log_density(x, level, self.labels)

    def sample(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Draws without noise, one a label."""
        return self.form.sample(count, generator, self.labels)


class DeltaMixture(Integrated):
    """The training images as points of equal weight: uint8 [N, C, H, W], in memory or mapped, in the space of `scaling`.

    Every call streams over them in blocks of `block` images with a softmax that carries its running maximum: exact, the same
    for any block to rounding, with memory for one block in float64 beside the batch.
    """

    def __init__(
        self,
        images: np.ndarray,
        scaling: Scaling | None = None,
        block: int = 1024,
        meta: dict[str, Any] | None = None,
    ) -> None:
        if images.dtype != np.uint8 or images.ndim != 4 or not len(images):
            raise ValueError(f"images {list(images.shape)} {images.dtype}: expected at least one, uint8 [N, C, H, W]")
        if block < 1:
            raise ValueError(f"blocks of {block} images: expected at least 1")
        channels = images.shape[1]
        self.images, self.block, self.meta = images, block, dict(meta or {})
        self.scaling = scaling or Scaling((1.0,) * channels, (0.0,) * channels)
        self._map = per_pixel(self.scaling, images.shape[1:], self.dimension)

    def __len__(self) -> int:
        """N."""
        return len(self.images)

    @property
    def dimension(self) -> int:
        """D."""
        return math.prod(self.images.shape[1:])

    def mapped(self, scaling: Scaling, shape: tuple[int, int, int]) -> "DeltaMixture":
        """These uint8 images [C, H, W] in the model space of `scaling`."""
        if tuple(shape) != self.images.shape[1:]:
            raise ValueError(f"images {list(self.images.shape[1:])}, expected {list(shape)}")
        return DeltaMixture(self.images, scaling, self.block, self.meta)

    def score(self, x: torch.Tensor, level: torch.Tensor | float) -> torch.Tensor:
        """Gradient of the log density at a level above 0 (scalar or [B])."""
        rows = rows_of(x.double(), self.dimension)
        mean, _ = self._softmax(rows, level)
        return ((mean - rows) / column(level).to(rows) ** 2).to(x.dtype).reshape(x.shape)

    def denoise(self, x: torch.Tensor, level: torch.Tensor | float) -> torch.Tensor:
        """E[x0 | x] for x = x0 + level * noise; at level 0 the nearest image."""
        mean, _ = self._softmax(rows_of(x.double(), self.dimension), level)
        return mean.to(x.dtype).reshape(x.shape)

    def log_density(self, x: torch.Tensor, level: torch.Tensor | float) -> torch.Tensor:
        """ln of the density of noised data at x, in nats, float64 [B]; points have none at level 0."""
        level = column(level)
        if (level <= 0).any():
            raise ValueError("no density at level 0: the data are points; give a level above 0")
        _, total = self._softmax(rows_of(x.double(), self.dimension), level)
        return total - math.log(len(self)) - self.dimension / 2 * (2 * math.pi * level[:, 0] ** 2).log().to(total)

    @torch.no_grad()
    def nearest(self, x: torch.Tensor, level: torch.Tensor | float, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The `count` images of largest weight at x, first the largest: their p(i | x) float64 and rows i, [B, count]."""
        if not 1 <= count <= len(self):
            raise ValueError(f"the nearest {count} images of {len(self)}: expected 1 to {len(self)}")
        rows = rows_of(x.double(), self.dimension)
        best, where = rows.new_empty(len(rows), 0), torch.empty(len(rows), 0, dtype=torch.int64, device=x.device)
        total = rows.new_full((len(rows),), -math.inf)
        for start, _, logits in self._blocks(rows, level):
            total = torch.logaddexp(total, logits.logsumexp(1))
            places = torch.arange(start, start + logits.shape[1], device=x.device).expand_as(logits)
            best, chosen = torch.cat([best, logits], 1).topk(min(count, best.shape[1] + logits.shape[1]))
            where = torch.cat([where, places], 1).gather(1, chosen)
        return (best - total[:, None]).exp(), where

    def sample(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Images drawn with replacement, float64 [count, D]."""
        chosen = torch.randint(len(self), (count,), generator=generator)
        scale, shift = self._map
        return torch.from_numpy(np.stack([self.images[row] for row in chosen.tolist()])).flatten(1) * scale + shift

    @torch.no_grad()
    def _softmax(self, rows: torch.Tensor, level: torch.Tensor | float) -> tuple[torch.Tensor, torch.Tensor]:
        """Weighted mean of the images [B, D] and ln of the sum of exp(-|x - x_i|^2 / (2 level^2)) [B]."""
        peak, total = rows.new_full((len(rows), 1), -math.inf), rows.new_zeros(len(rows), 1)
        mean = torch.zeros_like(rows)
        for _, points, logits in self._blocks(rows, level):
            higher = torch.maximum(peak, logits.amax(1, keepdim=True))
            shrink, shares = (peak - higher).exp(), (logits - higher).exp()
            total = total * shrink + shares.sum(1, keepdim=True)
            mean = mean * shrink + shares @ points
            peak = higher
        return mean / total, (peak + total.log())[:, 0]

    def _blocks(
        self, rows: torch.Tensor, level: torch.Tensor | float
    ) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
        """First row, points [n, D] and -|x - x_i|^2 / (2 level^2) [B, n] of each block of images, on the device of rows."""
        scale, shift = (value.to(rows) for value in self._map)
        squares = rows.square().sum(1, keepdim=True)
        width = 2 * column(level).clamp(min=NEAR).to(rows) ** 2
        for start in range(0, len(self), self.block):
            block = torch.from_numpy(np.array(self.images[start : start + self.block])).to(rows.device)
            points = block.flatten(1) * scale + shift
            distances = squares - 2 * rows @ points.T + points.square().sum(1)
            yield start, points, -distances.clamp(min=0) / width

    def save(self, folder: Path, **meta: Any) -> Path:
        """Write an arrays folder that holds a copy of the images; `meta` is added to what the mixture carries."""
        said = {**self.meta, **meta, "scaling": self.scaling.as_dict()}
        return arrays.write_folder(folder, POINTS, {"images": self.images}, **said)

    @classmethod
    def load(cls, folder: Path, remedy: str = REMEDY) -> "DeltaMixture":
        """The mixture as saved, its images mapped from the folder."""
        content, meta = arrays.read_folder(folder, POINTS, remedy)
        if "images" not in content or "scaling" not in meta:
            raise ValueError(f"{folder} lacks its images or scaling: {remedy}")
        given = {name: value for name, value in meta.items() if name not in ("format", "kind", "arrays", "scaling")}
        return cls(content["images"], Scaling.from_dict(meta["scaling"]), meta=given)


def _packed(mixture: Mixture) -> dict[str, np.ndarray]:
    """Arrays of a mixture; a U that components share is kept once: basis [C] says whose, rank [C] where it ends."""
    components = mixture.components
    bases = {id(component.U): component.U for component in components}
    names = list(bases)
    content = {
        "weights": mixture.weights,
        "mu": torch.stack([component.mu for component in components]),
        "variance": torch.stack([component.variance for component in components]),
        "rest": torch.tensor([component.rest for component in components], dtype=torch.float64),
        "U": torch.cat(list(bases.values()), 1),
        "lambdas": torch.cat([component.lambdas for component in components]),
        "rank": torch.tensor([component.rank for component in components]),
        "basis": torch.tensor([names.index(id(component.U)) for component in components]),
    }
    return {name: value.numpy() for name, value in content.items()}


def _unpacked(folder: Path, kind: str, remedy: str) -> Mixture:
    """The inverse of `_packed`, from a folder of this kind."""
    content, meta = arrays.read_folder(folder, kind, remedy, ARRAYS)
    held = {name: torch.from_numpy(np.array(content[name])) for name in ARRAYS}
    ranks, owners = held["rank"].tolist(), held["basis"].tolist()
    if set(owners) != set(range(max(owners, default=-1) + 1)) or min(ranks, default=-1) < 0 or not owners:
        raise ValueError(f"{folder} holds components without a basis or of negative rank: {remedy}")
    widths = [ranks[owners.index(basis)] for basis in range(max(owners) + 1)]
    if any(ranks[index] != widths[owner] for index, owner in enumerate(owners)):
        raise ValueError(f"{folder} holds components of one basis and different ranks: {remedy}")
    for name, length, wanted in (("U", held["U"].shape[1], sum(widths)), ("lambdas", len(held["lambdas"]), sum(ranks))):
        if length != wanted:
            raise ValueError(f"{folder / name}.npy holds {length} directions, the components have {wanted}: {remedy}")
    bases = [basis.contiguous() for basis in held["U"].split(widths, 1)]
    lambdas, spreads = held["lambdas"].split(ranks), held["variance"].unbind()
    components: list[Gaussian] = []
    for index, owner in enumerate(owners):
        first = owners.index(owner)
        same = torch.equal(lambdas[index], lambdas[first]) and torch.equal(spreads[index], spreads[first])
        if first < index and same and held["rest"][index] == held["rest"][first]:
            components.append(components[first].moved(held["mu"][index]))
        else:
            parts = held["mu"][index], bases[owner], lambdas[index], float(held["rest"][index]), spreads[index]
            components.append(Gaussian(*parts))
    given = {name: value for name, value in meta.items() if name not in ("format", "kind", "arrays")}
    return Mixture(held["weights"], components, given)
