"""Samplers: generators over decreasing noise levels; the trajectory is the value, the sample its last state.

A denoiser is any callable `(x [B, ...], level []) -> E[x0 | x]` with x = x0 + level * noise. In the level as time the
probability flow is dx/dlevel = (x - denoise(x, level)) / level (Karras et al. 2022, equation 1 with s = 1, sigma = t),
whatever linear SDE the model was trained with, after x -> x / alpha.
"""

import itertools
from collections.abc import Callable, Iterator

import torch

Denoiser = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def edm_levels(steps: int, level_min: float = 0.002, level_max: float = 80.0, rho: float = 7.0) -> torch.Tensor:
    """The grid of Karras et al. 2022, equation 5: `steps` decreasing levels and a final 0, float64 [steps + 1]."""
    if steps < 2:
        raise ValueError(f"{steps} solver steps: expected at least 2")
    if not 0 < level_min < level_max:
        raise ValueError(f"levels from {level_max} to {level_min}: expected 0 < minimum < maximum")
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    levels = (level_max ** (1 / rho) + ramp * (level_min ** (1 / rho) - level_max ** (1 / rho))) ** rho
    return torch.cat([levels, levels.new_zeros(1)])


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


@torch.no_grad()
def heun(denoise: Denoiser, x: torch.Tensor, levels: torch.Tensor) -> Iterator[torch.Tensor]:
    """Second order (Karras et al. 2022, algorithm 1); two evaluations a step, one in a last step to 0."""
    yield x
    levels = levels.to(x)
    for level, following in itertools.pairwise(levels):
        first = slope(denoise, x, level)
        proposal = x + (following - level) * first
        if following > 0:
            second = slope(denoise, proposal, following)
            proposal = x + (following - level) * (first + second) / 2
        x = proposal
        yield x


def evaluations(sampler: str, levels: torch.Tensor) -> int:
    """Number of network evaluations (NFE) that a sampler spends on these levels."""
    steps = len(levels) - 1
    return SAMPLERS[sampler][1] * steps - (SAMPLERS[sampler][1] - 1) * int(levels[-1] == 0)


# name: (generator, evaluations a step, which is also its order)
SAMPLERS = {"euler": (euler, 1), "heun": (heun, 2)}
