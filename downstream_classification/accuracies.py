"""Scores: what the cells of one setting's runs come to, one head on one view of one source at a time.

Validation alone chooses. The learning rate of a score is, in each run, the one of the highest validation accuracy averaged
over the head seeds, the first of equals (From Points to Functions, section 4); the epoch is each fit's own. Among scores
`best` takes the highest validation accuracy averaged over runs and seeds: a time, a block, a granularity.

Cells made before every learning rate's hits were kept hold those of the rate that their own seed's validation chose, and
are read with it.

Legend: E runs (encoders), S head seeds, N test images.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_model import results

REMEDY = "run `python downstream_classification/classify.py RUN/trajectories/encoder` first"
CELL = {  # as classify.py writes it and `arrays.expect` takes it
    "key": {"source": str, "attribute": str, "head": str, "times": (float, str), "seed": int, "labels?": int,
            "joint?": str, "hidden?": str, "kept?": float, "cls?": str},
    "value": {"validation": float, "test": float, "count": int, "correct": str,
              "trials?": {...: {"validation": float, "correct?": str}}},
    "protocol": {"chance": float, "majority": float, "classes": int, "dimension": int, "test_images": int},
}  # fmt: skip
MUST_AGREE = ("test_images", "test_labels", "standardise", "validation_fraction")  # or a comparison is none
MUST_AGREE_IF_TOLD = ("train_images",)  # which cells of earlier versions do not tell
OF_ONE_HEAD = ("learning_rates", "epochs", "batch", "sizes", "loss", "dimension")  # at all its times and in all runs
FAMILIES = {"encoder": "trained encoder", "untrained": "untrained encoder", "pixels": "pixels", "pca": "PCA"}
BLOCK = "block-"  # sources of this prefix are one family, whose block validation chooses


@dataclass(frozen=True)
class Score:
    """One head on one view of one source, in the runs (by their number) and for the head seeds that have it.

    `labels`: how many labelled images it had; None for all. `validation` is the mean over runs and seeds, `hits` [E, S, N].
    """

    source: str
    attribute: str
    method: str
    times: float | str
    labels: int | None
    runs: tuple[int, ...]
    seeds: tuple[int, ...]
    validation: float
    hits: np.ndarray
    protocol: Mapping[str, Any]

    @property
    def tests(self) -> np.ndarray:
        """Test accuracies [E, S]."""
        return self.hits.mean(-1)

    @property
    def test(self) -> float:
        """Mean test accuracy over runs and seeds."""
        return float(self.tests.mean())

    @property
    def deviation(self) -> float | None:
        """Standard deviation over encoders of the mean over head seeds; of one encoder, over head seeds; None for one fit."""
        values = self.tests.mean(1) if len(self.runs) > 1 else self.tests[0]
        return float(values.std(ddof=1)) if len(values) > 1 else None

    @property
    def mixes(self) -> bool:
        """Whether the head saw several times."""
        return isinstance(self.times, str)

    @property
    def granularity(self) -> int:
        """The granularity k of a head that mixes: it saw the times i/k."""
        return int(str(self.times).removeprefix("all"))

    @property
    def family(self) -> str:
        """The source, or `blocks` for any block of a score network."""
        return "blocks" if self.source.startswith(BLOCK) else self.source


def method_of(key: Mapping[str, Any]) -> str:
    """The head, and what was hidden from it."""
    parts = []
    if "hidden" in key:
        parts.append(f"t = {key['hidden'].replace('+', ', ')} hidden")
    if "kept" in key:
        parts.append(f"t = {key['kept']:g} alone")
    if "cls" in key:
        parts.append(f"CLS {key['cls']}")
    return key["head"] + (f" ({'; '.join(parts)})" if parts else "")


def read(runs: Sequence[Path], joint: str | None = None, say: Callable[[str], None] = print) -> list[Score]:
    """Scores of the runs of one setting, over the seeds that all runs and times of a source, attribute and head share.

    joint: take the cells of this fit of several attributes; None for those of single attributes or, where there are none,
    of the only joint fit there is.
    """
    groups: dict[tuple, dict[Any, dict[tuple[int, int], results.Cell]]] = {}
    first: dict[str, results.Cell] = {}
    alike: dict[tuple, results.Cell] = {}
    for number, cells in enumerate(of_one_fit(runs, joint)):
        for cell in cells:
            check(cell, first.setdefault(cell.key["attribute"], cell))
            key = cell.key
            mixes = isinstance(key["times"], str)
            family = (key["source"], key["attribute"], method_of(key), key.get("labels"), mixes)
            check_head(cell, alike.setdefault(family, cell))
            groups.setdefault(family, {}).setdefault(key["times"], {})[number, key["seed"]] = cell
    scores = []
    for family, by_times in groups.items():
        scores += read_family(family, by_times, runs, say)
    return sorted(scores, key=lambda score: (score.mixes, score.granularity if score.mixes else score.times))


def of_one_fit(runs: Sequence[Path], joint: str | None) -> list[list[results.Cell]]:
    """The cells of each run, of single attributes or of one joint fit."""
    cells = [results.read_cells(run / "classify", REMEDY, CELL) for run in runs]
    there = sorted({cell.key.get("joint", "") for members in cells for cell in members})
    if joint is None and len(there) > 1 and there[0] != "":
        raise ValueError(f"{runs[0]} holds several joint fits: pass --joint with one of {', '.join(there)}")
    if joint is not None and joint not in there:
        raise ValueError(f"no joint fit {joint!r} in {runs[0]}; there are: {', '.join(filter(None, there)) or 'none'}")
    chosen = there[0] if joint is None else joint
    return [[cell for cell in members if cell.key.get("joint", "") == chosen] for members in cells]


def check(cell: results.Cell, other: results.Cell) -> None:
    """Refuse to compare cells of one attribute that were scored on other images or prepared in another way."""
    differing = [name for name in MUST_AGREE if cell.protocol.get(name) != other.protocol.get(name)]
    refuse(cell, other, differing + differing_if_told(cell, other, MUST_AGREE_IF_TOLD))


def check_head(cell: results.Cell, other: results.Cell) -> None:
    """Refuse to average, or to choose among, fits of one head on one source that were made under two protocols."""
    refuse(cell, other, differing_if_told(cell, other, OF_ONE_HEAD))


def differing_if_told(cell: results.Cell, other: results.Cell, names: Sequence[str]) -> list[str]:
    """Those of the fields of the protocol that both cells have and that differ."""
    ours, theirs = dict(cell.protocol), dict(other.protocol)
    return [name for name in names if name in ours and name in theirs and ours[name] != theirs[name]]


def refuse(cell: results.Cell, other: results.Cell, differing: Sequence[str]) -> None:
    """Say what two cells differ in, if there is anything."""
    if differing:
        raise ValueError(
            f"{cell.path} and {other.path} differ in {', '.join(differing)} and cannot be compared: "
            "remove one of the two classify/ folders and classify again"
        )


def read_family(
    family: tuple, by_times: Mapping[Any, Mapping[tuple[int, int], results.Cell]], runs: Sequence[Path],
    say: Callable[[str], None],
) -> list[Score]:  # fmt: skip
    """The scores of one source, attribute and head at all its times, over what these share."""
    source, attribute, method, labels, mixes = family
    what = f"{source}, {attribute}, {method}" + (f", {labels} labels" if labels else "")
    having = sorted({number for there in by_times.values() for number, _ in there})
    found = {
        times: [{seed for run, seed in there if run == number} for number in having]
        for times, there in by_times.items()
    }
    # Granularities are views of their own: the paper's grid may be half done. Times of one grid belong together.
    shared = {times: set.intersection(*seeds) for times, seeds in found.items()}
    if not mixes:
        together = set.intersection(*shared.values())
        shared = dict.fromkeys(shared, together)
    seen = set.union(*(seeds for members in found.values() for seeds in members))
    dropped = sorted(seen - set.union(*shared.values()))
    if not any(shared.values()):
        where = f"{runs[having[0]]}/classify" if len(having) == 1 else f"{len(having)} runs"
        raise ValueError(f"{where}: no seed of {what} is finished at every time: run classify.py again")
    if dropped:
        say(f"{what}: seeds {dropped} are not finished at every time and left out")
    return [score(family, times, having, sorted(shared[times]), by_times[times]) for times in by_times if shared[times]]


def score(
    family: tuple, times: float | str, runs: Sequence[int], seeds: Sequence[int],
    cells: Mapping[tuple[int, int], results.Cell],
) -> Score:  # fmt: skip
    """The score of these runs' and seeds' cells."""
    source, attribute, method, labels, _ = family
    chosen = [choose([cells[number, seed] for seed in seeds]) for number in runs]
    return Score(
        source, attribute, method, times, labels, tuple(runs), tuple(seeds),
        validation=float(np.mean([validation for validation, _ in chosen])),
        hits=np.stack([hits for _, hits in chosen]),
        protocol=cells[runs[0], seeds[0]].protocol,
    )  # fmt: skip


def choose(cells: Sequence[results.Cell]) -> tuple[float, np.ndarray]:
    """Validation accuracy and hits uint8 [S, N] at the learning rate of the best mean validation accuracy over the seeds."""
    trials = [cell.value.get("trials", {}) for cell in cells]
    rates = [rate for rate in trials[0] if all("correct" in held.get(rate, {}) for held in trials)]
    if rates:
        means = [np.mean([held[rate]["validation"] for held in trials]) for rate in rates]
        rate = rates[int(np.argmax(means))]
        return float(max(means)), np.stack(
            [unpack(held[rate]["correct"], cell) for held, cell in zip(trials, cells, strict=True)]
        )
    validation = float(np.mean([cell.value["validation"] for cell in cells]))
    return validation, np.stack([unpack(cell.value["correct"], cell) for cell in cells])


def unpack(correct: str, cell: results.Cell) -> np.ndarray:
    """Hits uint8 [N] from the hexadecimal digits of their bits; digits that are none are a ValueError."""
    try:
        bits = np.frombuffer(bytes.fromhex(correct), np.uint8)
    except ValueError as error:
        raise ValueError(f"{cell.path}: {error}: remove it and classify again") from None
    count = cell.value["count"]
    if 8 * len(bits) - count not in range(8):
        raise ValueError(
            f"{cell.path} holds hits of {8 * len(bits)} test images, expected {count}: remove it and classify again"
        )
    return np.unpackbits(bits, count=count)


def in_network_order(source: str) -> tuple[Any, ...]:
    """A key that sorts the blocks of a U-Net as images pass them: down.16x16_in, down.8x8_down, ..., middle, up.4x4_block0."""
    stage, size, part = re.fullmatch(r"(?:block-)?(down|middle|up|)[._]?(?:(\d+)x\d+_)?(.*)", source).groups()
    turn = {"down": 0, "middle": 1, "up": 2}.get(stage, 3)
    pixels = int(size or 0) * (1 if turn else -1)
    part = part.replace("attention", "block0_attention")  # which follows it
    first = ("in", "down", "up", "pyramid")
    return turn, pixels, first.index(part) if part in first else len(first), part


def of_several_times(scores: Sequence[Score]) -> list[Score]:
    """The scores without those of granularity 1, whose single time leaves nothing to mix, where a head has others."""
    more = {
        (score.source, score.attribute, score.method, score.labels)
        for score in scores
        if score.mixes and score.granularity > 1
    }
    return [
        score
        for score in scores
        if not score.mixes
        or score.granularity > 1
        or (score.source, score.attribute, score.method, score.labels) not in more
    ]


def of_one_time(scores: Iterable[Score], head: str | None) -> list[Score]:
    """The scores of this head of one time; None: of all of them."""
    return [score for score in scores if not score.mixes and head in (None, score.method)]


def best(scores: Iterable[Score]) -> Score | None:
    """The score of the highest validation accuracy, the first of equals; None where there is none."""
    return max(scores, key=lambda score: score.validation, default=None)
