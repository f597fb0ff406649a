"""Linear SDEs as noise levels: x_t = alpha(t) x_0 + sigma(t) noise, and level(t) = sigma(t) / alpha(t).

Outside this file and `precondition.py` nobody speaks t for noise. In y = x_t / alpha(t) every linear SDE
dx = f x dt + g dw of Song et al. 2021 (equations 9, 11 and 13 there) is the variance-exploding one,
d level^2 / dt = g^2 / alpha^2, so one set of samplers and one Gaussian formula serve all of them.

The two identities that define an entry: d ln alpha / dt = f and d level^2 / dt = g^2 / alpha^2.
Everything is float64; t runs from `eps` (where training starts) to 1.
"""

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class VE:
    """dx = sqrt(d sigma^2 / dt) dw with sigma(t) = sigma_min (sigma_max / sigma_min)^t, in units of `unit` model space.

    The kernel's standard deviation is taken as sigma(t) itself, as Song et al.'s code does (sigma(0) is negligible).
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    unit: float = 1.0
    eps: float = 1e-5

    def alpha(self, t: torch.Tensor) -> torch.Tensor:
        """Scale of the image at time t: 1."""
        return torch.ones_like(t)

    def sigma(self, t: torch.Tensor) -> torch.Tensor:
        """Noise standard deviation at time t, model space."""
        return self.unit * self.sigma_min * (self.sigma_max / self.sigma_min) ** t

    def drift(self, t: torch.Tensor) -> torch.Tensor:
        """f(t): 0."""
        return torch.zeros_like(t)

    def diffusion(self, t: torch.Tensor) -> torch.Tensor:
        """g(t) = sigma(t) sqrt(2 ln(sigma_max / sigma_min))."""
        return self.sigma(t) * math.sqrt(2 * math.log(self.sigma_max / self.sigma_min))

    def level(self, t: torch.Tensor) -> torch.Tensor:
        """sigma / alpha."""
        return self.sigma(t)

    def time(self, level: torch.Tensor) -> torch.Tensor:
        """Inverse of `level`."""
        return torch.log(level / (self.unit * self.sigma_min)) / math.log(self.sigma_max / self.sigma_min)


@dataclass(frozen=True)
class VP:
    """dx = -beta/2 x dt + sqrt(beta) dw with beta(t) = beta_min + t (beta_max - beta_min); alpha^2 + sigma^2 = 1."""

    beta_min: float = 0.1
    beta_max: float = 20.0
    eps: float = 1e-5

    def _integral(self, t: torch.Tensor) -> torch.Tensor:
        """Integral of beta from 0 to t, which is -2 ln alpha."""
        return t * self.beta_min + t**2 * (self.beta_max - self.beta_min) / 2

    def alpha(self, t: torch.Tensor) -> torch.Tensor:
        """Scale of the image at time t."""
        return torch.exp(-self._integral(t) / 2)

    def sigma(self, t: torch.Tensor) -> torch.Tensor:
        """Noise standard deviation at time t; by expm1, for 1 - alpha^2 cancels at small t."""
        return torch.sqrt(-torch.expm1(-self._integral(t)))

    def drift(self, t: torch.Tensor) -> torch.Tensor:
        """f(t) = -beta(t) / 2."""
        return -(self.beta_min + t * (self.beta_max - self.beta_min)) / 2

    def diffusion(self, t: torch.Tensor) -> torch.Tensor:
        """g(t) = sqrt(beta(t))."""
        return torch.sqrt(-2 * self.drift(t))

    def level(self, t: torch.Tensor) -> torch.Tensor:
        """sigma / alpha = sqrt(e^integral - 1)."""
        return torch.sqrt(torch.expm1(self._integral(t)))

    def time(self, level: torch.Tensor) -> torch.Tensor:
        """Inverse of `level`: the positive root of the quadratic integral(t) = ln(1 + level^2)."""
        return self._time_of_integral(torch.log1p(level**2))

    def _time_of_integral(self, integral: torch.Tensor) -> torch.Tensor:
        slope = self.beta_max - self.beta_min
        return 2 * integral / (self.beta_min + torch.sqrt(self.beta_min**2 + 2 * slope * integral))


@dataclass(frozen=True)
class SubVP(VP):
    """VP's alpha with sigma = 1 - alpha^2, the square of VP's (Song et al. 2021, equation 13)."""

    def sigma(self, t: torch.Tensor) -> torch.Tensor:
        """Noise standard deviation at time t."""
        return -torch.expm1(-self._integral(t))

    def diffusion(self, t: torch.Tensor) -> torch.Tensor:
        """g(t) = sqrt(beta (1 - alpha^4))."""
        return torch.sqrt(-2 * self.drift(t) * -torch.expm1(-2 * self._integral(t)))

    def level(self, t: torch.Tensor) -> torch.Tensor:
        """sigma / alpha = 2 sinh(integral / 2)."""
        return 2 * torch.sinh(self._integral(t) / 2)

    def time(self, level: torch.Tensor) -> torch.Tensor:
        """Inverse of `level`."""
        return self._time_of_integral(2 * torch.asinh(level / 2))


SDES = {"ve": VE, "vp": VP, "subvp": SubVP}
