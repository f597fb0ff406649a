"""Fit a mixture of Gaussians to images: k-means++ clusters with their covariances, or expectation maximisation.

k-means   seeds drawn by squared distance (Arthur & Vassilvitskii 2007) from a sample, then Lloyd's rounds over all images
          until none changes its cluster. Each cluster becomes the Gaussian of its own images, at `rank` directions with the
          variance left out spread over the others (a cluster's probabilistic principal components, Tipping & Bishop 1999).
em        maximum likelihood, started from k-means, of components with full covariances inside one subspace: that of the
          `rank` leading principal components P [D, R] of all images. Outside it all components share one mean and one
          variance, the images' own. So EM finds how components differ within P, never which P would be best; with
          `rank` None P is everything above the cut-off and the fit is the plain full-covariance one.
classes   no clusters are sought: the labels say them.

`shared` gives all components one covariance, the pooled one within. `floor` is added to every variance, as an image of few
pixels or a cluster of fewer images than pixels has directions without any; the original's is 1e-5 on [-1, 1].

Images are uint8 [N, C, H, W], mapped, and read in batches; EM holds their N x R projections in memory. Statistics are
those of uint8 pixels: `mapped` takes the mixture to a run's model space.
"""

import math
from collections.abc import Callable

import numpy as np
import torch

from diffusion_model import experiment
from diffusion_model.moments import Moments
from linear_structure.gaussian import UNIT, Gaussian
from linear_structure.mixture import ClassConditional, Mixture

METHODS = ("kmeans", "em")
FLOOR = 1e-5  # variance of images on [-1, 1]
SEEDS_FROM = 8_192  # images that the k-means++ seeds are drawn from
BATCH = 1024
ROUNDS = 50  # of k-means or EM at most
SETTLED = 1e-6  # EM ends when a round adds less than this to the mean log-likelihood, in nats a dimension
Reader = Callable[[slice | torch.Tensor], torch.Tensor]


def fit(
    images: np.ndarray,
    components: int,
    rank: int | None = None,
    seed: int = 0,
    method: str = "kmeans",
    shared: bool = False,
    floor: float = FLOOR * UNIT,
    rounds: int = ROUNDS,
) -> Mixture:
    """A mixture of this many Gaussians of uint8 pixels [N, C, H, W]; a function of the images and the arguments alone."""
    _check(images)
    if method not in METHODS:
        raise ValueError(f"method {method!r}: expected one of {', '.join(METHODS)}")
    if not 1 <= components <= len(images):
        raise ValueError(f"{components} components for {len(images)} images: expected 1 to {len(images)}")
    if not floor > 0:
        raise ValueError(f"a floor of {floor}: expected a variance above 0, in pixels squared")
    if method == "kmeans":
        owner, mean = kmeans(_reader(images), len(images), components, seed, rounds)
        return _of_clusters(images, owner, mean, rank, floor, shared, {"method": method, "seed": seed})
    return _em(images, components, rank, seed, shared, floor, rounds)


def fit_classes(
    images: np.ndarray,
    labels: np.ndarray,
    classes: int,
    rank: int | None = None,
    floor: float = FLOOR * UNIT,
    shared: bool = False,
) -> ClassConditional:
    """The Gaussian of each class's images; labels [N] from 0 to `classes` - 1."""
    _check(images)
    owner = torch.from_numpy(np.array(labels)).long()
    if owner.shape != (len(images),) or int(owner.min()) < 0 or int(owner.max()) >= classes:
        raise ValueError(
            f"labels {list(owner.shape)} from {int(owner.min())} to {int(owner.max())}: expected one an image "
            f"({len(images)}), from 0 to {classes - 1}"
        )
    absent = (owner.bincount(minlength=classes) == 0).nonzero()[:, 0].tolist()
    if absent:
        raise ValueError(f"classes {absent} have no images: leave them out and number the others from 0")
    mean = _means(_reader(images), len(images), owner, classes)
    return ClassConditional(_of_clusters(images, owner, mean, rank, floor, shared, {"method": "classes"}))


def kmeans(read: Reader, count: int, clusters: int, seed: int, rounds: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The cluster of each row [N] and the clusters' means [K, D]; `read` gives rows in float64 [n, D]."""
    generator = torch.Generator().manual_seed(seed)
    mean = _seeds(read, count, clusters, generator)
    owner = torch.full((count,), -1)
    for _ in experiment.progress(range(rounds), f"k-means, {clusters} clusters", "round"):
        fresh, distances = _nearest(read, count, mean)
        for cluster in (fresh.bincount(minlength=clusters) == 0).nonzero()[:, 0].tolist():
            # an empty cluster takes the row that lies worst with its own, from a cluster that can spare it
            spare = fresh.bincount(minlength=clusters)[fresh] > 1
            row = int(torch.where(spare, distances, -1.0).argmax())
            fresh[row], distances[row] = cluster, 0.0
        settled = bool((fresh == owner).all())
        owner = fresh
        if settled:
            break
        mean = _means(read, count, owner, clusters)
    return owner, mean


def _seeds(read: Reader, count: int, clusters: int, generator: torch.Generator) -> torch.Tensor:
    """k-means++ [K, D]: rows are drawn with odds of their squared distance to the nearest seed so far.

    Of a few drawn at a time the one is taken that leaves the least distance in all, which seldom puts two into one cluster.
    """
    drawn = torch.randperm(count, generator=generator)[: max(SEEDS_FROM, 10 * clusters)]
    parts = drawn.sort().values.split(BATCH)
    rows = torch.cat([read(part) for part in parts])
    chosen = [int(torch.randint(len(rows), (), generator=generator))]
    squares = rows.square().sum(1)
    nearest = (rows - rows[chosen[0]]).square().sum(1)
    while len(chosen) < clusters:
        if not nearest.max() > 1e-12 * squares.max():  # what rounding leaves between equal rows
            raise ValueError(f"{clusters} clusters for {len(chosen)} distinct images of {len(rows)}: ask for fewer")
        tried = torch.multinomial(nearest, 2 + int(math.log(clusters)), replacement=True, generator=generator)
        distances = (squares - 2 * rows[tried] @ rows.T + squares[tried, None]).clamp(min=0)
        left = torch.minimum(nearest, distances)
        best = int(left.sum(1).argmin())
        chosen.append(int(tried[best]))
        nearest = left[best]
        nearest[chosen[-1]] = 0.0
    return rows[chosen]


def _nearest(read: Reader, count: int, mean: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The nearest mean of each row [N], the first of equals, and its squared distance [N]."""
    owner, distances = [], []
    for start in range(0, count, BATCH):
        rows = read(slice(start, min(start + BATCH, count)))
        found = rows.square().sum(1, keepdim=True) - 2 * rows @ mean.T + mean.square().sum(1)
        least = found.min(1)
        owner.append(least.indices)
        distances.append(least.values.clamp(min=0))
    return torch.cat(owner), torch.cat(distances)


def _means(read: Reader, count: int, owner: torch.Tensor, clusters: int) -> torch.Tensor:
    """Mean of each cluster [K, D]."""
    total = 0.0
    for start in range(0, count, BATCH):
        rows = slice(start, min(start + BATCH, count))
        block = read(rows)
        total = total + block.new_zeros(clusters, block.shape[1]).index_add_(0, owner[rows], block)
    return total / owner.bincount(minlength=clusters)[:, None]


def _of_clusters(
    images: np.ndarray,
    owner: torch.Tensor,
    mean: torch.Tensor,
    rank: int | None,
    floor: float,
    shared: bool,
    meta: dict,
) -> Mixture:
    """The mixture of the Gaussians of clusters; one covariance in memory at a time."""
    read, clusters = _reader(images), len(mean)
    counts = owner.bincount(minlength=clusters)
    if shared:
        pooled = Moments(mean.shape[1])
        for start in range(0, len(images), BATCH):
            rows = slice(start, min(start + BATCH, len(images)))
            pooled.update(read(rows) - mean[owner[rows]])
        base = _raised(pooled, rank, floor)
        components = [base.moved(centre) for centre in mean]
    else:
        components = []
        for cluster in experiment.progress(range(clusters), "covariances", "component"):
            moments = Moments(mean.shape[1])
            for rows in (owner == cluster).nonzero()[:, 0].split(BATCH):
                moments.update(read(rows))
            components.append(_raised(moments, rank, floor))
    meta = {**meta, "rank": rank, "shared": shared, "floor": floor, "count": len(images)}
    return Mixture(counts.double() / len(images), components, meta)


def _raised(moments: Moments, rank: int | None, floor: float) -> Gaussian:
    """The Gaussian of these moments with `floor` added to every variance; a single image is a ball around it."""
    if moments.count < 2:
        return Gaussian(moments.mean, moments.total.new_zeros(moments.dimension, 0), torch.zeros(0), floor)
    found = Gaussian.fit(moments, rank, spread=rank is not None)
    return Gaussian(found.mu, found.U, found.lambdas + floor, found.rest + floor)


def _em(
    images: np.ndarray, components: int, rank: int | None, seed: int, shared: bool, floor: float, rounds: int
) -> Mixture:
    """Full covariances within the leading principal components, by EM from k-means there."""
    whole = Moments(int(np.prod(images.shape[1:])))
    for start in range(0, len(images), BATCH):
        whole.update(images[start : start + BATCH])
    space = Gaussian.fit(whole, rank, spread=True)
    if not space.rank:
        raise ValueError(f"the {len(images)} images do not differ: a mixture has nothing to find in them")
    read = _reader(images)
    starts = range(0, len(images), BATCH)
    rows = torch.cat([(read(slice(start, start + BATCH)) - space.mu) @ space.U for start in starts])
    owner, _ = kmeans(rows.__getitem__, len(rows), components, seed, ROUNDS)
    shares = torch.nn.functional.one_hot(owner, components).double()
    inner, reached = _maximised(rows, shares, shared, floor), -torch.inf
    for _ in experiment.progress(range(rounds), f"EM, {components} components", "round"):
        shares, likelihood = _expected(inner, rows)
        if likelihood - reached < SETTLED * space.rank:
            break
        reached, inner = likelihood, _maximised(rows, shares, shared, floor)
    meta = {"method": "em", "seed": seed, "rank": rank, "shared": shared, "floor": floor, "count": len(images)}
    return Mixture(inner.weights, _lifted(inner, space, floor), meta)


def _expected(inner: Mixture, rows: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Responsibilities [N, C] and the mean log-likelihood of the rows [N, R]."""
    joint = torch.cat([inner.log_joint(part, 0.0) for part in rows.split(BATCH)])
    return joint.softmax(1), float(joint.logsumexp(1).mean())


def _maximised(rows: torch.Tensor, shares: torch.Tensor, shared: bool, floor: float) -> Mixture:
    """The mixture of greatest likelihood [R dimensions] where rows [N, R] belong to components by `shares` [N, C]."""
    held = shares.sum(0)
    poor = (held < 1).nonzero()[:, 0].tolist()
    if poor:
        raise ValueError(f"components {poor} came to hold less than one image: ask for fewer, or another seed")
    means = shares.T @ rows / held[:, None]
    covariances = []
    for share, mean, count in zip(shares.unbind(1), means, held, strict=True):
        apart = rows - mean
        covariances.append((apart * share[:, None]).T @ apart / count)
    weights = held / len(rows)
    if shared:
        pooled = sum(weight * covariance for weight, covariance in zip(weights, covariances, strict=True))
        base = _dense(means[0], pooled, floor)
        return Mixture(weights, [base.moved(mean) for mean in means])
    return Mixture(weights, [_dense(*pair, floor) for pair in zip(means, covariances, strict=True)])


def _dense(mean: torch.Tensor, covariance: torch.Tensor, floor: float) -> Gaussian:
    """The Gaussian with this covariance [R, R], raised by `floor`."""
    values, vectors = torch.linalg.eigh(covariance)
    return Gaussian(mean, vectors.flip(1).contiguous(), values.flip(0).clamp(min=0) + floor)


def _lifted(inner: Mixture, space: Gaussian, floor: float) -> list[Gaussian]:
    """Components within the subspace as components of the whole space; the variance outside is the images' own."""
    done: dict[int, Gaussian] = {}
    for component in inner.components:
        if id(component.U) not in done:
            U = space.U @ component.U
            done[id(component.U)] = Gaussian(space.mu, U, component.lambdas, space.rest + floor)
    return [done[id(part.U)].moved(space.mu + space.U @ part.mu) for part in inner.components]


def _reader(images: np.ndarray) -> Reader:
    """What gives the rows of uint8 images as float64 [n, D]."""

    def read(rows: slice | torch.Tensor) -> torch.Tensor:
        chosen = images[rows if isinstance(rows, slice) else rows.numpy()]
        return torch.from_numpy(np.array(chosen)).flatten(1).double()

    return read


def _check(images: np.ndarray) -> None:
    """Refuse what is no stack of uint8 images."""
    if images.dtype != np.uint8 or images.ndim != 4 or not len(images):
        raise ValueError(f"images {list(images.shape)} {images.dtype}: expected at least one, uint8 [N, C, H, W]")
