"""The probability flow of a closed form: integrated where it has no formula, and as the first steps of any sampler.

What is here, and every closed form (gaussian, diagonal, mixture), holds to one contract; x [B, ...], level scalar or [B]:

    score(x, level)           gradient of the log density of the data noised to this level, above 0
    denoise(x, level)         E[x0 | x] = x + level^2 score(x, level), as a network's denoiser; at 0 its limit
    teleport(x, a, b)         the flow from level a > 0 to level b, in closed form or by `integrate`; no network
    log_density(x, level)     in nats, float64 [B]; at level 0 where the data itself has a density
    mapped(scaling, shape)    from uint8 pixels to a run's model space
    sample(count, generator)  data without noise, [count, D]

In u = ln(level) the flow dx/dlevel = (x - denoise) / level is dx/du = x - denoise(x, e^u), which has neither a pole nor
a stiff direction. `integrate` follows it by the method of order 8 of Dormand and Prince (Hairer, Norsett & Wanner 1993,
section II.10), in float64, each image with steps of its own: an image's end does not depend on its batch.

Dimensions: B batch.
"""

import itertools
from typing import Any, Protocol

import scipy.integrate
import torch

from diffusion_model.samplers import Denoiser

TOLERANCE = 1e-8  # error of one step, as a share of the image's norm; the ends are within 1e-6 (tests/test_flow.py)
LEAST = 1e-5  # level from which the denoiser takes the last step to 0
MAX_STEPS = 10_000


class ClosedForm(Protocol):
    """The part of the contract that a jump needs."""

    def denoise(self, x: torch.Tensor, level: torch.Tensor | float) -> torch.Tensor: ...

    def teleport(self, x: torch.Tensor, a: torch.Tensor | float, b: torch.Tensor | float) -> torch.Tensor: ...


class Teleport:
    """Any denoiser, replaced by a closed form above `level`: the first steps of a sampler then cost no evaluation.

    It is used in one of two ways. With a loop whose first state and grid you choose, jump; the states are the closed form's
    flow, exactly, and the steps that remain are those of the same grid:

        jump = Teleport(model.denoise, gaussian, level=20.0)
        x, levels = jump.start(x, levels)            # x at levels[0] -> x at the first level of the grid that is not above 20
        images = last(heun(jump, x, levels))

    With a loop that insists on its own first level, give it the object itself as its denoiser: it answers by the closed form
    above `level` and calls the network below. Nothing is evaluated above it either, but the states there carry the error
    that the loop's solver makes on the closed form's flow, and its time is spent on every step.

        images = their_loop(Teleport(model.denoise, gaussian, level=20.0), x, sigmas)

    x is in level coordinates, x_t / alpha(t). `conditions` (labels, codes) reach the network alone.
    """

    def __init__(self, denoise: Denoiser, form: ClosedForm, level: float) -> None:
        if not level > 0:
            raise ValueError(f"a jump to level {level}: expected a level above 0")
        self.denoise, self.form, self.level = denoise, form, float(level)

    def start(self, x: torch.Tensor, levels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The state at the first of the decreasing `levels` that is not above `level`, and the levels from there on."""
        if len(levels) < 2 or not (levels[1:] < levels[:-1]).all():
            raise ValueError(f"{len(levels)} levels that do not decrease: expected a sampler's grid, first level first")
        skipped = int((levels > self.level).sum())
        if skipped == len(levels):
            raise ValueError(f"a jump to level {self.level:g}: the grid ends above it, at {float(levels[-1]):g}")
        if skipped:
            x = self.form.teleport(x, levels[0], levels[skipped])
        return x, levels[skipped:]

    def __call__(self, x: torch.Tensor, level: torch.Tensor | float, **conditions: Any) -> torch.Tensor:
        """E[x0 | x], by the closed form for the images above the level."""
        levels = torch.as_tensor(level, device=x.device)
        above = levels > self.level
        if above.all():
            return self.form.denoise(x, level)
        if not above.any():
            return self.denoise(x, level, **conditions)
        if conditions:
            raise ValueError("a batch with levels on both sides of the jump takes no conditions: split it")
        found = torch.empty_like(x)
        found[above], found[~above] = (
            self.form.denoise(x[above], levels[above]),
            self.denoise(x[~above], levels[~above]),
        )
        return found


class Integrated:
    """A closed form whose flow has no formula."""

    def teleport(
        self,
        x: torch.Tensor,
        a: torch.Tensor | float,
        b: torch.Tensor | float,
        tolerance: float = TOLERANCE,
    ) -> torch.Tensor:
        """The probability flow from level a > 0 to level b, integrated to `tolerance` a step."""
        return self._integrated(x, a, b, tolerance)

    def _integrated(self, x: torch.Tensor, *options: Any) -> torch.Tensor:
        """The flow in pixels; a form may have better coordinates."""
        return integrate(self.denoise, x, *options)


@torch.no_grad()
def integrate(
    denoise: Denoiser,
    x: torch.Tensor,
    a: torch.Tensor | float,
    b: torch.Tensor | float,
    tolerance: float = TOLERANCE,
) -> torch.Tensor:
    """The probability flow of a closed form's denoiser, which must take a level an image, from level a to level b.

    To level 0 it goes to `LEAST` and from there by the denoiser, which is off by less than LEAST / 4 in any direction.
    """
    first, last = (torch.as_tensor(level, dtype=torch.float64).detach().cpu().reshape(-1) for level in (a, b))
    if not (first > 0).all() or not (last >= 0).all():
        raise ValueError(
            f"the flow from level {first.min():g} to {last.min():g}: expected one above 0 to one not below 0"
        )
    if not torch.isfinite(x).all():
        raise ValueError("the flow starts from NaN or infinite values")
    first, last = first.expand(len(x)), last.expand(len(x))
    nearly = torch.where(last > 0, last, first.clamp(max=LEAST))
    there = _follow(denoise, x.to(torch.float64), first.log(), nearly.log(), tolerance)
    end = last == 0
    if end.any():
        at = end.to(x.device)
        there[at] = denoise(there[at], nearly[end])
    return there.to(x.dtype)


def _follow(
    denoise: Denoiser, x: torch.Tensor, time: torch.Tensor, stop: torch.Tensor, tolerance: float
) -> torch.Tensor:
    """x [B, ...] followed from ln level `time` [B] to `stop` [B], each image by its own steps."""
    x, time = x.clone(), time.clone()
    step = (stop - time).clamp(-0.5, 0.5)
    slope = x - denoise(x, time.exp())
    for _ in range(MAX_STEPS):
        going = (time != stop).nonzero()[:, 0]
        if not len(going):
            return x
        rows = going.to(x.device)
        left = stop[going] - time[going]
        final = step[going].abs() >= left.abs()
        width = torch.where(final, left, step[going])
        proposal, following, error = _step(denoise, x[rows], slope[rows], time[going], width, tolerance)
        step[going] = width * (0.9 * error.clamp(min=1e-12) ** (-1 / 8)).clamp(0.2, 8.0)
        taken = error <= 1
        done = taken.to(x.device)
        x[rows[done]], slope[rows[done]] = proposal[done], following[done]
        time[going[taken]] = torch.where(final, stop[going], time[going] + width)[taken]
    raise FloatingPointError(f"the flow was not at its end after {MAX_STEPS} steps: give a larger tolerance")


def _step(
    denoise: Denoiser,
    x: torch.Tensor,
    slope: torch.Tensor,
    time: torch.Tensor,
    width: torch.Tensor,
    tolerance: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One step of width [B]: the state after it, the slope there and the error [B] in units of what is tolerated."""
    method = scipy.integrate.DOP853
    along = width.to(x.device).reshape(-1, *(1,) * (x.ndim - 1))
    slopes = x.new_empty(len(method.C) + 1, *x.shape)
    slopes[0] = slope
    for stage, (row, fraction) in enumerate(itertools.islice(zip(method.A, method.C, strict=True), 1, None), 1):
        state = x + along * _weighted(row[:stage], slopes)
        slopes[stage] = state - denoise(state, (time + fraction * width).exp())
    proposal = x + along * _weighted(method.B, slopes)
    slopes[-1] = proposal - denoise(proposal, (time + width).exp())
    fifth, third = (_size(along * _weighted(weights, slopes)) for weights in (method.E5, method.E3))
    scale = torch.stack([_size(x), _size(proposal), _size(slope)]).amax(0) * tolerance
    error = fifth.square() / (fifth.square() + 0.01 * third.square()).sqrt().clamp(min=1e-300) / scale.clamp(min=1e-300)
    return proposal, slopes[-1], error.cpu()


def _weighted(weights: Any, slopes: torch.Tensor) -> torch.Tensor:
    """Sum of the first slopes, by their weights."""
    return torch.tensordot(torch.as_tensor(weights).to(slopes), slopes[: len(weights)], 1)


def _size(x: torch.Tensor) -> torch.Tensor:
    """Norm of each image [B]."""
    return x.flatten(1).norm(dim=1)
