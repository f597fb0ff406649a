"""A mixture of Gaussians in the space that its components span, where following its flow is cheap.

Let Q [D, K] be an orthonormal basis of the components' directions U_c and of their means around a common origin. Orthogonal
to Q all components look alike: no mean, variance rest_c in every direction. So the part of x out there only grows or
shrinks, by a factor that depends on its length alone, and the flow of x [D] is that of K + 1 numbers, exactly: the
coordinates in Q and that length. Where the components span nearly everything, x stays as it is.

A denoiser needs U_c^T (x - mu_c) of every component twice, for its responsibility and for its own denoiser. Here it is
found once, for all components in one product, and goes back in another; components of responsibility below `NOTHING`
are left out on the way back. Everything is in float64.

Dimensions: B batch, C components, D pixels, K coordinates, P directions of all components together.
"""

from collections.abc import Sequence

import torch

from linear_structure.gaussian import Gaussian, column, rows_of

NOTHING = 1e-12  # a responsibility that no sum of two numbers in [-1, 1] notices at the flow's tolerance
WORTH = 0.8  # coordinates as a share of D above which changing to them costs more than it saves


class Span:
    """The components of a mixture with `weights` [C], prepared for denoising many times."""

    def __init__(self, weights: torch.Tensor, components: Sequence[Gaussian]) -> None:
        directions = torch.cat([part.U for part in components], 1)
        means = torch.stack([part.mu for part in components])
        origin = weights @ means
        centres, basis = means - origin, None
        if directions.shape[1] + len(centres) < WORTH * len(origin):
            basis = torch.linalg.qr(torch.cat([directions, centres.T], 1))[0]
            silent = basis.new_zeros(1, directions.shape[1])
            directions = torch.cat([basis.T @ directions, silent])
            centres = torch.cat([centres @ basis, silent.new_zeros(len(centres), 1)], 1)
        self.ranks = [part.rank for part in components]
        owner = torch.arange(len(components)).repeat_interleave(torch.tensor(self.ranks))
        rest = torch.tensor([part.rest for part in components], dtype=torch.float64)
        self._on_cpu = {
            "origin": origin, "basis": basis, "directions": directions, "centres": centres, "owner": owner, "rest": rest,
            "offsets": (centres[owner] * directions.T).sum(1), "sizes": centres.square().sum(1),
            "lambdas": torch.cat([part.lambdas for part in components]), "log_weights": weights.log(),
            "belongs": torch.nn.functional.one_hot(owner, len(components)).double(),
            "left": len(origin) - torch.tensor(self.ranks, dtype=torch.float64),
        }  # fmt: skip
        self.held: dict[str, torch.Tensor] = {}

    def enter(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Coordinates of images [B, ...] and the directions [B, D] of what lies outside the span (None: nothing)."""
        self.held = {name: None if held is None else held.to(x.device) for name, held in self._on_cpu.items()}
        apart = rows_of(x, len(self.held["origin"])).double() - self.held["origin"]
        if self.held["basis"] is None:
            return apart, None
        inside = apart @ self.held["basis"]
        outside = apart - inside @ self.held["basis"].T
        length = outside.norm(dim=1, keepdim=True)
        return torch.cat([inside, length], 1), outside / length.clamp(min=1e-300)

    def leave(self, y: torch.Tensor, outside: torch.Tensor | None) -> torch.Tensor:
        """The images [B, D] with these coordinates."""
        if outside is None:
            return y + self.held["origin"]
        return self.held["origin"] + y[:, :-1] @ self.held["basis"].T + y[:, -1:] * outside

    def denoise(self, y: torch.Tensor, level: torch.Tensor | float) -> torch.Tensor:
        """E[x0 | x] in coordinates [B, K + 1], at levels above 0."""
        held, noise = self.held, column(level).to(y).square().expand(len(y), 1)
        along = y @ held["directions"] - held["offsets"]  # [B, P]
        inside, outside = held["lambdas"] + noise, held["rest"] + noise  # [B, P], [B, C]
        shares = self._log_joint(y, along, inside, outside).softmax(1)
        kept = held["rest"] / outside
        found = (kept * shares).sum(1, keepdim=True) * y + (shares - kept * shares) @ held["centres"]
        torch.div(held["lambdas"], inside, out=inside)
        parts = zip(inside.split(self.ranks, 1), along.split(self.ranks, 1), kept.split(1, 1), strict=True)
        for part, (factor, own, outer) in zip(shares.split(1, 1), parts, strict=True):
            own.mul_(factor.sub_(outer).mul_(part))
        return self._add_directions(found, along, shares)

    def _log_joint(
        self, y: torch.Tensor, along: torch.Tensor, inside: torch.Tensor, outside: torch.Tensor
    ) -> torch.Tensor:
        """ln of weight times density of each component [B, C], but for a constant."""
        held, squares = self.held, along.square()
        distances = y.square().sum(1, keepdim=True) - 2 * y @ held["centres"].T + held["sizes"]
        across = (distances - squares @ held["belongs"]).clamp(min=0) * (held["left"] > 0)
        within = squares.div_(inside).add_(inside.log()) @ held["belongs"]
        return held["log_weights"] - (within + held["left"] * outside.log() + across / outside) / 2

    def _add_directions(self, found: torch.Tensor, along: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
        """`found` plus the directions by their coordinates [B, P]: at once, or where few count, component by component."""
        directions, counts = self.held["directions"], shares > NOTHING
        if 2 * int(counts.sum()) > counts.numel():
            return found.addmm_(along, directions.T)
        parts = zip(along.split(self.ranks, 1), directions.split(self.ranks, 1), counts.unbind(1), strict=True)
        for part, own, here in parts:
            rows = here.nonzero()[:, 0]
            if len(rows):
                found.index_add_(0, rows, part[rows] @ own.T)
        return found
