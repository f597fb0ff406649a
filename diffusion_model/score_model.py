"""The score model: network + preconditioning + time-conditional encoder, and its loss terms by name.

Legend: B batch, C channels, H and W pixels, Z code. Images are in model space; `level` is the standard deviation of the
noise of y = x_t / alpha(t) in model space. denoise(x, level) = E[x0 | x] and score = (denoise - x) / level^2.

Modes (Abstreiter et al. 2021):
    none               a plain score model, for sampling and the linear structure
    probabilistic-drl  denoise(x, level, code) with code ~ N(mean, exp(logvar)) from the clean image; + lambda_z KL
    reg-drl            the code is deterministic; + lambda_z |code|_1
A DRL model has no unconditional score: without its code it is refused.
"""

import math
from typing import Any

import torch
from torch import nn

from diffusion_model.data import Scaling
from diffusion_model.encoder import Encoder, Posterior, widths
from diffusion_model.experiment import nearest
from diffusion_model.objective import LEVELS, WEIGHTS  # noqa: F401
from diffusion_model.precondition import PRECONDITIONS
from diffusion_model.sde import from_config
from diffusion_model.trajectories import LEVEL_MAX, LEVEL_MIN
from diffusion_model.unet import UNet

# mode: (has an encoder, the encoder is probabilistic)
MODES = {"none": (False, False), "probabilistic-drl": (True, True), "reg-drl": (True, False)}


class ScoreModel(nn.Module):
    """Built from a run's configuration (nested mapping), one image's shape (C, H, W), its scaling and data statistics.

    `std` is the data's standard deviation in model space; the encoder's time t labels the level std * 0.01 * 5000^t.
    """

    def __init__(self, config: Any, shape: tuple[int, int, int], scaling: Scaling, std: float) -> None:
        super().__init__()
        self.config, self.shape, self.scaling, self.std = config, tuple(shape), scaling, std
        model, encoder = config["model"], config["encoder"]
        for name, choices in (("mode", MODES), ("precondition", PRECONDITIONS)):
            if model[name] not in choices:
                raise ValueError(f"model.{name} {model[name]!r}: {nearest(model[name], choices)}")
        self.mode = model["mode"]
        encoded, probabilistic = MODES[self.mode]
        channels, height, width = shape
        if height != width:
            raise ValueError(f"images of {height}x{width} pixels: expected squares")
        self.unit = std if model["unit"] == "data" else float(model["unit"])
        self.sde = from_config(config["sde"], self.unit)
        self.encoder = Encoder(channels, encoder["widen"], probabilistic, encoder["fourier_scale"]) if encoded else None
        if encoded:  # faster than the default layout, on CPU and GPU; the UNet's narrow convolutions are not
            self.encoder.to(memory_format=torch.channels_last)
        self.net = UNet(
            channels, height, model["features"], model["multipliers"], model["blocks"], model["attention"],
            model["dropout"], model["fourier_scale"], code_width=widths(encoder["widen"])[-1] if encoded else 0,
        )  # fmt: skip

    def time_of(self, level: torch.Tensor) -> torch.Tensor:
        """The encoder's label t in [0, 1] of a level; levels outside the labelled range take the nearest end."""
        return (torch.log(level / (self.std * LEVEL_MIN)) / math.log(LEVEL_MAX / LEVEL_MIN)).clamp(0, 1)

    def encode(self, x0: torch.Tensor, time: torch.Tensor) -> Posterior:
        """Posterior of the code of clean images [B, C, H, W] at times [B] (or one time for all)."""
        if self.encoder is None:
            raise ValueError(
                "this run has model.mode none and no encoder: train one with --config configs/drl.py:PRESET"
            )
        time = torch.as_tensor(time, dtype=x0.dtype, device=x0.device).expand(len(x0))
        return self.encoder(x0.contiguous(memory_format=torch.channels_last), time)

    def denoise(self, x: torch.Tensor, level: torch.Tensor, code: torch.Tensor | None = None) -> torch.Tensor:
        """E[x0 | x] for x [B, C, H, W] at a level (0-d or [B]); a DRL model needs the code [B, Z]."""
        if self.encoder is not None and code is None:
            raise ValueError(
                f"this run has model.mode {self.mode}: its score is conditioned on the code of a given image and it has no "
                "unconditional score; use a run of configs/edm.py (mode none) here"
            )
        level = torch.as_tensor(level, dtype=torch.float64, device=x.device).expand(len(x))
        form = PRECONDITIONS[self.config["model"]["precondition"]]
        *outside, c_noise = (value.to(x.dtype) for value in form(level, self.sde, self.unit, self.std))
        c_skip, c_out, c_in = (value[:, None, None, None] for value in outside)
        return c_skip * x + c_out * self.net(c_in * x, c_noise, code)

    def score(self, x: torch.Tensor, level: torch.Tensor, code: torch.Tensor | None = None) -> torch.Tensor:
        """grad log p_level(x), [B, C, H, W]."""
        denoised = self.denoise(x, level, code)
        return (denoised - x) / torch.as_tensor(level, dtype=x.dtype, device=x.device).expand(len(x))[
            :, None, None, None
        ] ** 2

    def loss(self, x0: torch.Tensor, draws: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Loss terms by name, each the mean over the batch, already weighted; their sum is what is minimised.

        `draws`: level [B], noise like x0 and, as the mode needs, code_noise [B, Z], partner [B] and share [B] (mixup:
        the encoder sees share x0 + (1 - share) x0[partner], the score's target stays x0 and its loss counts 2 share).
        """
        objective, level = self.config["objective"], draws["level"]
        terms, code, importance = {}, None, torch.ones_like(level)
        if self.encoder is not None:
            seen = x0
            if "share" in draws:
                share = draws["share"][:, None, None, None]
                seen, importance = share * x0 + (1 - share) * x0[draws["partner"]], 2 * draws["share"]
            posterior = self.encode(seen, self.time_of(level))
            code = posterior.sample(draws["code_noise"]) if posterior.logvar is not None else posterior.mean
            if posterior.logvar is not None:
                terms["kl"] = objective["lambda_z"] * posterior.kl().mean()
            else:
                terms["l1"] = objective["lambda_z"] * posterior.mean.abs().sum(1).mean()
        error = self.denoise(x0 + level[:, None, None, None] * draws["noise"], level, code) - x0
        weight = WEIGHTS[objective["weight"]](level.double(), self.sde, self.std).to(error.dtype) * importance
        return {"score": (weight * error.square().flatten(1).sum(1)).mean(), **terms}
