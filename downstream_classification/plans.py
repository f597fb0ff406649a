"""Plans: which fits a command asks for, as groups that run at once, and the cells that they fill.

A group is one head on one target, number of labels and set of hidden times: all its learning rates, seeds and, for a head
of one time, times are fitted together (fitting.py). A cell is one (attribute, times, seed) of it, and its key says what
was asked for:

    source=S/attribute=A[/joint=NAME]/head=H/times=T[/labels=N][/hidden=T+T][/kept=T][/cls=hidden]/seed=K.json

T is a time, or `all10` for all times of granularity 10. Fields in brackets stand where they are not the default, so cells
of earlier versions are found where they were.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from diffusion_model import trajectories
from downstream_classification.mixing import HEADS
from downstream_classification.stores import Store, Target

TOGETHER = 400  # fits of a group at most: what a kill can lose
LARGEST = 4 << 30  # bytes of the representations that a group of heads of one time holds at most


@dataclass(frozen=True)
class Hiding:
    """Times that heads which mix must not see, and whether their CLS token's own key is hidden."""

    hidden: tuple[float, ...] = ()
    kept: float | None = None
    cls: bool = False

    def __bool__(self) -> bool:
        return bool(self.hidden) or self.kept is not None or self.cls

    def key(self) -> dict[str, Any]:
        """Its fields of a cell's key."""
        fields: dict[str, Any] = {}
        if self.hidden:
            fields["hidden"] = "+".join(f"{time:g}" for time in self.hidden)
        if self.kept is not None:
            fields["kept"] = self.kept
        if self.cls:
            fields["cls"] = "hidden"
        return fields

    def mask(self, times: Sequence[float]) -> torch.Tensor | None:
        """Which of these times are hidden, bool [T]; None where none is. A time that is not among them is a ValueError."""
        wanted = [*self.hidden, *([self.kept] if self.kept is not None else [])]
        for time in wanted:
            if not any(_equal(time, other) for other in times):
                there = ", ".join(f"{other:g}" for other in times)
                raise ValueError(f"time {time:g} is not among those that the head sees: {there}")
        if not wanted:
            return None
        away = [
            not _equal(time, self.kept) if self.kept is not None else any(_equal(time, other) for other in self.hidden)
            for time in times
        ]
        if all(away):
            raise ValueError("every time is hidden: leave at least one of them")
        return torch.tensor(away)


def _equal(time: float, other: float) -> bool:
    return abs(time - other) <= trajectories.TOLERANCE


@dataclass(frozen=True)
class Group:
    """Fits that run as one; `view` is None for a head of one time, else the name of the times it mixes."""

    source: str
    head: str
    target: Target
    times: tuple[float, ...]
    view: str | None
    labels: int | None
    hiding: Hiding
    seeds: tuple[int, ...]

    def key(self, attribute: str, times: float | str, seed: int) -> dict[str, Any]:
        """The key of one cell."""
        joint = {"joint": self.target.joint} if self.target.joint else {}
        labels = {"labels": self.labels} if self.labels else {}
        return {"source": self.source, "attribute": attribute, **joint, "head": self.head, "times": times, **labels,
                **self.hiding.key(), "seed": seed}  # fmt: skip

    def views(self) -> list[float | str]:
        """The times of the cells of one seed, in the order of the fits' views."""
        return [self.view] if self.view else list(self.times)

    def cells(self, seed: int) -> Iterator[tuple[int, int, dict[str, Any]]]:
        """(view, place of the attribute, key) of every cell of one seed."""
        for index, times in enumerate(self.views()):
            for place, attribute in enumerate(self.target.attributes):
                yield index, place, self.key(attribute, times, seed)

    def of_seeds(self, seeds: Sequence[int]) -> "Group":
        """The same group with these seeds alone."""
        return dataclasses.replace(self, seeds=tuple(seeds))


def single_groups(
    store: Store, head: str, target: Target, times: Sequence[float], labels: int | None, seeds: Sequence[int], rates: int
) -> Iterator[Group]:  # fmt: skip
    """Groups of a head of one time: as many times in each as may run, and be held, together."""
    size = store.train.count * store.train.dimension * 4
    together = max(1, min(TOGETHER // (rates * len(seeds)), LARGEST // size))
    for start in range(0, len(times), together):
        part = tuple(times[start : start + together])
        yield Group(store.source, head, target, part, None, labels, Hiding(), tuple(seeds))


def mixing_groups(
    store: Store, head: str, target: Target, granularities: Sequence[int], labels: int | None, hiding: Hiding,
    seeds: Sequence[int],
) -> Iterator[Group]:  # fmt: skip
    """Groups of a head that mixes, one a granularity."""
    for granularity in granularities:
        times = tuple(store.train.nearest(time) for time in trajectories.grid(granularity))
        hiding.mask(times)  # refuses what is not among them
        yield Group(store.source, head, target, times, f"all{granularity}", labels, hiding, tuple(seeds))


def means_something(head: str, hiding: Hiding) -> bool:
    """Whether hiding this makes another fit of a head: times of a head that mixes, the CLS key of attention."""
    if not HEADS[head].mixes:
        return not hiding
    return not hiding.cls or head.startswith("transformer")
