"""NCSN++ (Song et al. 2021, appendix H) with blocks by name, and the DRL conditioning of Abstreiter et al. 2021.

BigGAN residual blocks, rescaled skips, attention at chosen resolutions, Fourier noise embedding, residual input pyramid.
The encoder half and the decoder half are `ModuleDict`s whose keys say what a module is ("32x32_block0", "16x16_down"),
so checkpoints and printouts can be read, and activations can be named. The decoder half alone, without skips, is the
`Decoder` that turns a code back into an image.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from diffusion_model.layers import SQRT_HALF, Attention, LevelEmbedding, ResBlock, conv3, downsample, initialise, norm


class UNet(nn.Module):
    """F(x, c_noise, code): x [B, C, H, W], c_noise [B], code [B, Z] or None -> [B, C, H, W].

    With `code_width` Z > 0 the code enters twice: Linear(Z) beside the noise embedding goes to every block, and a
    three-layer SiLU network of both gives a map that is concatenated at the bottleneck.
    """

    def __init__(self, channels: int, side: int, features: int = 16, multipliers: Sequence[int] = (1, 2, 2, 2),
                 blocks: int = 2, attention: Sequence[int] = (16,), dropout: float = 0.1, fourier_scale: float = 16.0,
                 embedding_kind: str = "fourier", code_width: int = 0) -> None:  # fmt: skip
        super().__init__()
        levels = len(multipliers)
        if side % 2 ** (levels - 1):
            raise ValueError(
                f"images of {side} pixels cannot be halved {levels - 1} times: use fewer model.multipliers"
            )
        width = 4 * features
        self.noise_embedding = LevelEmbedding(features, fourier_scale, width, embedding_kind)
        embedding = width
        if code_width:
            self.code_embedding = initialise(nn.Linear(code_width, width))
            embedding = 2 * width

        self.down, self.up = nn.ModuleDict(), nn.ModuleDict()
        current, size = features, side
        self.down[f"{size}x{size}_in"] = conv3(channels, features)
        skips, pyramid = [features], channels
        for index, multiplier in enumerate(multipliers):
            out = features * multiplier
            for block in range(blocks):
                self.down[f"{size}x{size}_block{block}"] = ResBlock(current, out, embedding, dropout)
                if size in attention:
                    self.down[f"{size}x{size}_attention{block}"] = Attention(out)
                current = out
                skips.append(current)
            if index < levels - 1:
                size //= 2
                self.down[f"{size}x{size}_down"] = ResBlock(current, current, embedding, dropout, "down")
                self.down[f"{size}x{size}_pyramid"] = conv3(pyramid, current)
                pyramid = current
                skips.append(current)

        self.bottleneck = (current, size)
        if code_width:
            self.code_map = code_map(embedding, current, size)
        self.middle_block0 = ResBlock(current * (2 if code_width else 1), current, embedding, dropout)
        self.middle_attention = Attention(current)
        self.middle_block1 = ResBlock(current, current, embedding, dropout)

        outs = [features * multiplier for multiplier in multipliers]
        current = build_up(self.up, outs, blocks, attention, self.bottleneck, skips, embedding, dropout)
        self.out_norm, self.out = norm(current), conv3(current, channels, scale=0.0)

    def embed(self, c_noise: torch.Tensor, code: torch.Tensor | None) -> torch.Tensor:
        """Noise embedding [B, E], beside it the code's where the network has one."""
        embedding = self.noise_embedding(c_noise)
        if hasattr(self, "code_embedding"):
            embedding = torch.cat([embedding, self.code_embedding(code)], dim=1)
        return embedding

    def forward(self, x: torch.Tensor, c_noise: torch.Tensor, code: torch.Tensor | None = None) -> torch.Tensor:
        embedding = self.embed(c_noise, code)
        h, pyramid, skips = x, x, []
        for name, module in self.down.items():
            kind = name.partition("_")[2]
            if kind == "pyramid":
                pyramid = module(downsample(pyramid))
                h = pyramid = (pyramid + h) * SQRT_HALF
                skips[-1] = h
            elif kind.startswith("attention"):
                h = skips[-1] = module(h)
            else:
                h = module(h, embedding) if isinstance(module, ResBlock) else module(h)
                skips.append(h)

        if hasattr(self, "code_map"):
            channels, size = self.bottleneck
            h = torch.cat([h, self.code_map(embedding).view(-1, channels, size, size)], dim=1)
        h = self.middle_block1(self.middle_attention(self.middle_block0(h, embedding)), embedding)

        h = run_up(self.up, h, embedding, skips)
        return self.out(F.silu(self.out_norm(h)))


class Decoder(nn.Module):
    """Reconstruction of x0 from its code: (c_noise [B], code [B, Z]) -> [B, C, H, W] (the modes vae-* and ae-*).

    The conditioning of the score network (noise embedding, code embedding, map at the bottleneck) and its decoder half,
    with nothing that has seen the image but the code.
    """

    def __init__(self, channels: int, side: int, features: int = 16, multipliers: Sequence[int] = (1, 2, 2, 2),
                 blocks: int = 2, attention: Sequence[int] = (16,), dropout: float = 0.1, fourier_scale: float = 16.0,
                 embedding_kind: str = "fourier", code_width: int = 128) -> None:  # fmt: skip
        super().__init__()
        width, halvings = 4 * features, len(multipliers) - 1
        if side % 2**halvings:
            raise ValueError(f"images of {side} pixels cannot be halved {halvings} times: use fewer model.multipliers")
        self.noise_embedding = LevelEmbedding(features, fourier_scale, width, embedding_kind)
        self.code_embedding = initialise(nn.Linear(code_width, width))
        outs = [features * multiplier for multiplier in multipliers]
        self.bottleneck = current, size = outs[-1], side // 2**halvings
        self.code_map = code_map(2 * width, current, size)
        self.middle_block0 = ResBlock(current, current, 2 * width, dropout)
        self.middle_attention = Attention(current)
        self.middle_block1 = ResBlock(current, current, 2 * width, dropout)
        self.up = nn.ModuleDict()
        current = build_up(self.up, outs, blocks, attention, self.bottleneck, [], 2 * width, dropout)
        self.out_norm, self.out = norm(current), conv3(current, channels)

    def forward(self, c_noise: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
        embedding = torch.cat([self.noise_embedding(c_noise), self.code_embedding(code)], dim=1)
        channels, size = self.bottleneck
        h = self.code_map(embedding).view(-1, channels, size, size)
        h = self.middle_block1(self.middle_attention(self.middle_block0(h, embedding)), embedding)
        h = run_up(self.up, h, embedding, [])
        return self.out(F.silu(self.out_norm(h)))


def code_map(embedding: int, channels: int, size: int) -> nn.Sequential:
    """[B, E] of noise and code -> a map [B, channels * size * size], by a three-layer SiLU network."""
    hidden = 4 * embedding
    return nn.Sequential(
        initialise(nn.Linear(embedding, hidden)), nn.SiLU(),
        initialise(nn.Linear(hidden, hidden)), nn.SiLU(),
        initialise(nn.Linear(hidden, channels * size * size)),
    )  # fmt: skip


def build_up(up: nn.ModuleDict, outs: Sequence[int], blocks: int, attention: Sequence[int], bottleneck: tuple[int, int],
             skips: list[int], embedding: int, dropout: float) -> int:  # fmt: skip
    """Fill the decoder half, coarse to fine, and give its last width; `skips` are the widths it concatenates, used up."""
    current, size = bottleneck
    for index, out in reversed(list(enumerate(outs))):
        for block in range(blocks + 1):
            beside = skips.pop() if skips else 0
            up[f"{size}x{size}_block{block}"] = ResBlock(current + beside, out, embedding, dropout)
            current = out
        if size in attention:
            up[f"{size}x{size}_attention"] = Attention(current)
        if index > 0:
            size *= 2
            up[f"{size}x{size}_up"] = ResBlock(current, current, embedding, dropout, "up")
    return current


def run_up(up: nn.ModuleDict, h: torch.Tensor, embedding: torch.Tensor, skips: list[torch.Tensor]) -> torch.Tensor:
    """The decoder half on h [B, C, H, W], with the skips of the encoder half, used up, where there are any."""
    for name, module in up.items():
        kind = name.partition("_")[2]
        if kind == "attention":
            h = module(h)
        elif kind == "up" or not skips:
            h = module(h, embedding)
        else:
            h = module(torch.cat([h, skips.pop()], dim=1), embedding)
    return h
