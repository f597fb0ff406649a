"""The time-conditional encoder of From Points to Functions: a wide ResNet (x0, t) -> Posterior(mean, logvar).

WRN-28-k (Zagoruyko and Komodakis 2016) with widths [16, 16k, 32k, 64k] and the embedding of log sigma(t) added in every
block. It sees the clean image; t in [0, 1] labels the level 0.01 * 5000^t in units of the data's standard deviation.
The representation at t is the mean: D = 64 k features, or 2 where k = 0.

As in the paper's code, and unlike most wide ResNets, a block that halves the image does so in its second convolution: the
time is added at full size. The layers that see the time begin as DDPM's do (fan-average uniform, zero bias).
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from diffusion_model.layers import LevelEmbedding, initialise
from diffusion_model.trajectories import LEVEL_MAX, LEVEL_MIN

BLOCKS = 4  # a group; 28 layers = 6 * 4 + 4


@dataclass(frozen=True)
class Posterior:
    """N(mean, exp(logvar)) of the code, [B, D] each; logvar is None where the encoder is deterministic."""

    mean: torch.Tensor
    logvar: torch.Tensor | None = None

    def sample(self, noise: torch.Tensor) -> torch.Tensor:
        """Reparametrised draw [B, D] from standard normal noise [B, D]; the mean where deterministic."""
        return self.mean if self.logvar is None else self.mean + torch.exp(self.logvar / 2) * noise

    def kl(self) -> torch.Tensor:
        """KL(N(mean, exp(logvar)) || N(0, I)) in nats, [B]."""
        return (self.mean**2 + self.logvar.exp() - self.logvar - 1).sum(1) / 2


def widths(widen: float) -> list[int]:
    """Channels after the stem and the three groups; widen 0 is the paper's two-dimensional code."""
    if widen == 0:
        return [16, 32, 64, 2]
    return [16, round(16 * widen), round(32 * widen), round(64 * widen)]


class Block(nn.Module):
    """Pre-activation residual block with the time added between its convolutions."""

    def __init__(self, channels: int, out: int, stride: int, embedding: int) -> None:
        super().__init__()
        self.norm0, self.conv0 = nn.BatchNorm2d(channels), nn.Conv2d(channels, out, 3, padding=1)
        self.shift = initialise(nn.Linear(embedding, out))
        self.norm1, self.conv1 = nn.BatchNorm2d(out), nn.Conv2d(out, out, 3, stride, padding=1)
        self.skip = nn.Conv2d(channels, out, 1) if channels != out or stride != 1 else nn.Identity()
        self.stride = stride

    def forward(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        """x [B, C, H, W], embedding [B, E] -> [B, out, H / stride, W / stride]."""
        h = self.conv0(F.relu(self.norm0(x)))
        h = h + self.shift(F.silu(embedding))[:, :, None, None]
        # The skip sees every second pixel, as a 1x1 convolution with stride 2 does. That one writes beyond its memory on
        # CPUs where there are fewer than 16 channels (oneDNN issue 6035, in torch up to 2.14).
        return self.conv1(F.relu(self.norm1(h))) + self.skip(x[:, :, :: self.stride, :: self.stride])


class Encoder(nn.Module):
    """(x0 [B, C, H, W], t [B]) -> Posterior of a code of `dimension` features."""

    def __init__(self, channels: int, widen: float, probabilistic: bool, fourier_scale: float = 16.0) -> None:
        super().__init__()
        stem, *groups = widths(widen)
        self.dimension = groups[-1]
        self.time_embedding = LevelEmbedding(16, fourier_scale, 64)
        self.stem = nn.Conv2d(channels, stem, 3, padding=1)
        self.blocks = nn.ModuleDict()
        current = stem
        for group, out in enumerate(groups):
            for block in range(BLOCKS):
                stride = 2 if group > 0 and block == 0 else 1
                self.blocks[f"group{group}_block{block}"] = Block(current, out, stride, 64)
                current = out
        self.norm = nn.BatchNorm2d(current, momentum=0.9)  # the paper's: its statistics are nearly the last batch's
        self.posterior = nn.Linear(current, 2 * current) if probabilistic else None

    def forward(self, x0: torch.Tensor, t: torch.Tensor) -> Posterior:
        log_sigma = math.log(LEVEL_MIN) + t * math.log(LEVEL_MAX / LEVEL_MIN)
        embedding = self.time_embedding(log_sigma)
        h = self.stem(x0)
        for block in self.blocks.values():
            h = block(h, embedding)
        code = F.relu(self.norm(h)).mean(dim=(2, 3))  # [B, D]
        if self.posterior is None:
            return Posterior(code)
        mean, logvar = self.posterior(code).chunk(2, dim=1)
        return Posterior(mean, logvar)
