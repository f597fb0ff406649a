"""Preconditioning: denoise(x, level) = c_skip x + c_out F(c_in x, c_noise), Karras et al. 2022, equation 7 and Table 1.

Each form is a function (level, unit, std) -> (c_skip, c_out, c_in, c_noise). `unit` is the size of one unit of noise of
the trained net in model space, so that c_noise keeps the units the net was trained in; `std` is the data's standard
deviation in model space (sigma_data).
"""

import torch

Coefficients = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def ve(level: torch.Tensor, unit: float, std: float) -> Coefficients:
    """NCSN++: score = F(x, log sigma) / sigma, so denoise = x + sigma F (Song et al. 2021, `scale_by_sigma`)."""
    one = torch.ones_like(level)
    return one, level, one, torch.log(level / unit)


def edm(level: torch.Tensor, unit: float, std: float) -> Coefficients:
    """Unit variance of input and target at every level (Karras et al. 2022, appendix B.6)."""
    total = torch.sqrt(level**2 + std**2)
    return std**2 / total**2, level * std / total, 1 / total, torch.log(level / unit) / 4


PRECONDITIONS = {"ve": ve, "edm": edm}
