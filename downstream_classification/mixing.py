"""Heads: classifiers that see one time of a trajectory, or mix all of them.

Legend: B images of a batch, T times, D features of a representation, K classes, H attention heads, W width.

Every head is a module `Head(dimension, classes, times, **sizes)` with one contract,

    forward(z [B, T, D], hidden=None [T], hide_cls=False) -> (logits [B, K], attention [B, H, T] | None)

`hidden` marks times that the head must not see: whatever they hold, NaN included, the logits are the same bit for bit.
`hide_cls` takes the read-out token's own key away from its attention. `attention` is the read-out's distribution over
the times in the last application: softmax weights of the times, renormalised to sum to 1 (the share that the read-out
token pays to itself is taken out), exactly 0 at hidden times and all 0 where every time is hidden.

A head with `mixes = False` sees a single time (T = 1). `clip` is the gradient norm that its training is clipped to
(None: not clipped). The structures, widths and rates are those of From Points to Functions, section 4.
"""

import math

import torch
from torch import nn
from torch.nn import functional


def veil(z: torch.Tensor, hidden: torch.Tensor | None) -> torch.Tensor:
    """z [B, T, D] with zeros in place of hidden times."""
    return z if hidden is None else z.masked_fill(hidden[:, None], 0.0)


class Linear(nn.Module):
    """Logits linear in the representation at one time (a linear probe)."""

    mixes, clip = False, None

    def __init__(self, dimension: int, classes: int, times: int = 1) -> None:
        super().__init__()
        self.readout = nn.Linear(dimension * times, classes)

    def forward(
        self, z: torch.Tensor, hidden: torch.Tensor | None = None, hide_cls: bool = False
    ) -> tuple[torch.Tensor, None]:
        """Logits [B, K]; there is no attention."""
        return self.readout(veil(z, hidden).flatten(1)), None


class MLP(nn.Module):
    """One hidden layer on the representation at one time: D -> W -> ReLU -> dropout -> K."""

    mixes, clip = False, None

    def __init__(self, dimension: int, classes: int, times: int = 1, width: int = 512, dropout: float = 0.25) -> None:
        super().__init__()
        self.inner = nn.Linear(dimension * times, width)
        self.dropout = nn.Dropout(dropout)
        self.readout = nn.Linear(width, classes)

    def forward(
        self, z: torch.Tensor, hidden: torch.Tensor | None = None, hide_cls: bool = False
    ) -> tuple[torch.Tensor, None]:
        """Logits [B, K]; there is no attention."""
        inner = self.inner(veil(z, hidden).flatten(1)).relu()  # [B, W]
        return self.readout(self.dropout(inner)), None


class Transformer(nn.Module):
    """One post-norm transformer layer applied several times with shared weights to [times, CLS]; CLS is read out.

    Each time is embedded by Linear(D -> W), dropout and a sinusoidal encoding of its place in the sequence; the learned
    CLS token comes last and has no place. In the last application only the CLS query is computed.
    """

    mixes, clip = True, 1.0

    def __init__(
        self, dimension: int, classes: int, times: int, width: int = 256, feedforward: int = 512,
        heads: int = 4, applications: int = 2, dropout: float = 0.25,
    ) -> None:  # fmt: skip
        super().__init__()
        if width % heads or width % 2:
            raise ValueError(f"transformer width {width}: expected an even multiple of its {heads} heads")
        self.heads, self.applications = heads, applications
        self.embed = nn.Linear(dimension, width)
        self.cls = nn.Parameter(torch.randn(width) / math.sqrt(width))
        self.project = nn.Linear(width, 3 * width)  # queries, keys, values
        self.merge = nn.Linear(width, width)
        self.inner = nn.Linear(width, feedforward)
        self.outer = nn.Linear(feedforward, width)
        self.norm_attention = nn.LayerNorm(width)
        self.norm_feedforward = nn.LayerNorm(width)
        self.readout = nn.Linear(width, classes)
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("places", sinusoids(times, width), persistent=False)  # [T, W]
        nn.init.xavier_uniform_(self.project.weight)
        nn.init.zeros_(self.project.bias)
        nn.init.zeros_(self.merge.bias)

    def forward(
        self, z: torch.Tensor, hidden: torch.Tensor | None = None, hide_cls: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [B, K] and the attention of CLS over the times [B, H, T]."""
        count, times, _ = z.shape
        tokens = self.dropout(self.embed(veil(z, hidden))) + self.places  # [B, T, W]
        tokens = torch.cat([tokens, self.cls.expand(count, 1, -1)], dim=1)  # [B, T + 1, W]
        barred = self._barred(times, hidden, hide_cls, z.device)
        for _ in range(self.applications - 1):
            tokens, _ = self._layer(tokens, tokens, barred)
        last, weights = self._layer(tokens[:, -1:], tokens, barred)  # [B, 1, W], [B, H, 1, T + 1]
        attention = weights[:, :, 0, :-1]
        attention = attention / attention.sum(-1, keepdim=True).clamp_min(torch.finfo(attention.dtype).tiny)
        return self.readout(last[:, 0]), attention

    @staticmethod
    def _barred(times: int, hidden: torch.Tensor | None, hide_cls: bool, device: torch.device) -> torch.Tensor | None:
        """Keys [T + 1] that nobody attends to, or None."""
        if hidden is None and not hide_cls:
            return None
        barred = torch.zeros(times + 1, dtype=torch.bool, device=device)
        if hidden is not None:
            barred[:-1] = hidden
        barred[-1] = hide_cls
        if bool(barred.all()):
            raise ValueError("every time and the CLS token are hidden: leave at least one of them to attend to")
        return barred

    def _layer(
        self, asking: torch.Tensor, tokens: torch.Tensor, barred: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The layer for the tokens asking [B, Q, W], attending to all tokens [B, T + 1, W], and the weights [B, H, Q, T + 1]."""
        width = asking.shape[-1]
        if asking is tokens:
            queries, keys, values = self.project(tokens).split(width, dim=-1)
        else:
            weight, bias = self.project.weight, self.project.bias
            queries = functional.linear(asking, weight[:width], bias[:width])
            keys, values = functional.linear(tokens, weight[width:], bias[width:]).split(width, dim=-1)
        queries, keys, values = (self._by_head(part) for part in (queries, keys, values))  # [B, H, Q or T + 1, W / H]
        scores = queries @ keys.mT / math.sqrt(keys.shape[-1])
        if barred is not None:
            scores = scores.masked_fill(barred, -torch.inf)
        weights = scores.softmax(-1)
        attended = (self.dropout(weights) @ values).transpose(1, 2).flatten(2)  # [B, Q, W]
        after = self.norm_attention(asking + self.dropout(self.merge(attended)))
        grown = self.outer(self.dropout(self.inner(after).relu()))
        return self.norm_feedforward(after + self.dropout(grown)), weights

    def _by_head(self, tokens: torch.Tensor) -> torch.Tensor:
        """[B, Q, W] -> [B, H, Q, W / H]."""
        return tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def sinusoids(times: int, width: int) -> torch.Tensor:
    """Encoding [T, W] of places 0..T-1: sine and cosine at W/2 wavelengths from 2 pi to 20,000 pi (Attention Is All You Need, 3.5)."""
    place = torch.arange(times)[:, None]
    angle = place * torch.exp(torch.arange(0, width, 2) * (-math.log(10_000.0) / width))  # [T, W / 2]
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)


HEADS = {
    "linear": Linear,
    "mlp": MLP,
    "transformer": Transformer,
}
