"""Layers of the score networks. Legend: B batch, C channels, H and W pixels, E embedding width."""

import math

import torch
from torch import nn
from torch.nn import functional as F

SQRT_HALF = math.sqrt(0.5)


class Fourier(nn.Module):
    """Random Fourier features of a scalar: c [B] -> [B, 2 features] = (sin, cos)(2 pi c w), w ~ N(0, scale^2) fixed."""

    def __init__(self, features: int, scale: float) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.randn(features) * scale)

    def forward(self, c: torch.Tensor) -> torch.Tensor:
        angles = 2 * math.pi * c[:, None].float() * self.frequencies[None]
        return torch.cat([angles.sin(), angles.cos()], dim=1)


class Positional(nn.Module):
    """Sines of a scalar: c [B] -> [B, features] = (sin, cos)(c w), w geometric from 1 to 1/10000 (DDPM, for c = 999 t)."""

    def __init__(self, features: int) -> None:
        super().__init__()
        half = features // 2
        self.register_buffer("frequencies", 10_000.0 ** -(torch.arange(half) / (half - 1)))

    def forward(self, c: torch.Tensor) -> torch.Tensor:
        angles = c[:, None].float() * self.frequencies[None]
        return torch.cat([angles.sin(), angles.cos()], dim=1)


EMBEDDINGS = ("fourier", "positional")


class LevelEmbedding(nn.Sequential):
    """A scalar [B] -> [B, E]: Fourier or positional features, Linear, SiLU, Linear (NCSN++; DDPM++).

    Both maps begin as DDPM's do: nn.Linear's own start would give a sixth of the spread over levels (`initialise`).
    """

    def __init__(self, features: int, scale: float, width: int, kind: str = "fourier") -> None:
        first, inputs = {
            "fourier": (Fourier(features, scale), 2 * features),
            "positional": (Positional(features), features),
        }[kind]
        super().__init__(first, initialise(nn.Linear(inputs, width)), nn.SiLU(), initialise(nn.Linear(width, width)))


def initialise(layer: nn.Module, scale: float = 1.0) -> nn.Module:
    """Fan-average uniform weights with variance `scale` / fan, zero bias (DDPM); scale 0 means 1e-10, as there."""
    weight = layer.weight
    receptive = weight[0, 0].numel() if weight.dim() > 2 else 1
    fan = (weight.shape[0] + weight.shape[1]) / 2 * receptive
    bound = math.sqrt(3 * max(scale, 1e-10) / fan)
    nn.init.uniform_(weight, -bound, bound)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def conv3(channels: int, out: int, scale: float = 1.0) -> nn.Conv2d:
    """3x3 convolution that keeps the size, initialised as in DDPM."""
    return initialise(nn.Conv2d(channels, out, 3, padding=1), scale)


def conv1(channels: int, out: int, scale: float = 1.0) -> nn.Conv2d:
    """1x1 convolution, initialised as in DDPM."""
    return initialise(nn.Conv2d(channels, out, 1), scale)


def norm(channels: int) -> nn.GroupNorm:
    """Group normalisation with at most 32 groups of at least 4 channels."""
    if channels < 4 or channels % min(channels // 4, 32):
        raise ValueError(
            f"layers of {channels} channels: expected a multiple of 4, and of 32 above 128; "
            "change model.features or model.multipliers"
        )
    return GroupNorm(min(channels // 4, 32), channels, eps=1e-6)


class GroupNorm(nn.GroupNorm):
    """nn.GroupNorm; on a CPU in float32, whose kernel for bfloat16 in channels_last takes twice the time."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.float() if x.device.type == "cpu" else x)


# defined by hand: torch.library.custom_op would import the whole compiler at the first call, seconds of every start
MASK = "score_trajectories::dropout_mask"
SCHEMA = torch.library.define(MASK, "(Tensor x, float share) -> Tensor")


@torch.library.impl(MASK, "CPU")
def dropout_mask(x: torch.Tensor, share: float) -> torch.Tensor:
    """Like x on a CPU: 0 for `share` of the elements, to 1 / 65,536, and for the others 1 over exactly what is kept.

    16 random bits an element: a quarter of the time of bernoulli_. An operation of its own, for the compiler draws element
    by element, and draws again on the way back.
    """
    kept = round((1 - share) * 2**16)
    bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    mask = (bits.view(torch.int16)[: x.numel()] < kept - 2**15).to(x.dtype).mul_(2**16 / kept)
    return mask.as_strided(x.shape, x.stride())


@torch.library.register_fake(MASK)
def _(x: torch.Tensor, share: float) -> torch.Tensor:
    return torch.empty_like(x)


class Dropout(nn.Module):
    """nn.Dropout; on a CPU with `dropout_mask`."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or not self.share:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.share)
        return x * torch.ops.score_trajectories.dropout_mask(x.detach(), self.share)


def downsample(x: torch.Tensor) -> torch.Tensor:
    """Mean over 2x2 pixels: [B, C, H, W] -> [B, C, H/2, W/2]."""
    return F.avg_pool2d(x, 2)


def upsample(x: torch.Tensor) -> torch.Tensor:
    """Nearest neighbour: [B, C, H, W] -> [B, C, 2H, 2W]."""
    return F.interpolate(x, scale_factor=2, mode="nearest")


RESAMPLE = {"same": lambda x: x, "down": downsample, "up": upsample}


class ResBlock(nn.Module):
    """BigGAN residual block with rescaled skip (NCSN++): (skip(x) + h) / sqrt(2), resampling inside the block."""

    def __init__(self, channels: int, out: int, embedding: int, dropout: float, resample: str = "same") -> None:
        super().__init__()
        self.resample = RESAMPLE[resample]
        self.norm0, self.conv0 = norm(channels), conv3(channels, out)
        self.shift = initialise(nn.Linear(embedding, out))
        self.norm1, self.conv1 = norm(out), conv3(out, out, scale=0.0)
        self.dropout = Dropout(dropout)
        self.skip = conv1(channels, out) if channels != out or resample != "same" else nn.Identity()

    def forward(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        """x [B, C, H, W], embedding [B, E] -> [B, out, H', W']."""
        h = self.conv0(self.resample(F.silu(self.norm0(x))))
        h = h + self.shift(F.silu(embedding))[:, :, None, None]
        h = self.conv1(self.dropout(F.silu(self.norm1(h))))
        return (self.skip(self.resample(x)) + h).mul_(SQRT_HALF)


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """softmax(query key^T / sqrt(C)) value, [..., HW, C]; for bfloat16 on a CPU by plain products, twice as fast there."""
    if query.device.type == "cpu" and query.dtype == torch.bfloat16:
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        weights = torch.exp(
            scores - scores.detach().amax(-1, keepdim=True)
        )  # written out: the compiler would undo softmax
        return (weights @ value) / weights.sum(-1, keepdim=True)
    return F.scaled_dot_product_attention(query, key, value)


class Attention(nn.Module):
    """Self-attention over pixels, one head, with rescaled skip (NCSN++'s AttnBlockpp)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.query_key_value = conv1(channels, 3 * channels)
        self.out = conv1(channels, channels, scale=0.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W] -> [B, C, H, W]."""
        batch, channels, height, width = x.shape
        flat = self.query_key_value(self.norm(x)).flatten(2).transpose(1, 2)  # [B, HW, 3C]
        query, key, value = flat.unsqueeze(1).chunk(3, dim=-1)
        mixed = attend(query, key, value).squeeze(1)  # [B, HW, C]
        h = self.out(mixed.transpose(1, 2).reshape(batch, channels, height, width))
        return (x + h) * SQRT_HALF
