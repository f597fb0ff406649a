"""Samplers: generators over decreasing noise levels; the trajectory is the value, the sample its last state.

A denoiser is any callable `(x [B, ...], level []) -> E[x0 | x]` with x = x0 + level * noise. In the level as time the
probability flow is dx/dlevel = (x - denoise(x, level)) / level (Karras et al. 2022, equation 1 with s = 1, sigma = t),
whatever linear SDE the model was trained with, after x -> x / alpha. Each sampler takes x at levels[0], whatever that is.

Euler and Heun step in the level. The DPM-Solver family steps in lambda = -ln level (half the log signal-to-noise ratio),
where the flow dx/dlambda = D - x is linear but for the denoiser D, and is solved by variation of constants: over a step
h = ln(level / following)

    x(following) = e^-h x + integral from 0 to h of e^(u - h) D(u) du,

with a polynomial in D through the evaluations made so far (Lu et al. 2022, DPM-Solver++; Zhao et al. 2023, UniPC). With D
constant this is x following / level + (1 - following / level) D: DDIM, and in our coordinate Euler. In a last step to 0
h is infinite and no polynomial serves. There the step is the limit of DDIM, D itself: "denoise at the last level". The
degree falls towards the last step on a grid that ends at 0, for the steps before are long in lambda, and on one of fewer
than 10 steps (the rule of DPM-Solver's code); `lower_final` says of any grid that it does (True) or does not (False).
"""

import functools
import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from diffusion_model.sde import LinearSDE

Denoiser = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def edm_levels(steps: int, level_min: float = 0.002, level_max: float = 80.0, rho: float = 7.0) -> torch.Tensor:
    """The grid of Karras et al. 2022, equation 5: `steps` decreasing levels and a final 0, float64 [steps + 1]."""
    _check_range(steps, level_min, level_max)
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    levels = (level_max ** (1 / rho) + ramp * (level_min ** (1 / rho) - level_max ** (1 / rho))) ** rho
    return torch.cat([levels, levels.new_zeros(1)])


def log_levels(steps: int, level_min: float = 0.002, level_max: float = 80.0) -> torch.Tensor:
    """`steps` levels uniform in ln level, that is in the log signal-to-noise ratio, and a final 0, float64 [steps + 1]."""
    _check_range(steps, level_min, level_max)
    levels = torch.linspace(math.log(level_max), math.log(level_min), steps, dtype=torch.float64).exp()
    return _with_ends(levels, level_min, level_max)


def time_levels(sde: LinearSDE, steps: int, level_min: float, level_max: float) -> torch.Tensor:
    """`steps` levels uniform in the time t of a noise process, and a final 0, float64 [steps + 1]."""
    _check_range(steps, level_min, level_max)
    low, high = sde.level_range()
    if level_min < low * (1 - 1e-9) or level_max > high * (1 + 1e-9):
        raise ValueError(
            f"levels from {level_max:g} to {level_min:g}: the noise process has times for levels from {high:g} to {low:g} only"
        )
    first, last = sde.time(torch.tensor([level_max, level_min], dtype=torch.float64)).tolist()
    return _with_ends(sde.level(torch.linspace(first, last, steps, dtype=torch.float64)), level_min, level_max)


def make_levels(
    grid: str, sde: LinearSDE, steps: int, level_min: float | None = None, level_max: float | None = None
) -> torch.Tensor:
    """The grid of that name in GRIDS between two levels, by default those of the noise process; float64 [steps + 1]."""
    low, high = sde.level_range()
    return GRIDS[grid](sde, steps, low if level_min is None else level_min, high if level_max is None else level_max)


def _check_range(steps: int, level_min: float, level_max: float) -> None:
    if steps < 2:
        raise ValueError(f"{steps} solver steps: expected at least 2")
    if not 0 < level_min < level_max:
        raise ValueError(f"levels from {level_max} to {level_min}: expected 0 < minimum < maximum")


def _with_ends(levels: torch.Tensor, level_min: float, level_max: float) -> torch.Tensor:
    """The ends as given, not as rounded through a function and its inverse, and the final 0."""
    levels[0], levels[-1] = level_max, level_min
    return torch.cat([levels, levels.new_zeros(1)])


def last(states: Iterable[torch.Tensor]) -> torch.Tensor:
    """The last state of a sampler: the sample. No other is kept, so that memory does not grow with the steps."""
    return deque(states, maxlen=1).pop()


def slope(denoise: Denoiser, x: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
    """dx/dlevel of the probability flow at a level above 0."""
    return (x - denoise(x, level)) / level


@torch.no_grad()
def euler(denoise: Denoiser, x: torch.Tensor, levels: torch.Tensor) -> Iterator[torch.Tensor]:
    """First order; one network evaluation a step. Yields the state at each of `levels`, the first included."""
    yield x
    levels = levels.to(x)
    for level, following in itertools.pairwise(levels):
        x = x + (following - level) * slope(denoise, x, level)
        yield x


@dataclass(frozen=True)
class Churn:
    """The stochasticity of Karras et al. 2022, algorithm 2: S_churn, S_min, S_max and S_noise there.

    Between the levels `low` and `high` noise of `scale` times the fitting size raises the level by min(amount / N,
    sqrt 2 - 1) of itself before a step. N is `steps`; None is the number of steps given to the solver, so give the whole
    grid's where only its tail is solved.
    """

    amount: float = 0.0
    low: float = 0.0
    high: float = math.inf
    scale: float = 1.0
    steps: int | None = None

    def __post_init__(self) -> None:
        if not (0 <= self.amount < math.inf and 0 <= self.low <= self.high and 0 <= self.scale < math.inf):
            raise ValueError(f"{self}: expected an amount and a scale of at least 0, and 0 <= low <= high")

    def rise(self, level: float, steps: int) -> float:
        """gamma: by how much of itself the level is raised before a step."""
        if not self.low <= level <= self.high:
            return 0.0
        return min(self.amount / (self.steps or steps), math.sqrt(2) - 1)


@torch.no_grad()
def heun(
    denoise: Denoiser,
    x: torch.Tensor,
    levels: torch.Tensor,
    churn: Churn | None = None,
    noise: Callable[[int], torch.Tensor] | None = None,
) -> Iterator[torch.Tensor]:
    """Second order (Karras et al. 2022, algorithm 1); two evaluations a step, one in a last step to 0.

    With `churn` it is their algorithm 2; noise(i), standard normal like x, belongs to step i, counted from 0.
    """
    churn = churn or Churn()
    if churn.amount and noise is None:
        raise ValueError(f"churn of {churn.amount} and no noise: give a function from a step to standard normal noise")
    yield x
    levels = levels.to(x)
    for step, (level, following) in enumerate(itertools.pairwise(levels)):
        gamma = churn.rise(float(level), len(levels) - 1) if churn.amount else 0.0
        if gamma:
            x = x + churn.scale * math.sqrt(gamma * (2 + gamma)) * level * noise(step).to(x)
            level = level * (1 + gamma)
        first = slope(denoise, x, level)
        proposal = x + (following - level) * first
        if following > 0:
            second = slope(denoise, proposal, following)
            proposal = x + (following - level) * (first + second) / 2
        x = proposal
        yield x


@torch.no_grad()
def dpmpp_2m(
    denoise: Denoiser, x: torch.Tensor, levels: torch.Tensor, lower_final: bool | None = None
) -> Iterator[torch.Tensor]:
    """DPM-Solver++ (2M), second order (Lu et al. 2022, algorithm 2); one evaluation a step.

    The first step is DDIM, for want of a history; so is a last step to 0, and any last step with `lower_final`.
    """
    yield x
    grid, levels, before, past = _decreasing(levels), levels.to(x), None, 0.0
    reach = _reach(grid, 2, lower_final)
    for step, (level, following) in enumerate(itertools.pairwise(grid)):
        found, h = denoise(x, levels[step]), log_ratio(level, following)
        ahead = found + h / (2 * past) * (found - before) if reach[step] == 2 else found
        x = following / level * x + (level - following) / level * ahead
        before, past = found, h
        yield x


@torch.no_grad()
def unipc(
    denoise: Denoiser,
    x: torch.Tensor,
    levels: torch.Tensor,
    order: int = 3,
    variant: str = "bh2",
    corrector: bool = True,
    lower_final: bool | None = None,
) -> Iterator[torch.Tensor]:
    """UniPC-p in data prediction (Zhao et al. 2023, section 3); one evaluation a step, `order` is its p.

    A step predicts with p evaluations (UniP-p), evaluates at the prediction and corrects with that (UniC-p); the last
    step, behind which nothing is evaluated, stays a prediction. p is 1 in the first step, 2 in the second, and falls to
    1 again where `lower_final` says. The authors' code lowers on every grid, at the price of order 2 where it ends at a
    high level. The error is of order p without the corrector (2 at most, by its first step) and p + 1 with it (3 at most).
    """
    if order < 1 or variant not in B:
        raise ValueError(
            f"UniPC of order {order}, variant {variant!r}: expected order 1 or more, and one of {', '.join(B)}"
        )
    yield x
    grid, levels = _decreasing(levels), levels.to(x)
    known, found, new = [], [], None  # levels and values of the denoiser there, newest first
    for step, reach in enumerate(_reach(grid, order, lower_final)):
        new = denoise(x, levels[0]) if new is None else new
        known, found, following = [grid[step], *known][:order], [new, *found][:order], grid[step + 1]
        predicted = _exponential(x, known[:reach], found[:reach], following, variant)
        if step < len(grid) - 2:
            new = denoise(predicted, levels[step + 1])
            if corrector:
                predicted = _exponential(x, [*known[:reach], following], [*found[:reach], new], following, variant)
        x = predicted
        yield x


def _reach(grid: Sequence[float], order: int, lower_final: bool | None) -> list[int]:
    """How many evaluations each step's polynomial goes through: as many as there are, up to the order; 1 in a step to 0."""
    steps = len(grid) - 1
    lower = grid[-1] == 0 or steps < 10 if lower_final is None else lower_final
    reach = [min(order, step + 1, steps - step if lower else order) for step in range(steps)]
    return [1 if level == 0 else count for count, level in zip(reach, grid[1:], strict=True)]


def _exponential(
    x: torch.Tensor, known: Sequence[float], found: Sequence[torch.Tensor], following: float, variant: str
) -> torch.Tensor:
    """One step of x from the level known[0] to `following`, with the denoiser's values `found` at the levels `known`."""
    level = known[0]
    moved = following / level * x + (level - following) / level * found[0]
    for weight, other in zip(unipc_weights(known, following, variant), found[1:], strict=True):
        moved = moved + weight * (other - found[0])
    return moved


def unipc_weights(known: Sequence[float], following: float, variant: str) -> list[float]:
    """Weights of D(level) - D(known[0]) for the further levels of `known`, in a step from known[0] to `following`.

    With r = ln(known[0] / level) / h they integrate every polynomial in lambda of their degree exactly: the sum over
    them of weight r^i is i! h phi_(i+1)(-h). A single one is instead B(h) / (2 r), as the authors have it. So B matters
    in steps of that kind alone: UniP-2, hence 2M, which is its bh2, and UniC-1.
    """
    h = log_ratio(known[0], following)
    places = torch.tensor([log_ratio(known[0], level) / h for level in known[1:]], dtype=torch.float64)
    if len(places) < 2:
        return (B[variant](h) / 2 / places).tolist()
    degrees = range(1, len(places) + 1)
    wanted = torch.tensor([math.factorial(i) * h * phi(i + 1, -h) for i in degrees], dtype=torch.float64)
    return torch.linalg.solve(torch.stack([places**i for i in degrees]), wanted).tolist()


def log_ratio(level: float, following: float) -> float:
    """ln(level / following) for levels above 0, to full precision also where both are almost equal; infinite at 0."""
    if following == 0:
        return math.inf
    near = abs(level - following) < level / 2  # then the difference is exact
    return -math.log1p((following - level) / level) if near else math.log(level / following)


def phi(k: int, z: float) -> float:
    """phi_k of exponential integrators: phi_0 = e^z, phi_(k + 1) = (phi_k - 1 / k!) / z; the power series near 0."""
    if abs(z) < 1:
        return math.fsum(z**j / math.factorial(j + k) for j in range(20))
    value = math.expm1(z) / z if k else math.exp(z)
    for j in range(1, k):
        value = (value - 1 / math.factorial(j)) / z
    return value


def _decreasing(levels: torch.Tensor) -> list[float]:
    """The levels as numbers, once they decrease and only the last may be 0."""
    grid = levels.tolist()
    if not (len(grid) and grid[-1] >= 0 and all(level > following for level, following in itertools.pairwise(grid))):
        raise ValueError(f"levels {grid}: expected them to decrease, from above 0 to 0 or more")
    return grid


class Sampler(NamedTuple):
    """A generator, the order of its error, and its network evaluations a step."""

    run: Callable[..., Iterator[torch.Tensor]]
    order: int
    cost: int


def evaluations(sampler: str, levels: torch.Tensor) -> int:
    """Number of network evaluations (NFE) that a sampler spends on these levels."""
    return _spent(sampler, len(levels) - 1, bool(levels[-1] == 0))


def steps_within(sampler: str, budget: int, to_zero: bool = True) -> int:
    """The most steps of a sampler whose evaluations stay within a budget, on a grid that ends at 0 or above it.

    To 0, Heun makes N steps of 2N - 1 evaluations, so an even budget leaves one unspent; above 0 it makes budget // 2.
    (Wang & Vastola 2024 make budget // 2 steps of Heun, and with an odd budget one more, of Euler, to 0: the same steps
    as ours for an odd budget; for an even one they stop above 0.)
    """
    cost = SAMPLERS[sampler].cost
    steps = (budget + (cost - 1) * to_zero) // cost
    if steps < 2:
        least = _spent(sampler, 2, to_zero)
        raise ValueError(f"a budget of {budget} evaluations: {sampler} needs at least {least}, for two steps")
    return steps


def _spent(sampler: str, steps: int, to_zero: bool) -> int:
    return SAMPLERS[sampler].cost * steps - (SAMPLERS[sampler].cost - 1) * to_zero


# B(h) of Zhao et al. 2023, up to its sign
B = {"bh1": lambda h: h, "bh2": lambda h: -math.expm1(-h)}
SAMPLERS = {
    "euler": Sampler(euler, 1, 1),
    "heun": Sampler(heun, 2, 2),
    "dpmpp-2m": Sampler(dpmpp_2m, 2, 1),
    "unipc-bh1": Sampler(functools.partial(unipc, variant="bh1"), 3, 1),
    "unipc-bh2": Sampler(functools.partial(unipc, variant="bh2"), 3, 1),
}
# name: (noise process, steps, level_min, level_max) -> levels
GRIDS = {
    "edm": lambda sde, steps, level_min, level_max: edm_levels(steps, level_min, level_max),
    "log": lambda sde, steps, level_min, level_max: log_levels(steps, level_min, level_max),
    "time": time_levels,
}
