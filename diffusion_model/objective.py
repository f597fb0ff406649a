"""What a score model is trained on: where the levels are drawn, and what an error counts at each level.

Two tables, any pair allowed. A level distribution is a function (uniform [B] in float64, config, std) -> levels [B]; a
weight is a function (level, std) -> the factor of |denoise(x0 + level noise, level) - x0|^2, summed over the pixels.
"""

from typing import Any

import torch

from diffusion_model.sde import SDES


def dsm_weight(level: torch.Tensor, std: float) -> torch.Tensor:
    """Denoising score matching, lambda = sigma^2: 0.5 |sigma s + noise|^2 = 0.5 |denoise - x0|^2 / level^2."""
    return 0.5 / level**2


def edm_weight(level: torch.Tensor, std: float) -> torch.Tensor:
    """Unit effective weight of the network's output (Karras et al. 2022, Table 1)."""
    return (level**2 + std**2) / (level * std) ** 2


def uniform_time(uniform: torch.Tensor, config: Any, std: float) -> torch.Tensor:
    """Levels of t ~ U(eps, 1) of the run's SDE, from uniform [B] in float64."""
    settings = dict(config["sde"])
    process = SDES[settings.pop("name")]
    if process is SDES["ve"]:
        unit = config["model"]["unit"]
        sde = process(unit=std if unit == "data" else float(unit), **settings)
    else:
        sde = process(**settings)
    return sde.level(sde.eps + (1 - sde.eps) * uniform)


def log_normal(uniform: torch.Tensor, config: Any, std: float) -> torch.Tensor:
    """Levels with ln level ~ N(mean, std^2) (Karras et al. 2022), from uniform [B] in float64."""
    objective = config["objective"]
    quantile = torch.special.ndtri(uniform.clamp(1e-9, 1 - 1e-9))
    return torch.exp(objective["mean"] + objective["std"] * quantile)


WEIGHTS = {"dsm": dsm_weight, "edm": edm_weight}
LEVELS = {"uniform-time": uniform_time, "log-normal": log_normal}
