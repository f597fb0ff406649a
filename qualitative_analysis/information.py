"""How much do the representations at two noise times tell about each other, in nats?

MINE (Belghazi et al., 2018): a critic f(x, y) is trained to raise the Donsker-Varadhan bound

    I(X; Y) >= E_joint[f] - ln E_product[exp f]

with an exponential moving average under the logarithm's gradient, which removes most of the mini-batch bias. A bound read
off on the rows that trained the critic measures over-fitting (independent codes of 10,000 rows then give .3 nats), so rows
are cut in three: some fit the critic, some choose its best iterate, and the value is read off on rows it has never seen.

Every pair of times and every seed is one critic; all of them train in one loop as batched matrix products. Seeds share
their rows and starts between pairs, so a pair's estimate is the same alone and among others, up to rounding.

A critic sees each feature as its normal score, the normal quantile of its rank among the rows that fit: I is unchanged under
monotone maps of the features, and heavy tails, which make a standardised feature nearly constant, are gone.

What no estimate can do: certify more than about ln n nats from n held-out rows (McAllester and Stratos, 2020), the
`ceiling`. And I(Z; Z) of a continuous code is infinite: no estimate of it is an entropy, so a time is never paired
with itself. What this one does not do: reach the truth where a critic of this size, on so many rows of so many features,
does not find it. Neither the deviation over seeds nor the error of the rows tells; `known_answers` does, and `rising`.

Legend: N rows (images), T times, D features, P pairs, S seeds, C = P * S critics, B batch, H width.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent import futures
from dataclasses import asdict, dataclass

import numpy as np
import torch
from scipy import special

from diffusion_model import experiment

PARTNERS = 8  # other rows of y that stand for independent ones of each row of x where a value is read off
LOOK_PARTNERS = 2  # the same for a look at the validation rows, which only ranks iterates
HIDDEN = 2**20  # hidden units of the rows that a critic reads off at once
NEAR_THE_END = 0.9  # of the steps: a critic at its best later than this, with patience left, still rises
CHUNK_BYTES = 4 * 2**20  # hidden units of one chunk of critics in a training step; larger ones miss the cache
RATIO_LIMIT = 10.0  # exp of at most this multiplies a gradient whose moving average lags behind


@dataclass(frozen=True)
class Mine:
    """The critic and its training; the defaults are the original protocol's (concat -> 256 -> 256 -> 1, ELU, Adam)."""

    width: int = 256
    steps: int = 3900
    batch: int = 256
    learning_rate: float = 1e-4
    ema_rate: float = 0.01
    check_every: int = 100  # steps between two looks at the validation rows
    patience: int = 10  # looks without improvement after which a critic has its best iterate

    def __post_init__(self) -> None:
        """Refuse what cannot train."""
        for name, value in asdict(self).items():
            if not value > 0:
                raise ValueError(f"mutual information: {name} is {value}, expected a positive number")
        if self.batch < 2:
            raise ValueError("mutual information: batch is 1, expected at least 2: a product pair needs another row")


@dataclass(frozen=True)
class Rows:
    """Which rows fit the critics, which choose the best iterate, and on which the value is read off."""

    fit: np.ndarray
    validation: np.ndarray
    held_out: np.ndarray

    @property
    def ceiling(self) -> float:
        """ln of the number of held-out rows, in nats."""
        return math.log(len(self.held_out))


@dataclass(frozen=True)
class Estimate:
    """Mutual information in nats on held-out rows; `deviation` is over seeds, `error` the standard error from the rows."""

    nats: float
    deviation: float | None
    error: float
    per_seed: tuple[float, ...]
    steps: tuple[int, ...]  # the best iterate of each seed
    ceiling: float
    rising: int = 0  # seeds whose critic was at its best near the end of the training: more steps may give more

    @property
    def still_rising(self) -> bool:
        """Whether most seeds were rising; one alone may have its best look there by chance."""
        return 2 * self.rising > len(self.per_seed)

    @property
    def beyond_ceiling(self) -> bool:
        """Whether the value is larger than this many rows can certify."""
        return self.nats > self.ceiling


def split_rows(count: int, shares: tuple[float, float, float] = (0.5, 0.2, 0.3), seed: int = 0) -> Rows:
    """Cut `count` rows at random into fit, validation and held-out shares; fewer than 8 rows a part is a ValueError."""
    order = torch.randperm(count, generator=experiment.generator("mutual information rows", seed)).numpy()
    first, second = round(shares[0] * count), round((shares[0] + shares[1]) * count)
    return check_rows(Rows(np.sort(order[:first]), np.sort(order[first:second]), np.sort(order[second:])))


def split_train(train: int, test: int, seed: int = 0) -> Rows:
    """Rows of a train split followed by a test split: a fifth of the train rows, at most 2,000, validates; every test row is held out."""
    order = torch.randperm(train, generator=experiment.generator("mutual information rows", seed)).numpy()
    cut = train - min(round(0.2 * train), 2000)
    return check_rows(Rows(np.sort(order[:cut]), np.sort(order[cut:]), np.arange(train, train + test)))


def check_rows(rows: Rows) -> Rows:
    """The rows themselves, if each part has at least 8."""
    counts = {name: len(getattr(rows, name)) for name in ("fit", "validation", "held_out")}
    if min(counts.values()) < 8:
        raise ValueError(f"too few rows for an estimate of mutual information: {counts}, expected at least 8 of each")
    return rows


def estimate(
    x: np.ndarray, y: np.ndarray, rows: Rows | None = None, settings: Mine | None = None, seeds: Sequence[int] = (0,)
) -> Estimate:
    """I(X; Y) from paired rows x [N, D] and y [N, D']; wrong shapes or values that are not finite are a ValueError."""
    x, y = np.asarray(x, np.float32), np.asarray(y, np.float32)
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        raise ValueError(f"mutual information needs x [N, D] and y [N, D'] with one N, got {x.shape} and {y.shape}")
    dimension = max(x.shape[1], y.shape[1])
    padded = [np.pad(part, ((0, 0), (0, dimension - part.shape[1]))) for part in (x, y)]  # zeros carry nothing
    rows = split_rows(len(x)) if rows is None else rows
    return next(estimate_pairs(padded, [(0, 1)], rows, settings, seeds))[1]


def estimate_pairs(
    codes: Iterable[np.ndarray],
    pairs: Sequence[tuple[int, int]],
    rows: Rows,
    settings: Mine | None = None,
    seeds: Sequence[int] = (0,),
    device: str | torch.device = "cpu",
) -> Iterator[tuple[tuple[int, int], Estimate]]:
    """Yield (pair, Estimate) for pairs of indices into codes, T arrays [N, D], chunk by chunk of critics.

    The arrays are taken one after another and held once, in float32. The order of the rows decides nothing. A critic that
    diverges yields NaN: the caller records it as failed.
    """
    if not pairs:
        return
    settings = settings or Mine()
    check_rows(rows)
    parts = normal_scores(codes, 1 + max(map(max, pairs)), rows, device)  # each [T, n, D]
    workers = torch.get_num_threads() if torch.device(device).type == "cpu" else 1
    fitting = len(seeds) * settings.batch * 2 * settings.width * 4  # bytes of one layer's hidden units for one pair
    size = max(1, min(CHUNK_BYTES // fitting, math.ceil(len(pairs) / workers)))
    chunks = [list(pairs[start : start + size]) for start in range(0, len(pairs), size)]

    def run(chunk: list[tuple[int, int]]) -> list[Estimate]:
        critics, steps, rising = fit_critics(parts, chunk, settings, seeds)
        values, errors = bound(critics, parts["held_out"], chunk, len(seeds), PARTNERS)
        held = [slice(index * len(seeds), (index + 1) * len(seeds)) for index in range(len(chunk))]
        return [_summarise(values[mine], errors[mine], steps[mine], rows.ceiling, rising[mine]) for mine in held]

    # One thread a chunk: products this small lose more at the barriers between threads than they gain.
    pool = futures.ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
    try:
        for chunk, estimates in zip(chunks, pool.map(run, chunks), strict=True):
            yield from zip(chunk, estimates, strict=True)
    finally:
        pool.shutdown(cancel_futures=True)


def _summarise(
    values: torch.Tensor, errors: torch.Tensor, steps: torch.Tensor, ceiling: float, rising: torch.Tensor
) -> Estimate:
    deviation = float(values.std()) if len(values) > 1 else None
    per_seed = tuple(float(value) for value in values)
    return Estimate(
        float(values.mean()),
        deviation,
        float(errors.mean()),
        per_seed,
        tuple(steps.tolist()),
        ceiling,
        int(rising.sum()),
    )


def normal_scores(
    codes: Iterable[np.ndarray], count: int, rows: Rows, device: str | torch.device
) -> dict[str, torch.Tensor]:
    """The three parts of the first `count` codes [N, D] as [T, n, D], each feature by its normal scores.

    One time is read, scored and cut at once: beside the parts, memory holds two copies of a single time.
    """
    parts: dict[str, torch.Tensor] = {}
    for time, z in enumerate(itertools.islice(codes, count)):
        dimension = next(iter(parts.values())).shape[-1] if parts else z.shape[-1]
        if z.ndim != 2 or z.shape[1] != dimension or not np.isfinite(z).all():
            raise ValueError(
                f"mutual information needs finite codes [N, {dimension}], got shape {z.shape} or values not finite"
            )
        if not parts:
            parts = {
                name: torch.empty(count, len(index), dimension, device=device) for name, index in vars(rows).items()
            }
        columns = np.array(z.T, np.float32, order="C")
        del z
        for column in columns:
            column[:] = _scores(column, rows.fit)
        for name, index in vars(rows).items():
            parts[name][time] = torch.from_numpy(columns[:, index]).T
    return parts


def _scores(column: np.ndarray, fit: np.ndarray) -> np.ndarray:
    """A feature [N] as the normal quantiles of its ranks among the rows `fit`, to mean 0 and deviation 1 there.

    Equal values share their mean rank, values between two are interpolated, those beyond all are the last; a dead feature is 0.
    """
    fitted = column[fit].astype(np.float64)
    if fitted.std() <= 1e-6 * abs(fitted.mean()) + 1e-12:
        return np.zeros_like(column)
    values, counts = np.unique(fitted, return_counts=True)
    scores = special.ndtri((np.cumsum(counts) - counts / 2) / len(fitted))
    scores -= np.average(scores, weights=counts)
    return np.interp(column, values, scores / math.sqrt(np.average(scores**2, weights=counts)))


class Elu(torch.autograd.Function):
    """elu(x) = max(x, exp(min(x, 0)) - 1), whose slope is that exponential; faster than torch's own on a CPU."""

    @staticmethod
    def forward(ctx, x: torch.Tensor) -> torch.Tensor:
        """The activation; the slope is kept."""
        slope = x.clamp(max=0).exp_()
        ctx.save_for_backward(slope)
        return torch.maximum(x, slope - 1)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        """Gradient times slope."""
        return gradient * ctx.saved_tensors[0]


class Critics:
    """C critics f(x, y) = w . elu(elu(x A + y B + b) V + c), trained side by side; one weight tensor a layer."""

    def __init__(self, dimension: int, width: int, pairs: int, seeds: Sequence[int], device: torch.device) -> None:
        shapes = {"x": (dimension, width), "y": (dimension, width), "hidden": (width, width), "out": (width, 1)}
        fans = {"x": 2 * dimension + width, "y": 2 * dimension + width, "hidden": 2 * width, "out": width + 1}
        self.weights: dict[str, torch.Tensor] = {}
        for name, shape in shapes.items():
            reach = math.sqrt(6 / fans[name])  # Xavier, uniform
            starts = [torch.rand(shape, generator=experiment.generator("critic", name, seed)) for seed in seeds]
            start = (2 * torch.stack(starts) - 1) * reach
            self.weights[name] = start.repeat(pairs, 1, 1).to(device).requires_grad_()  # [C, ., .], seeds fastest
        for name in ("first_bias", "hidden_bias"):
            self.weights[name] = torch.zeros(pairs * len(seeds), 1, width, device=device, requires_grad=True)

    def project(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The first layer's two halves for x, y [C, B, D]: each row is multiplied once, whatever it is paired with."""
        return torch.baddbmm(self.weights["first_bias"], x, self.weights["x"]), torch.bmm(y, self.weights["y"])

    def only(self, index: int) -> "Critics":
        """One of them."""
        one = object.__new__(Critics)
        one.weights = {name: weight[index : index + 1] for name, weight in self.weights.items()}
        return one

    def score(self, from_x: torch.Tensor, from_y: torch.Tensor) -> torch.Tensor:
        """f of rows paired one to one, from their halves [C, B, H]."""
        hidden = Elu.apply(from_x + from_y)
        hidden = Elu.apply(torch.baddbmm(self.weights["hidden_bias"], hidden, self.weights["hidden"]))
        return torch.bmm(hidden, self.weights["out"]).squeeze(-1)  # [C, B]


def fit_critics(
    parts: dict[str, torch.Tensor], pairs: Sequence[tuple[int, int]], settings: Mine, seeds: Sequence[int]
) -> tuple[Critics, torch.Tensor, torch.Tensor]:
    """Critics at the iterate that is best on the validation rows, its step, and whether it still rises, for each [C]."""
    fit = parts["fit"]
    critics = Critics(fit.shape[-1], settings.width, len(pairs), seeds, fit.device)
    optimiser = torch.optim.Adam(critics.weights.values(), lr=settings.learning_rate, fused=True)
    draws = [experiment.generator("mutual information batches", seed) for seed in seeds]
    log_average = torch.zeros(len(pairs) * len(seeds), device=fit.device)  # ln of the moving average of E[exp f]
    best = _Best(critics, parts["validation"], pairs, len(seeds), settings)
    first, second = (torch.tensor([pair[side] for pair in pairs])[:, None, None] for side in (0, 1))
    for step in range(1, settings.steps + 1):
        chosen = [torch.randperm(fit.shape[1], generator=draw)[: settings.batch] for draw in draws]
        batch = torch.stack(chosen)  # [S, B]
        from_x, from_y = critics.project(fit[first, batch].flatten(0, 1), fit[second, batch].flatten(0, 1))
        joint = critics.score(from_x, from_y).mean(1)
        product = log_mean_exp(critics.score(from_x, from_y.roll(1, dims=1)), dim=1)
        log_average = moving_average(log_average, product.detach(), settings.ema_rate)
        weight = (product.detach() - log_average).clamp(max=RATIO_LIMIT).exp()
        optimiser.zero_grad()
        (weight * product - joint).sum().backward()
        optimiser.step()
        if (step % settings.check_every == 0 or step == settings.steps) and best.look(step):
            break
    return critics, best.restore(), best.rising()


class _Best:
    """The best iterate of each critic so far, by the bound on the validation rows; the start counts as step 0.

    A critic ends after `patience` looks without improvement, whatever the others do: its value never depends on its company.
    """

    def __init__(
        self, critics: Critics, rows: torch.Tensor, pairs: Sequence[tuple[int, int]], seeds: int, settings: Mine
    ) -> None:
        self.critics, self.rows, self.pairs, self.seeds = critics, rows, pairs, seeds
        self.patience, self.end = settings.patience, NEAR_THE_END * settings.steps
        count = len(pairs) * seeds
        self.values = torch.full((count,), -math.inf, device=rows.device)
        self.steps = torch.zeros(count, dtype=torch.long, device=rows.device)
        self.idle = torch.zeros(count, dtype=torch.long, device=rows.device)
        self.weights = {name: weight.detach().clone() for name, weight in critics.weights.items()}
        self.look(0)

    @torch.no_grad()
    def look(self, step: int) -> bool:
        """Keep the critics that improved; returns whether all have ended."""
        values, _ = bound(self.critics, self.rows, self.pairs, self.seeds, LOOK_PARTNERS)
        running = self.idle < self.patience
        improved = (values > self.values) & running
        self.idle = torch.where(improved, 0, self.idle + 1)
        self.idle = torch.where(running, self.idle, self.patience)
        self.values = torch.where(improved, values, self.values)
        self.steps = torch.where(improved, step, self.steps)
        for name, weight in self.critics.weights.items():
            self.weights[name] = torch.where(improved[:, None, None], weight, self.weights[name])
        return not bool((self.idle < self.patience).any())

    @torch.no_grad()
    def restore(self) -> torch.Tensor:
        """Give the critics their best iterates; returns the steps of these."""
        for name, weight in self.critics.weights.items():
            weight.copy_(self.weights[name])
        return self.steps

    def rising(self) -> torch.Tensor:
        """Whether each was at its best near the end of the training, and not ended before."""
        return (self.steps > self.end) & (self.idle < self.patience)


@torch.no_grad()
def bound(
    critics: Critics, z: torch.Tensor, pairs: Sequence[tuple[int, int]], seeds: int, partners: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The Donsker-Varadhan bound of each critic [C] on rows z [T, n, D], and its standard error over the rows.

    The error is the spread of each row's first-order contribution: f(x_i, y_i) - (mean over x_i's product pairs + mean
    over y_i's) / E[exp f]. Critics are read off one after another, some rows at once.
    """
    others = product_rows(z.shape[1], partners).to(z.device)  # [K, n]
    found = []
    for index in range(len(pairs) * seeds):
        first, second = pairs[index // seeds]
        joint, product = _read_off(critics.only(index), z[first], z[second], others)
        log_mean = log_mean_exp(product.flatten(), dim=0)
        relative = (product - log_mean).exp()
        as_y = torch.empty_like(relative).scatter_(1, others, relative)
        contribution = joint - relative.mean(0) - as_y.mean(0)
        found.append((joint.mean() - log_mean, contribution.std() / math.sqrt(len(joint))))
    values, errors = zip(*found, strict=True)
    return torch.stack(values), torch.stack(errors)


def _read_off(
    critic: Critics, x: torch.Tensor, y: torch.Tensor, others: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """f of the rows of x, y [n, D] as they are paired [n], and of each x with its K other y [K, n]."""
    scores, at_once = [], max(1, HIDDEN // critic.weights["hidden"].shape[-1])
    own = torch.arange(len(x), device=x.device)[None]
    from_y = torch.bmm(y[None], critic.weights["y"])
    for rows in own[0].split(at_once):
        from_x = torch.baddbmm(critic.weights["first_bias"], x[None, rows], critic.weights["x"])
        scores.append(torch.cat([critic.score(from_x, from_y[:, partner[rows]]) for partner in (*own, *others)]))
    joint, *product = torch.cat(scores, dim=1)
    return joint, torch.stack(product)


def product_rows(count: int, partners: int) -> torch.Tensor:
    """Rows of y [K, n] that stand for independent ones of each row of x: K permutations that never pair a row with its own.

    They are cyclic shifts along a random order by a fixed seed: the order in which the rows came, which may be by class,
    decides nothing.
    """
    order = torch.randperm(count, generator=experiment.generator("mutual information products"))
    place = torch.argsort(order)
    moves = sorted({1 + index * (count - 1) // partners for index in range(partners)})
    return torch.stack([order[(place + move) % count] for move in moves])


def log_mean_exp(values: torch.Tensor, dim: int) -> torch.Tensor:
    """ln mean exp along one dimension."""
    return values.logsumexp(dim) - math.log(values.shape[dim])


def moving_average(log_average: torch.Tensor, log_value: torch.Tensor, rate: float) -> torch.Tensor:
    """ln((1 - rate) * average + rate * value), from and to logarithms."""
    return torch.logaddexp(log_average + math.log1p(-rate), log_value + math.log(rate))
