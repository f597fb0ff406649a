"""What a score model is trained on: where the levels are drawn, and what an error counts at each level.

Two tables, any pair allowed. A level distribution is a function (uniform, process, objective) -> levels, of uniform numbers
[B] in float64, the run's linear SDE and the section `objective` of its configuration. A weight is a function
(level, process, std) -> the factor of |denoise(x0 + level noise, level) - x0|^2, summed over the pixels; std is the data's
in model space. Both are float64 [B].

    score-SDE, VE, VP, sub-VP     uniform-time + dsm          Song et al. 2021, equation 7
    maximum likelihood            uniform-time + likelihood   Song et al. 2021 (arXiv 2101.09258), Theorem 1
    EDM                           log-normal + edm            Karras et al. 2022, Table 1
"""

from collections.abc import Mapping
from typing import Any

import torch

from diffusion_model.sde import LinearSDE


def uniform_time(uniform: torch.Tensor, process: LinearSDE, objective: Mapping[str, Any]) -> torch.Tensor:
    """Levels of t ~ U(eps, 1): for VE log-uniform levels, for VP and sub-VP those of their schedule."""
    return process.level(process.eps + (1 - process.eps) * uniform)


def log_normal(uniform: torch.Tensor, process: LinearSDE, objective: Mapping[str, Any]) -> torch.Tensor:
    """Levels with ln level ~ N(mean, std^2) of the section `objective`, whatever the process."""
    quantile = torch.special.ndtri(uniform.clamp(1e-9, 1 - 1e-9))
    return torch.exp(objective["mean"] + objective["std"] * quantile)


def dsm_weight(level: torch.Tensor, process: LinearSDE, std: float) -> torch.Tensor:
    """Denoising score matching, lambda = sigma^2: 0.5 |sigma s + noise|^2 = 0.5 |denoise - x0|^2 / level^2."""
    return 0.5 / level**2


def likelihood_weight(level: torch.Tensor, process: LinearSDE, std: float) -> torch.Tensor:
    """Likelihood weighting, lambda = g^2: 0.5 g^2 |s - grad log p_0t|^2 with s the score of x_t.

    The score of x_t is 1 / alpha times that of y = x_t / alpha, and the same holds for the kernel's. In y the difference
    is (denoise - x0) / level^2, so the weight is 0.5 g^2 / (alpha^2 level^4) = 0.5 (d level^2 / dt) / level^4: the dsm
    weight times 2 d ln level / dt, which for VE is the constant 2 ln(sigma_max / sigma_min).
    """
    t = process.time(level)
    return 0.5 * (process.diffusion(t) / (process.alpha(t) * level**2)) ** 2


def edm_weight(level: torch.Tensor, process: LinearSDE, std: float) -> torch.Tensor:
    """Unit effective weight of the network's output (Karras et al. 2022, Table 1)."""
    return (level**2 + std**2) / (level * std) ** 2


LEVELS = {"uniform-time": uniform_time, "log-normal": log_normal}
WEIGHTS = {"dsm": dsm_weight, "likelihood": likelihood_weight, "edm": edm_weight}
