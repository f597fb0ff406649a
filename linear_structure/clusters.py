"""Fit a mixture of Gaussians to images: k-means++ clusters with their covariances, or expectation maximisation.

k-means   seeds drawn by squared distance (Arthur & Vassilvitskii 2007) from a sample, then Lloyd's rounds over all images
          until none changes its cluster. Each cluster becomes the Gaussian of its own images, at `rank` directions with the
          variance left out spread over the others (a cluster's probabilistic principal components, Tipping & Bishop 1999).
em        maximum likelihood, started from k-means, of components with full covariances inside one subspace: that of the
          `rank` leading principal components P [D, R] of all images. Outside it all components share one mean and one
          variance, the images' own. So EM finds how components differ within P, never which P would be best; with
          `rank` None P is everything above the cut-off and the fit is the plain full-covariance one.
`shared` gives all components one covariance, the pooled one within. `floor` is added to every variance, as an image of few
pixels or a cluster of fewer images than pixels has directions without any; the original's is 1e-5 on [-1, 1].

Images are uint8 [N, C, H, W], mapped, and read in batches; EM holds their N x R projections in memory. Statistics are
those of uint8 pixels, from exact sums: `mapped` takes the mixture to a run's model space.

Ranks share the sums for covariances; the first seeks the clusters. A killed fit that has a folder goes on from the round
of k-means or EM that it had a minute before, or at the component that it was at, and ends in the same bits.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffusion_model import arrays, experiment, passes, ranks
from diffusion_model.moments import Moments, of_rows
from linear_structure.gaussian import UNIT, Gaussian, eigen
from linear_structure.mixture import Mixture

METHODS = ("kmeans", "em")
FLOOR = 1e-5  # variance of images on [-1, 1]
SEEDS_FROM = 8_192  # images that the k-means++ seeds are drawn from
BATCH = 1024
ROUNDS = 50  # of k-means or EM at most
KIND = "clusters"
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
    folder: Path | None = None,
    key: dict[str, Any] | None = None,
) -> Mixture:
    """A mixture of this many Gaussians of uint8 pixels [N, C, H, W]; a function of the images and the arguments alone.

    folder: where a killed fit leaves what it has; key: what the images are (JSON). All ranks call it.
    """
    _check(images)
    if method not in METHODS:
        raise ValueError(f"method {method!r}: expected one of {', '.join(METHODS)}")
    if not 1 <= components <= len(images):
        raise ValueError(f"{components} components for {len(images)} images: expected 1 to {len(images)}")
    if not floor > 0:
        raise ValueError(f"a floor of {floor}: expected a variance above 0, in pixels squared")
    meta = {"method": method, "seed": seed, "rank": rank, "shared": shared, "floor": floor, "count": len(images)}
    key = {"images": key, "components": components, "rounds": rounds, **meta}
    if method == "em":
        weights, parts = _em(images, components, rank, seed, shared, floor, rounds, folder, key)
        return Mixture(weights, parts, meta)
    read = _reader(images)
    owner, mean = ranks.first_makes(lambda: kmeans(read, len(images), components, seed, rounds, folder, key))
    parts = _of_clusters(images, owner, mean, rank, floor, shared, folder, key)
    return Mixture(owner.bincount(minlength=components).double() / len(images), parts, meta)


def once(folder: Path | None, key: dict[str, Any], make: Callable[[Path | None], Gaussian]) -> Gaussian:
    """One Gaussian of several, made once and kept in its own folder until all are there. All ranks call it.

    make(parts): `parts` is the folder where a killed one leaves what it has.
    """
    if folder is None:
        return make(None)
    if ranks.from_first(arrays.is_finished(folder)):
        found = Gaussian.load(folder, f"remove {folder.parent}")
        passes.check_key(folder.parent, found.meta, key)
        return found
    parts = folder.with_name(f"parts-{folder.name}")
    found = make(parts)
    if ranks.first():
        found.save(folder, key=key)
        passes.forget(parts)
    ranks.barrier()
    return found


def kmeans(
    read: Reader,
    count: int,
    clusters: int,
    seed: int,
    rounds: int,
    folder: Path | None = None,
    key: dict[str, Any] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The cluster of each row [N] and the clusters' means [K, D]; `read` gives rows in float64 [n, D].

    folder, key: as those of `fit`.
    """
    done, owner, mean = _rounds_done(folder, key)
    if mean is None:
        mean = _seeds(read, count, clusters, torch.Generator().manual_seed(seed))
        owner = torch.full((count,), -1)
    saved = time.monotonic()
    for number in experiment.progress(range(done, rounds), f"k-means, {clusters} clusters", "round"):
        fresh = _assigned(read, count, mean)
        settled, owner = bool((fresh == owner).all()), fresh
        if settled:
            break
        mean = _means(read, count, owner, clusters)
        if folder and time.monotonic() - saved >= passes.EVERY:
            _keep_round(folder, key, number + 1, owner, mean)
            saved = time.monotonic()
    if folder and done < rounds:
        _keep_round(folder, key, rounds, owner, mean)
    return owner, mean


def _rounds_done(
    folder: Path | None, key: dict[str, Any] | None
) -> tuple[int, torch.Tensor | None, torch.Tensor | None]:
    """Rounds of k-means that a killed fit has done, its clusters and means; all rounds if it had settled."""
    done, path = passes.last(folder, "kmeans")
    if path is None:
        return 0, None, None
    held, meta = arrays.read_folder(path, KIND, f"remove {folder}")
    passes.check_key(folder, meta, key)
    return done, *(torch.from_numpy(np.array(held[name])) for name in ("owner", "mean"))


def _keep_round(folder: Path, key: dict[str, Any] | None, number: int, owner: torch.Tensor, mean: torch.Tensor) -> None:
    """Leave a round of k-means."""
    content = {"owner": owner.numpy(), "mean": mean.numpy()}
    passes.keep(folder, "kmeans", number, lambda path: arrays.write_folder(path, KIND, content, key=key))


def _assigned(read: Reader, count: int, mean: torch.Tensor) -> torch.Tensor:
    """The cluster of each row [N], none of them empty."""
    owner, distances = _nearest(read, count, mean)
    for cluster in (owner.bincount(minlength=len(mean)) == 0).nonzero()[:, 0].tolist():
        # an empty cluster takes the row that lies worst with its own, from a cluster that can spare it
        spare = owner.bincount(minlength=len(mean))[owner] > 1
        row = int(torch.where(spare, distances, -1.0).argmax())
        owner[row], distances[row] = cluster, 0.0
    return owner


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
    folder: Path | None,
    key: dict[str, Any],
) -> list[Gaussian]:
    """The Gaussians of clusters; one covariance in memory at a time."""

    def component(cluster: int) -> Gaussian:
        rows = (owner == cluster).nonzero()[:, 0].numpy()
        kept = folder and folder / f"component-{cluster}"
        return once(kept, key, lambda parts: _raised(of_rows(images, rows, parts), rank, floor))

    def pooled(parts: Path | None) -> Gaussian:
        within = of_rows(images, None, parts)
        within.second -= (mean.T * owner.bincount(minlength=len(mean))) @ mean
        within.total.zero_()
        return _raised(within, rank, floor)

    if shared:
        base = once(folder and folder / "component-shared", key, pooled)
        return [base.moved(centre) for centre in mean]
    return [component(cluster) for cluster in experiment.progress(range(len(mean)), "covariances", "component")]


def _raised(moments: Moments, rank: int | None, floor: float) -> Gaussian:
    """The Gaussian of these moments with `floor` added to every variance; a single image is a ball around it."""
    if moments.count < 2:
        return Gaussian(moments.mean, moments.total.new_zeros(moments.dimension, 0), torch.zeros(0), floor)
    found = Gaussian.fit(moments, rank, spread=rank is not None, spend=True)
    return Gaussian(found.mu, found.U, found.lambdas + floor, found.rest + floor)


def _em(
    images: np.ndarray,
    components: int,
    rank: int | None,
    seed: int,
    shared: bool,
    floor: float,
    rounds: int,
    folder: Path | None,
    key: dict[str, Any],
) -> tuple[torch.Tensor, list[Gaussian]]:
    """Weights and components with full covariances within the leading principal components, by EM from k-means there."""
    space = once(
        folder and folder / "space",
        key,
        lambda parts: Gaussian.fit(of_rows(images, None, parts), rank, spread=True, spend=True),
    )
    if not space.rank:
        raise ValueError(f"the {len(images)} images do not differ: a mixture has nothing to find in them")
    inner = ranks.first_makes(lambda: _climbed(images, space, components, seed, shared, floor, rounds, folder, key))
    return inner.weights, _lifted(inner, space, floor)


def _climbed(
    images: np.ndarray,
    space: Gaussian,
    components: int,
    seed: int,
    shared: bool,
    floor: float,
    rounds: int,
    folder: Path | None,
    key: dict[str, Any],
) -> Mixture:
    """The mixture within the subspace that EM ends at."""
    done, path = passes.last(folder, "em")
    inner, reached = None, -torch.inf
    if path:
        inner = Mixture.load(path, f"remove {folder}")
        passes.check_key(folder, inner.meta, key)
        reached = inner.meta["reached"]
        if done == rounds:
            return inner
    read, starts = _reader(images), range(0, len(images), BATCH)
    rows = torch.cat([(read(slice(start, start + BATCH)) - space.mu) @ space.U for start in starts])
    if inner is None:
        owner, _ = kmeans(rows.__getitem__, len(rows), components, seed, ROUNDS, folder, key)
        inner = _maximised(rows, torch.nn.functional.one_hot(owner, components).double(), shared, floor)
    saved = time.monotonic()

    def keep(number: int) -> None:
        passes.keep(folder, "em", number, lambda path: inner.save(path, key=key, reached=reached))

    for number in experiment.progress(range(done, rounds), f"EM, {components} components", "round"):
        shares, likelihood = _expected(inner, rows)
        if likelihood - reached < SETTLED * space.rank:
            break
        reached, inner = likelihood, _maximised(rows, shares, shared, floor)
        if folder and time.monotonic() - saved >= passes.EVERY:
            keep(number + 1)
            saved = time.monotonic()
    if folder:
        keep(rounds)
    return inner


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
    values, vectors = eigen(covariance)
    return Gaussian(mean, vectors, values.clamp(min=0) + floor)


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
