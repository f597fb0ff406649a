"""The encoder for use alone: what batch normalisation and time do to a trained one is folded into its convolutions.

In evaluation every normalisation is an affine map a x + b of a channel, and a block of the encoder is

    y + conv1(relu(a1 (conv0(relu(a0 y + b0)) + shift(t)) + b1)).

a1 and b1 go into conv0, and shift(t) becomes part of its bias, a vector a time and no map an image. As relu(a0 y + b0) =
a0 relu(y + b0 / a0) for a0 > 0, a0 goes into conv0 too, and the stream y is carried with b0 / a0 added to it, by the bias of
the convolution before: relu alone is left between convolutions. Where some a0 is not positive, or b0 / a0 is so large that
it would drown y, that block keeps its map. Folding is done in float64.

Up to the first block's conv0 nothing depends on the time: `begin` does it once an image, `finish` the rest once a time. On a
CPU that has them, oneDNN's convolutions with relu and addition inside, on weights laid out beforehand, save the rest of the
passes over memory (torch.compile makes use of the same).

Legend: B images, C channels, H and W pixels, D features.
"""

import functools
import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from diffusion_model.encoder import Block, Encoder
from diffusion_model.trajectories import LEVEL_MAX, LEVEL_MIN

DROWNED = 30.0  # largest shift of a channel, in its standard deviations, that is folded


@dataclass
class Affine:
    """a x + b a channel, float64 [C] each."""

    a: torch.Tensor
    b: torch.Tensor
    folds: bool  # whether it is a relu(x + b / a) without loss

    @classmethod
    def of(cls, norm: nn.BatchNorm2d) -> "Affine":
        """What a normalisation does in evaluation."""
        deviation = (norm.running_var.double() + norm.eps).sqrt()
        a = norm.weight.detach().double() / deviation
        b = norm.bias.detach().double() - norm.running_mean.double() * a
        return cls(a, b, bool((a > 0).all() and (b.abs() <= DROWNED * a * deviation).all()))


class Relu:
    """relu(a x + b) of a stream that carries x + `shift`; the factor `scale` is left to what follows."""

    def __init__(self, affine: Affine, dtype: torch.dtype) -> None:
        one = torch.ones_like(affine.a)
        self.shift, self.scale = (affine.b / affine.a, affine.a) if affine.folds else (0 * one, one)
        self.map = None if affine.folds else [value.to(dtype)[:, None, None] for value in (affine.a, affine.b)]

    def __call__(self, y: torch.Tensor) -> torch.Tensor:
        return F.relu(y) if self.map is None else torch.addcmul(self.map[1], y, self.map[0]).relu_()


class FoldedBlock:
    """One block: relu, conv0 with the time in its bias, relu, conv1, added to the stream."""

    def __init__(self, block: Block, relu: Relu, after: Relu, dtype: torch.dtype) -> None:
        self.relu, self.stride, self.dtype = relu, block.stride, dtype
        inner = Affine.of(block.norm1)
        conv0, conv1, skip = block.conv0, block.conv1, block.skip
        weight = conv0.weight.double() * inner.a[:, None, None, None] * relu.scale[:, None, None]
        self.conv0 = Convolution(weight, dtype)
        self.conv1 = Convolution(conv1.weight.double(), dtype, self.stride)
        self.inner, self.bias0, self.linear = inner, conv0.bias.double(), block.shift
        bias1, self.skip = conv1.bias.double() + after.shift, None
        if isinstance(skip, nn.Identity):
            bias1 = bias1 - relu.shift
        else:
            weight = skip.weight.double()
            bias1 = bias1 + skip.bias.double() - weight[:, :, 0, 0] @ relu.shift
            self.skip = Convolution(weight, dtype)
        self.bias1 = bias1.to(dtype)

    def bias(self, embedding: torch.Tensor) -> torch.Tensor:
        """Bias of conv0 [C] at the time of this embedding [1, E]."""
        shift = self.linear(F.silu(embedding))[0].double()
        return (self.inner.a * (self.bias0 + shift) + self.inner.b).to(self.dtype)

    def carry(self, y: torch.Tensor) -> torch.Tensor:
        """What conv1 is added to; the stream itself where no skip is in between."""
        return y if self.skip is None else self.skip(y[:, :, :: self.stride, :: self.stride])

    def __call__(self, y: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        h = self.conv0(self.relu(y), bias, relu=True)
        return self.conv1(h, self.bias1, onto=self.carry(y))


class Convolution:
    """A convolution that keeps the size, or every `stride`th pixel of it, with relu or an addition in the same pass."""

    def __init__(self, weight: torch.Tensor, dtype: torch.dtype, stride: int = 1) -> None:
        self.weight = weight.detach().to(dtype).contiguous(memory_format=torch.channels_last)
        self.stride, self.padding = stride, weight.shape[-1] // 2
        self.layouts: dict[tuple[int, ...], torch.Tensor] = {}  # of the weight, by the shape of the input

    def _laid_out(self, x: torch.Tensor) -> torch.Tensor:
        shape = tuple(x.shape)
        if shape not in self.layouts:
            pair = [self.padding] * 2, [self.stride] * 2, [1, 1]
            self.layouts[shape] = torch.ops.mkldnn._reorder_convolution_weight(self.weight, *pair, 1, list(shape))
        return self.layouts[shape]

    def __call__(
        self, x: torch.Tensor, bias: torch.Tensor | None = None, relu: bool = False, onto: torch.Tensor | None = None
    ) -> torch.Tensor:
        """conv(x) + bias, then relu, or added in place to `onto`."""
        if not torch.compiler.is_compiling() and x.device.type == "cpu" and self.padding and fuses(x.dtype):
            return self._fused(x, bias, relu, onto)
        h = F.conv2d(x, self.weight, bias, self.stride, self.padding)
        h = h if onto is None else h.add_(onto)
        return h.relu_() if relu else h

    def _fused(self, x: torch.Tensor, bias: torch.Tensor | None, relu: bool, onto: torch.Tensor | None) -> torch.Tensor:
        weight, pair = self._laid_out(x), ([self.padding] * 2, [self.stride] * 2, [1, 1])
        if onto is None:
            return torch.ops.mkldnn._convolution_pointwise(
                x, weight, bias, *pair, 1, "relu" if relu else "none", [], ""
            )
        return torch.ops.mkldnn._convolution_pointwise_.binary(
            onto, x, weight, bias, *pair, 1, "add", 1.0, "relu" if relu else None, [], None
        )


@functools.cache
def fuses(dtype: torch.dtype) -> bool:
    """Whether this torch has oneDNN's convolutions with relu and addition inside, and they do what plain ones do."""
    generator = torch.Generator().manual_seed(0)
    x, onto = (torch.randn(2, 16, 4, 4, generator=generator) for _ in range(2))
    weight, bias = torch.randn(16, 16, 3, 3, generator=generator), torch.randn(16, generator=generator)
    x, onto = (value.to(dtype).contiguous(memory_format=torch.channels_last) for value in (x, onto))
    convolution, bias = Convolution(weight, dtype), bias.to(dtype)
    plain = F.conv2d(x.float(), convolution.weight.float(), bias.float(), padding=1)
    try:
        found = convolution._fused(x, bias, True, None), convolution._fused(x, bias, False, onto.clone())
    except (AttributeError, RuntimeError):
        return False
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    expected = F.relu(plain), plain + onto.float()
    pairs = zip(found, expected, strict=True)
    return all(torch.allclose(mine.float(), theirs, rtol=tolerance, atol=10 * tolerance) for mine, theirs in pairs)


class FoldedEncoder:
    """An encoder's means at many times of the same images; equal to the encoder in evaluation, to rounding.

    What `begin` gives serves any number of times.
    """

    def __init__(self, encoder: Encoder, dtype: torch.dtype = torch.float32) -> None:
        self.dtype, self.dimension, self.embedding = dtype, encoder.dimension, encoder.time_embedding
        blocks = list(encoder.blocks.values())
        relus = [Relu(Affine.of(norm), dtype) for norm in (*(block.norm0 for block in blocks), encoder.norm)]
        self.blocks = [
            FoldedBlock(block, relu, after, dtype) for block, relu, after in zip(blocks, relus, relus[1:], strict=False)
        ]
        self.stem = Convolution(encoder.stem.weight.double(), dtype)
        self.stem_bias = (encoder.stem.bias.double() + relus[0].shift).to(dtype)
        self.last, self.scale, self.posterior = relus[-1], relus[-1].scale.float(), encoder.posterior
        self.finish = self._finish

    def compile(self) -> None:
        """Compile what is done for each time; the first batch of each size then takes its minute."""
        self.finish = torch.compile(self._finish, dynamic=False)

    @torch.inference_mode()
    def biases(self, time: float) -> list[torch.Tensor]:
        """The bias of each block's conv0 at a time t in [0, 1]."""
        log_sigma = math.log(LEVEL_MIN) + time * math.log(LEVEL_MAX / LEVEL_MIN)
        embedding = self.embedding(torch.tensor([log_sigma], device=self.scale.device))
        return [block.bias(embedding) for block in self.blocks]

    def begin(self, x0: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Images [B, C, H, W] -> what all times share: the first block's conv0 without its bias, and what carries on."""
        y = self.stem(x0.to(self.dtype).contiguous(memory_format=torch.channels_last), self.stem_bias)
        first = self.blocks[0]
        return first.conv0(first.relu(y)), first.carry(y)

    def _finish(self, begun: tuple[torch.Tensor, torch.Tensor], biases: list[torch.Tensor]) -> torch.Tensor:
        """Posterior means [B, D] in float32 at the time of these biases."""
        h, carried = begun
        first = self.blocks[0]
        y = first.conv1((h + biases[0][:, None, None]).relu_(), first.bias1, onto=carried.clone())
        for block, bias in zip(self.blocks[1:], biases[1:], strict=True):
            y = block(y, bias)
        code = self.last(y).float().mean(dim=(2, 3)) * self.scale
        return code if self.posterior is None else self.posterior(code)[:, : self.dimension]
