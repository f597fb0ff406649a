"""Preconditioning: denoise(y, level) = c_skip y + c_out F(c_in y, c_noise), Karras et al. 2022, equation 7 and Table 1.

Each form is a function (level, process, unit, std) -> (c_skip, c_out, c_in, c_noise) of a level in float64. y = x_t / alpha
is the image in the coordinate of the level, `process` the run's linear SDE, `unit` the size of one unit of noise of the
trained net in model space, so that c_noise keeps the units the net was trained in, and `std` the data's standard
deviation in model space (sigma_data).
"""

import torch

from diffusion_model.sde import LinearSDE

Coefficients = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def ve(level: torch.Tensor, process: LinearSDE, unit: float, std: float) -> Coefficients:
    """NCSN++: score = F(y, ln sigma) / sigma, so denoise = y + level^2 score = y + level F (`scale_by_sigma` there).

    Song et al. 2021 write it for their VE SDE; levels alone enter, so it serves any process.
    """
    one = torch.ones_like(level)
    return one, level, one, torch.log(level / unit)


def sde(level: torch.Tensor, process: LinearSDE, unit: float, std: float) -> Coefficients:
    """Song et al.'s VP and sub-VP, and any other process: the score of x_t is -F(x_t, 999 t) / sigma.

    With x_t = alpha y the score of y is alpha times that, -alpha F / sigma = -F / level, so denoise = y + level^2 score =
    y - level F(alpha y, 999 t): c_in is the process's own alpha and F predicts the noise. For VP alpha^2 = 1 / (1 + level^2),
    for sub-VP alpha = exp(-asinh(level / 2)); both go by t(level), in float64 for the low end's sake.

    999 t is made for sines at wavelengths from 2 pi to 20,000 pi. A random Fourier embedding wants model.fourier_scale
    near 0.02 here; at NCSN++'s 16 neighbouring times look unrelated.
    """
    t = process.time(level)
    return torch.ones_like(level), -level, process.alpha(t), 999 * t


def edm(level: torch.Tensor, process: LinearSDE, unit: float, std: float) -> Coefficients:
    """Unit variance of input and target at every level (Karras et al. 2022, appendix B.6)."""
    total = torch.sqrt(level**2 + std**2)
    return std**2 / total**2, level * std / total, 1 / total, torch.log(level / unit) / 4


PRECONDITIONS = {"ve": ve, "sde": sde, "edm": edm}
