"""The score model: network + preconditioning + time-conditional encoder, and its loss terms by name.

Legend: B batch, C channels, H and W pixels, Z code. Images are in model space; `level` is the standard deviation of the
noise of y = x_t / alpha(t) in model space. denoise(x, level) = E[x0 | x] and score = (denoise - x) / level^2.

Modes (Abstreiter et al. 2021), each a row of MODES:
    none                 a plain score model, for sampling and the linear structure
    probabilistic-drl    denoise(x, level, code) with code ~ N(mean, exp(logvar)) from the clean image; + lambda_z KL
    reg-drl, noreg-drl   the code is deterministic; + lambda_z |code|_1, or nothing
    vae-l2, vae-bce      no score: a decoder makes the image from the code; reconstruction + KL
    ae-l2, ae-bce        the same with a deterministic code and no KL
A DRL model has no unconditional score: without its code it is refused.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from diffusion_model.data import Scaling
from diffusion_model.encoder import Encoder, Posterior, widths
from diffusion_model.experiment import nearest
from diffusion_model.objective import WEIGHTS
from diffusion_model.precondition import PRECONDITIONS
from diffusion_model.sde import LinearSDE, from_config
from diffusion_model.trajectories import LEVEL_MAX, LEVEL_MIN
from diffusion_model.unet import Decoder, UNet


@dataclass(frozen=True)
class Mode:
    """What a mode trains: the kind of encoder, its regulariser's weight, and l2 or bce where it reconstructs, not scores."""

    encoder: str | None = None
    lambda_z: float = 0.0  # of KL (probabilistic) or L1 (deterministic), where the configuration gives none
    reconstruction: str | None = None


MODES = {
    "none": Mode(),
    "probabilistic-drl": Mode("probabilistic", 1e-5),
    "reg-drl": Mode("deterministic", 1e-5),
    "noreg-drl": Mode("deterministic"),
    "vae-l2": Mode("probabilistic", 1.0, "l2"),
    "vae-bce": Mode("probabilistic", 1.0, "bce"),
    "ae-l2": Mode("deterministic", 0.0, "l2"),
    "ae-bce": Mode("deterministic", 0.0, "bce"),
}


class ScoreModel(nn.Module):
    """Built from a run's configuration (nested mapping), one image's shape (C, H, W), its scaling and data statistics.

    `std` is the data's standard deviation in model space; the encoder's time t labels the level std * 0.01 * 5000^t.
    process: as `sde.from_config` takes it.
    """

    def __init__(
        self, config: Any, shape: tuple[int, int, int], scaling: Scaling, std: float,
        process: str | type[LinearSDE] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.config, self.shape, self.scaling, self.std, self.process = config, tuple(shape), scaling, std, process
        model, encoder = config["model"], config["encoder"]
        for name, choices in (("mode", MODES), ("precondition", PRECONDITIONS)):
            if model[name] not in choices:
                raise ValueError(f"model.{name} {model[name]!r}: {nearest(model[name], choices)}")
        self.mode, self.kind = model["mode"], MODES[model["mode"]]
        self.precision = torch.float32  # of the networks' products; Trainer sets bfloat16 where asked for
        channels, height, width = shape
        if height != width:
            raise ValueError(f"images of {height}x{width} pixels: expected squares")
        self.unit = std if model["unit"] == "data" else float(model["unit"])
        self.sde = from_config(config["sde"], self.unit, process)
        encoded, code_width = self.kind.encoder is not None, widths(encoder["widen"])[-1]
        probabilistic = self.kind.encoder == "probabilistic"
        self.encoder = Encoder(channels, encoder["widen"], probabilistic, encoder["fourier_scale"]) if encoded else None
        layout = (
            channels, height, model["features"], model["multipliers"], model["blocks"], model["attention"],
            model["dropout"], model["fourier_scale"], model["embedding"],
        )  # fmt: skip
        reconstructs = self.kind.reconstruction is not None
        self.net = None if reconstructs else UNet(*layout, code_width=code_width if encoded else 0)
        self.decoder = Decoder(*layout, code_width=code_width) if reconstructs else None
        self.to(memory_format=torch.channels_last)  # faster than the default layout, on CPU and GPU

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
        with self._autocast(x0):
            posterior = self.encoder(x0.contiguous(memory_format=torch.channels_last), time)
        logvar = posterior.logvar
        return Posterior(posterior.mean.to(x0.dtype), None if logvar is None else logvar.to(x0.dtype))

    def denoise(self, x: torch.Tensor, level: torch.Tensor, code: torch.Tensor | None = None) -> torch.Tensor:
        """E[x0 | x] for x [B, C, H, W] at a level (0-d or [B]); a DRL model needs the code [B, Z]."""
        if self.net is None:
            raise ValueError(
                f"this run has model.mode {self.mode}: it reconstructs and has no score; use a run of configs/edm.py (mode none) here"
            )
        if self.encoder is not None and code is None:
            raise ValueError(
                f"this run has model.mode {self.mode}: its score is conditioned on the code of a given image and it has no "
                "unconditional score; use a run of configs/edm.py (mode none) here"
            )
        level = torch.as_tensor(level, dtype=torch.float64, device=x.device).expand(len(x))
        form = PRECONDITIONS[self.config["model"]["precondition"]]
        *outside, c_noise = (value.to(x.dtype) for value in form(level, self.sde, self.unit, self.std))
        c_skip, c_out, c_in = (value[:, None, None, None] for value in outside)
        with self._autocast(x):
            output = self.net((c_in * x).contiguous(memory_format=torch.channels_last), c_noise, code)
        return c_skip * x + c_out * output.to(x.dtype)

    def reconstruct(self, level: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
        """What the decoder makes of codes [B, Z] at levels [B] (vae-*, ae-*): images [B, C, H, W] in model space."""
        output = self._decode(level, code)
        return self.scaling.from_unit(torch.sigmoid(output)) if self.kind.reconstruction == "bce" else output

    def _decode(self, level: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
        """The decoder's output: an image in model space (l2), or logits of pixels in [0, 1] (bce)."""
        if self.decoder is None:
            raise ValueError(f"this run has model.mode {self.mode} and no decoder: the modes vae-* and ae-* have one")
        level = torch.as_tensor(level, dtype=code.dtype, device=code.device).expand(len(code))
        with self._autocast(code):
            return self.decoder(torch.log(level / self.unit), code).to(code.dtype)

    def _autocast(self, x: torch.Tensor) -> AbstractContextManager:
        return nullcontext() if self.precision == torch.float32 else torch.autocast(x.device.type, self.precision)

    def score(self, x: torch.Tensor, level: torch.Tensor, code: torch.Tensor | None = None) -> torch.Tensor:
        """grad log p_level(x), [B, C, H, W]."""
        denoised = self.denoise(x, level, code)
        return (denoised - x) / torch.as_tensor(level, dtype=x.dtype, device=x.device).expand(len(x))[
            :, None, None, None
        ] ** 2

    def loss(self, x0: torch.Tensor, draws: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Loss terms by name, each the mean over the batch, already weighted; their sum is what is minimised.

        `draws`: level [B], noise like x0 and, as the mode needs, code_noise [B, Z], other like x0 and share [B] (mixup:
        the encoder sees share x0 + (1 - share) other, the target stays x0, and the score's loss counts 2 share).
        """
        terms, code, importance = {}, None, torch.ones_like(draws["level"])
        if self.encoder is not None:
            seen = x0
            if "share" in draws:
                share = draws["share"][:, None, None, None]
                seen, importance = share * x0 + (1 - share) * draws["other"], 2 * draws["share"]
            posterior = self.encode(seen, self.time_of(draws["level"]))
            code = posterior.sample(draws["code_noise"]) if posterior.logvar is not None else posterior.mean
            terms = self._regulariser(posterior)
        if self.decoder is not None:
            return {"reconstruction": self._reconstruction_loss(x0, draws["level"], code), **terms}
        return {"score": self._score_loss(x0, draws, code, importance), **terms}

    def _regulariser(self, posterior: Posterior) -> dict[str, torch.Tensor]:
        """lambda_z KL of a probabilistic code, lambda_z |code|_1 of a deterministic one; nothing where lambda_z is 0."""
        given = self.config["objective"]["lambda_z"]
        weight = self.kind.lambda_z if given is None else given
        if not weight:
            return {}
        if posterior.logvar is not None:
            return {"kl": weight * posterior.kl().mean()}
        return {"l1": weight * posterior.mean.abs().sum(1).mean()}

    def _score_loss(
        self, x0: torch.Tensor, draws: dict[str, torch.Tensor], code: torch.Tensor | None, importance: torch.Tensor
    ) -> torch.Tensor:
        level = draws["level"]
        error = self.denoise(x0 + level[:, None, None, None] * draws["noise"], level, code) - x0
        weigh = WEIGHTS[self.config["objective"]["weight"]]
        weight = weigh(level.double(), self.sde, self.std).to(error.dtype) * importance
        return (weight * error.square().flatten(1).sum(1)).mean()

    def _reconstruction_loss(self, x0: torch.Tensor, level: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
        """Half the sum over pixels of the squared error, or of the cross-entropy with the pixels in [0, 1] (bce)."""
        output = self._decode(level, code)
        if self.kind.reconstruction == "bce":
            error = F.binary_cross_entropy_with_logits(output, self.scaling.to_unit(x0).clamp(0, 1), reduction="none")
        else:
            error = (output - x0).square()
        return 0.5 * error.flatten(1).sum(1).mean()
