"""Heads: classifiers that see one time of a trajectory, or mix all of them; each head is many fits of itself.

Legend: F fits, B images of a batch, T times, D features of a representation, K outputs (classes, or binary attributes),
M answers, H attention heads, W width.

Every head is a module `Head(dimension, outputs, times, fits=1, **sizes)` whose parameters hold F fits in their first
dimension, so that one batched product trains all of them and none knows of another. Its contract is

    forward(z [F, B, T, D], hidden=None [T], hide_cls=False) -> (logits [F, M, B, K], attention [F, B, H, T] | None)

M = 1 answer, but for soft votes, which give one for each time they see: every answer is trained by itself, and the
answers' probabilities are averaged when the head is asked. `hidden` marks times that the head must not see: whatever
they hold, NaN included, the logits are the same bit for bit. `hide_cls` takes the read-out token's own key away from its
attention, where there is one. `attention` is a distribution over the times, exactly 0 at hidden ones and all 0 where
every time is hidden: of the transformer, the read-out token's softmax weights in the last application, renormalised
without the share that it pays to itself; of learned weights, the weights. All fits of a head begin with the same
parameters. The dtype of z and of the parameters is that of the products.

| name in HEADS | sees | how it mixes |
|---|---|---|
| linear, mlp | one time | not at all |
| concat-*, mean-* | all times | features side by side; averaged |
| weights-* | all times | features averaged with learned convex weights, one set for all images |
| vote-* | all times | a linear or mlp classifier at each, probabilities averaged |
| gru | all times | a recurrence from t = 0 to t = 1 |
| transformer | all times | attention |
| transformer-one | one time | not at all: the same capacity without mixing |

`*` is the read-out, linear or mlp. Structures, widths and rates are those of From Points to Functions, section 4.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional

WORD = 4  # random numbers of 16 bits in one of 64


def uniform(fits: int, *shape: int, bound: float) -> nn.Parameter:
    """A parameter [F, *shape], uniform within +- bound and the same for every fit."""
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound).expand(fits, *shape).clone())


class Dense(nn.Module):
    """x [F, N, I] -> [F, N, O], an affine map a fit; it begins as torch.nn.Linear does."""

    def __init__(self, fits: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = uniform(fits, inputs, outputs, bound=inputs**-0.5)
        self.bias = uniform(fits, 1, outputs, bound=inputs**-0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The map of each fit."""
        return torch.bmm(x, self.weight).add_(self.bias)


class Norm(nn.Module):
    """x [F, N, W] normalised over W, then scaled and shifted by each fit."""

    def __init__(self, fits: int, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(fits, 1, width))
        self.shift = nn.Parameter(torch.zeros(fits, 1, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The normalised x."""
        return torch.addcmul(self.shift, functional.layer_norm(x, x.shape[-1:]), self.scale)


class Dropout(nn.Module):
    """Dropout with one mask a seed, the same for all of its fits: they differ in nothing but their learning rate.

    The fits are taken as [rates, seeds, views]; `generators` has one entry a seed. Random words are drawn rather than
    Bernoulli numbers, a tenth of the time on a CPU; the rate is rounded to 1 / 65,536.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.rates, self.generators = 1, [None]

    def share(self, rates: int, generators: Sequence[torch.Generator]) -> None:
        """Draw from these generators, one a seed, for fits of so many learning rates."""
        self.rates, self.generators = rates, list(generators)

    @property
    def active(self) -> bool:
        """Whether anything is dropped."""
        return self.training and self.rate > 0

    def mask(self, x: torch.Tensor, *shape: int) -> torch.Tensor:
        """Factors [seeds, 1, *shape] in the dtype of x: 0 with the probability `rate`, else 1 / (1 - rate)."""
        count = math.prod(shape)
        words = torch.empty(len(self.generators), -(-count // WORD), dtype=torch.int64, device=x.device)
        for row, generator in zip(words, self.generators, strict=True):
            row.random_(-(2**63), None, generator=generator)
        kept = words.view(torch.int16)[:, :count] >= round(self.rate * 2**16) - 2**15
        return kept.to(x.dtype).mul_(1 / (1 - self.rate)).reshape(-1, 1, *shape)

    def spread(self, x: torch.Tensor) -> torch.Tensor:
        """[F, ...] -> [rates, seeds, views, ...], to be multiplied by a mask."""
        return x.unflatten(0, (self.rates, len(self.generators), -1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [F, ...] with its entries dropped, in training."""
        return (self.spread(x) * self.mask(x, *x.shape[1:])).flatten(0, 2) if self.active else x


class MLP(nn.Module):
    """One hidden layer: I -> W -> ReLU -> dropout -> O, of each fit."""

    def __init__(self, fits: int, inputs: int, outputs: int, width: int = 512, dropout: float = 0.25) -> None:
        super().__init__()
        self.inner = Dense(fits, inputs, width)
        self.dropout = Dropout(dropout)
        self.readout = Dense(fits, width, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[F, B, I] -> [F, B, O]."""
        return self.readout(self.dropout(self.inner(x).relu_()))


class Concatenation(nn.Module):
    """Features of all times side by side; of a single time, its features."""

    def __init__(self, fits: int, dimension: int, times: int) -> None:
        super().__init__()
        self.answers, self.features = 1, dimension * times

    def forward(self, z: torch.Tensor, seen: torch.Tensor) -> tuple[torch.Tensor, None]:
        """[F, B, T, D] -> [F, B, T D]."""
        return z.flatten(2), None


class Mean(nn.Module):
    """The mean over the times that are seen."""

    def __init__(self, fits: int, dimension: int, times: int) -> None:
        super().__init__()
        self.answers, self.features = 1, dimension

    def forward(self, z: torch.Tensor, seen: torch.Tensor) -> tuple[torch.Tensor, None]:
        """[F, B, T, D] -> [F, B, D]; 0 where no time is seen."""
        return z.sum(2) / seen.sum().clamp_min(1), None


class Weights(nn.Module):
    """The mean over times with learned convex weights, a softmax over the times that are seen; uniform to begin with."""

    def __init__(self, fits: int, dimension: int, times: int) -> None:
        super().__init__()
        self.answers, self.features = 1, dimension
        self.preference = nn.Parameter(torch.zeros(fits, times))

    def forward(self, z: torch.Tensor, seen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[F, B, T, D] -> [F, B, D] and the weights [F, B, 1, T]; 0 where no time is seen."""
        weights = self.preference.masked_fill(~seen, -torch.inf).softmax(-1).where(seen, 0.0)  # [F, T]
        pooled = torch.einsum("fbtd,ft->fbd", z, weights)
        return pooled, weights[:, None, None].expand(-1, z.shape[1], 1, -1)


class Vote(nn.Module):
    """Every time by itself, read out by a classifier of its own."""

    def __init__(self, fits: int, dimension: int, times: int) -> None:
        super().__init__()
        self.answers, self.features = times, dimension

    def forward(self, z: torch.Tensor, seen: torch.Tensor) -> tuple[torch.Tensor, None]:
        """[F, B, T, D] -> [F T, B, D]."""
        return z.transpose(1, 2).flatten(0, 1), None


class Pooled(nn.Module):
    """A pool over the times and a read-out of what it gives."""

    def __init__(
        self, pool: Callable[..., nn.Module], readout: Callable[..., nn.Module],
        dimension: int, outputs: int, times: int, fits: int = 1, **sizes: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        self.pool = pool(fits, dimension, times)
        self.readout = readout(fits * self.pool.answers, self.pool.features, outputs, **sizes)

    def forward(
        self, z: torch.Tensor, hidden: torch.Tensor | None = None, hide_cls: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Logits [F, M, B, K] and the weights of the times, if the pool has any."""
        seen = visible(z, hidden)
        pooled, attention = self.pool(z if hidden is None else z.masked_fill(hidden[:, None], 0.0), seen)
        logits = self.readout(pooled).unflatten(0, (-1, self.pool.answers))
        if self.pool.answers > 1 and hidden is not None:
            if bool(hidden.all()):
                raise ValueError("every time is hidden from a vote of the times: leave at least one")
            logits = logits[:, seen]
        return logits, attention


class GRU(nn.Module):
    """A gated recurrent cell of width W that runs over the times in order, with dropout on its state after every one.

    With s the logistic function and . the product by entries: r, u = s(W_i z + W_h h), n = tanh(W_i z + r . W_h h),
    h <- n + u . (h - n), as torch.nn.GRUCell. Gates stand as n, r, u in `inputs`, as r, u, n in `state`.
    """

    def __init__(
        self, dimension: int, outputs: int, times: int, fits: int = 1, width: int = 256, dropout: float = 0.25
    ) -> None:
        super().__init__()
        self.width = width
        self.inputs = Dense(fits, dimension, 3 * width)
        self.state = Dense(fits, width, 3 * width)
        self.readout = Dense(fits, width, outputs)
        self.dropout = Dropout(dropout)
        for parameter in self.inputs.parameters():
            parameter.data.mul_((dimension / width) ** 0.5)  # GRUCell: +- 1 / sqrt(W) for all

    def forward(
        self, z: torch.Tensor, hidden: torch.Tensor | None = None, hide_cls: bool = False
    ) -> tuple[torch.Tensor, None]:
        """Logits [F, 1, B, K]; there is no attention."""
        if hidden is not None:
            z = z[:, :, visible(z, hidden)]
        count, times = z.shape[1:3]
        bias = self.inputs.bias + functional.pad(self.state.bias[..., : 2 * self.width], (self.width, 0))
        gates = torch.bmm(z.transpose(1, 2).flatten(1, 2), self.inputs.weight).add_(bias)
        gates = gates.unflatten(1, (times, count))  # [F, T, B, 3 W]
        mask = self.dropout.mask(z, times, count, self.width) if self.dropout.active and times else None
        bias = self.state.bias[..., 2 * self.width :]
        state = Recurrence.apply(gates, self.state.weight, bias, self.dropout, mask)
        return self.readout(state)[:, None], None


class Recurrence(torch.autograd.Function):
    """The GRU over gates [F, T, B, 3 W] of the inputs: the last state [F, B, W], and gradients by one long product.

    The gates hold every bias but that of the state's part of n [F, 1, W].

    torch.nn.GRU has no batch of weights. Written out, the gradient of the weights is one product over all times and the
    pointwise work takes a third of the passes over memory.
    """

    @staticmethod
    def forward(
        ctx: Any, gates: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, dropout: Dropout,
        mask: torch.Tensor | None,
    ) -> torch.Tensor:  # fmt: skip
        """Run over the times; `mask` [seeds, 1, T, B, W] multiplies the state after each."""
        fits, times, count, width = *gates.shape[:3], weight.shape[1]
        states = gates.new_zeros(fits, times + 1, count, width)
        kept = gates.new_empty(fits, times, count, 4 * width)  # r, u, the new state's part of the gate n, n
        for time in range(times):
            r, u, part, n = (kept[:, time, :, index * width : (index + 1) * width] for index in range(4))
            asked = torch.bmm(states[:, time], weight)  # [F, B, 3 W]
            both = kept[:, time, :, : 2 * width]
            torch.add(gates[:, time, :, width:], asked[..., : 2 * width], out=both).sigmoid_()
            torch.add(asked[..., 2 * width :], bias, out=part)
            torch.addcmul(gates[:, time, :, :width], r, part, out=n)
            hyperbolic_tangent_(n)
            torch.lerp(n, states[:, time], u, out=states[:, time + 1])
            if mask is not None:
                dropout.spread(states[:, time + 1]).mul_(mask[:, :, time])
        ctx.save_for_backward(weight, states, kept)
        ctx.dropout, ctx.mask = dropout, mask
        return states[:, times].clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of gates, weight and bias from that of the last state."""
        weight, states, kept = ctx.saved_tensors
        width, times, one = weight.shape[1], kept.shape[1], kept.new_ones(())
        slopes = torch.empty_like(kept)  # of n, r, u for the inputs; of r, u, and of n's part, for the state
        for time in reversed(range(times)):
            r, u, part, n = (kept[:, time, :, index * width : (index + 1) * width] for index in range(4))
            of_n, of_r, of_u, of_part = (slopes[:, time, :, index * width : (index + 1) * width] for index in range(4))
            if ctx.mask is not None:
                gradient = (ctx.dropout.spread(gradient) * ctx.mask[:, :, time]).flatten(0, 2)
            through = gradient * u
            torch.mul(gradient - through, torch.addcmul(one, n, n, value=-1), out=of_n)
            torch.ops.aten.sigmoid_backward.grad_input(gradient * (states[:, time] - n), u, grad_input=of_u)
            torch.ops.aten.sigmoid_backward.grad_input(of_n * part, r, grad_input=of_r)
            torch.mul(of_n, r, out=of_part)
            if time:  # the first state is 0 and needs no gradient
                gradient = through.add_(torch.bmm(slopes[:, time, :, width:], weight.mT))
        asked = slopes[..., width:].flatten(1, 2)  # [F, T B, 3 W]
        of_weight = torch.bmm(states[:, :-1].flatten(1, 2).mT, asked)
        return slopes[..., : 3 * width], of_weight, asked[..., 2 * width :].sum(1, keepdim=True), None, None


def hyperbolic_tangent_(x: torch.Tensor) -> torch.Tensor:
    """tanh in place; by the logistic function in bfloat16 on a CPU, where torch's own takes three times as long."""
    if x.dtype == torch.bfloat16 and x.device.type == "cpu":
        return x.mul_(2).sigmoid_().mul_(2).sub_(1)
    return x.tanh_()


class Transformer(nn.Module):
    """One post-norm transformer layer applied several times with shared weights to [times, CLS]; CLS is read out.

    Each time is embedded by a map D -> W, dropout and a sinusoidal encoding of its place in the sequence; the learned
    CLS token comes last and has no place. As in the paper's code, and unlike torch.nn.TransformerEncoderLayer, dropout
    follows the embedding and both maps of the feed-forward part, and nothing of the attention is dropped. In the last
    application only the CLS query is computed.
    """

    def __init__(
        self, dimension: int, outputs: int, times: int, fits: int = 1, width: int = 256, feedforward: int = 512,
        heads: int = 4, applications: int = 2, dropout: float = 0.25,
    ) -> None:  # fmt: skip
        super().__init__()
        if width % heads or width % 2:
            raise ValueError(f"transformer width {width}: expected an even multiple of its {heads} heads")
        self.heads, self.applications = heads, applications
        self.embed = Dense(fits, dimension, width)
        self.cls = uniform(fits, 1, 1, width, bound=math.sqrt(3 / width))
        self.project = Dense(fits, width, 3 * width)  # queries, keys, values
        self.merge = Dense(fits, width, width)
        self.inner = Dense(fits, width, feedforward)
        self.outer = Dense(fits, feedforward, width)
        self.norm_attention = Norm(fits, width)
        self.norm_feedforward = Norm(fits, width)
        self.readout = Dense(fits, width, outputs)
        self.dropout = Dropout(dropout)
        self.register_buffer("places", sinusoids(times, width), persistent=False)  # [T, W]

    def forward(
        self, z: torch.Tensor, hidden: torch.Tensor | None = None, hide_cls: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [F, 1, B, K] and the attention of CLS over the times [F, B, H, T]."""
        fits, count, times, _ = z.shape
        seen = visible(z, hidden)
        places = self.places.to(z.dtype)
        if hidden is not None:
            z, places = z[:, :, seen], places[seen]
        if hide_cls and not len(places):
            raise ValueError("every time and the CLS token are hidden: leave at least one of them to attend to")
        embedded = self.embed(z.flatten(1, 2)).unflatten(1, (count, -1))
        tokens = self.dropout(embedded) + places  # [F, B, T, W]
        tokens = torch.cat([tokens, self.cls.expand(-1, count, -1, -1)], dim=2)  # [F, B, T + 1, W]
        for _ in range(self.applications - 1):
            tokens = self._layer(tokens, hide_cls)
        last, weights = self._last(tokens, hide_cls)  # [F, B, W], [F, B, H, keys]
        paid = weights[..., : len(places)].detach().float()
        paid = paid / paid.sum(-1, keepdim=True).clamp_min(torch.finfo(paid.dtype).tiny)
        if hidden is not None:
            paid = paid.new_zeros(fits, count, self.heads, times).masked_scatter_(seen, paid)
        return self.readout(last)[:, None], paid

    def _layer(self, tokens: torch.Tensor, hide_cls: bool) -> torch.Tensor:
        """The layer for all tokens [F, B, Q, W]."""
        fits, count, asking, width = tokens.shape
        flat = tokens.flatten(1, 2)  # [F, B Q, W]
        parts = self.project(flat).view(fits * count, asking, 3, self.heads, -1)
        queries, keys, values = parts.permute(2, 0, 3, 1, 4).flatten(1, 2)  # [F B H, Q, W / H]
        if hide_cls:
            keys, values = keys[:, :-1], values[:, :-1]
        scale = keys.shape[-1] ** -0.5
        weights = torch.bmm(queries, keys.mT).mul_(scale).softmax(-1)  # [F B H, Q, keys]
        attended = torch.bmm(weights, values).view(fits, count, self.heads, asking, -1)
        return self._after(flat, attended.transpose(2, 3).reshape(fits, -1, width)).view(tokens.shape)

    def _last(self, tokens: torch.Tensor, hide_cls: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """The layer for the CLS token alone: [F, B, W] and its weights [F, B, H, keys].

        One query needs no key or value of any token: (W_k x)^T q = x^T (W_k^T q), the sum of a_i W_v x_i is W_v times
        the sum of a_i x_i where the a_i sum to 1, and the bias of the keys moves all scores alike. This saves most of the
        layer's products.
        """
        fits, _, _, width = tokens.shape
        asking, seen = tokens[:, :, -1], tokens[:, :, :-1] if hide_cls else tokens
        seen = seen.flatten(0, 1)  # [F B, keys, W]
        of_query, of_key, of_value = self.project.weight.split(width, dim=-1)
        query_bias, _, value_bias = self.project.bias.split(width, dim=-1)
        query = self._by_head(torch.bmm(asking, of_query) + query_bias)  # [F H, B, W / H]
        query = torch.bmm(query, self._by_head(of_key).mT)  # [F H, B, W]
        query = query.unflatten(0, (fits, -1)).transpose(1, 2).flatten(0, 1)  # [F B, H, W]
        scores = torch.bmm(query, seen.mT) * (width // self.heads) ** -0.5
        weights = scores.softmax(-1)
        mixed = torch.bmm(weights, seen).unflatten(0, (fits, -1)).transpose(1, 2).flatten(0, 1)  # [F H, B, W]
        attended = torch.bmm(mixed, self._by_head(of_value)).unflatten(0, (fits, -1))  # [F, H, B, W / H]
        attended = attended.transpose(1, 2).flatten(2) + value_bias
        return self._after(asking, attended), weights.unflatten(0, (fits, -1))

    def _after(self, asking: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """What follows attention, for tokens [F, N, W]."""
        after = self.norm_attention(asking + self.merge(attended))
        grown = self.outer(self.dropout(self.inner(after).relu_()))
        return self.norm_feedforward(after + self.dropout(grown))

    def _by_head(self, x: torch.Tensor) -> torch.Tensor:
        """[F, N, W] -> [F H, N, W / H]."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2).flatten(0, 1)


def visible(z: torch.Tensor, hidden: torch.Tensor | None) -> torch.Tensor:
    """bool [T]: which of the times of z [F, B, T, D] are not hidden."""
    if hidden is None:
        return torch.ones(z.shape[2], dtype=torch.bool, device=z.device)
    return ~hidden.to(z.device)


def sinusoids(times: int, width: int) -> torch.Tensor:
    """Encoding [T, W] of places 0..T-1: sine and cosine at W/2 wavelengths from 2 pi to 20,000 pi (Attention Is All You Need, 3.5)."""
    place = torch.arange(times)[:, None]
    angle = place * torch.exp(torch.arange(0, width, 2) * (-math.log(10_000.0) / width))  # [T, W / 2]
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)


@dataclass(frozen=True)
class Kind:
    """A line of HEADS: how a head is made, whether it mixes times, and how it is trained.

    `options` is the name that its sizes go by in `classify.py` (mlp: --mlp-width; None: it has no sizes), `clip` the norm
    to which its gradient is clipped (None: not). A `control` holds the capacity of a head that mixes against one time.
    """

    make: Callable[..., nn.Module]
    mixes: bool
    options: str | None = None
    clip: float | None = None
    control: bool = False
    fixed: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, dimension: int, outputs: int, times: int, fits: int = 1, **sizes: Any) -> nn.Module:
        """The head for z [F, B, T, D]."""
        return self.make(dimension=dimension, outputs=outputs, times=times, fits=fits, **self.fixed, **sizes)


def pooled(pool: Callable[..., nn.Module], readout: Callable[..., nn.Module], mixes: bool = True) -> Kind:
    """A head that pools the times and reads out what that gives."""
    return Kind(Pooled, mixes, "mlp" if readout is MLP else None, fixed={"pool": pool, "readout": readout})


HEADS = {
    "linear": pooled(Concatenation, Dense, mixes=False),
    "mlp": pooled(Concatenation, MLP, mixes=False),
    "concat-linear": pooled(Concatenation, Dense),
    "concat-mlp": pooled(Concatenation, MLP),
    "mean-linear": pooled(Mean, Dense),
    "mean-mlp": pooled(Mean, MLP),
    "weights-linear": pooled(Weights, Dense),
    "weights-mlp": pooled(Weights, MLP),
    "vote-linear": pooled(Vote, Dense),
    "vote-mlp": pooled(Vote, MLP),
    "gru": Kind(GRU, True, "gru", clip=1.0),
    "transformer": Kind(Transformer, True, "transformer", clip=1.0),
    "transformer-one": Kind(Transformer, False, "transformer", clip=1.0, control=True),
}
