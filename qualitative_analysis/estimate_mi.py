"""Estimate the mutual information between the representations at every two times, and draw it as a map.

STORE is RUN/trajectories/SOURCE, as representations.py writes it. A critic (MINE) is trained for every pair of times and
every seed, all together; its best iterate is chosen on validation rows and its value, in nats, read off on rows that
neither saw. With `--fit-on train` (the default) the train split fits and validates and every test image is held out; with
`--fit-on test` the test split alone is cut in three (half, a fifth, the rest).

The matrix is symmetric: 11 times are 55 pairs. A time is not paired with itself, for I(z; z) of a continuous code is
infinite. A code is a function of its image, so between two times too the truth may be infinite or, with N distinct images,
ln N: the map says what critics of one size find from the same rows, and is to be read by comparison. n held-out rows
certify about ln n nats; pairs above that are listed.

The estimate is a lower bound, and its errors are over seeds and rows: neither tells how far it stays below the truth. So the
same estimator is shown normals of as many features on as many rows, whose information is known (--known, in nats; alone: none).
A pair above the largest known answer that came back, with all below it, to a fifth (or a tenth of a nat) is marked with a
circle: the truth may be far larger. A triangle marks a pair most of whose critics were at their best near the end of the
training: more --steps may find more. The order of the rows decides nothing, nor does a monotone map of a feature.

Written: RUN/mutual_information/source=S/first=T/second=T.json, source=S/known=NATS.json, matrix_S.png, matrix_S.csv and
summary_S.json. Running the command again fills what is missing. Memory holds the codes of these times once.
"""

import argparse
import itertools
import shlex
import sys
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_model import arrays, experiment, figures, results, trajectories
from diffusion_model.experiment import Above, AtLeast
from qualitative_analysis import information, known_answers

MARKS = ("beyond_ceiling", "still_rising", "beyond_known")  # why a pair may have more than its number says


def parser() -> experiment.Parser:
    """The command line; the defaults are the published protocol's, but for the held-out rows."""
    mine = information.Mine()
    options = experiment.Parser(__doc__, prog="estimate_mi.py")
    options.add_argument("store", type=Path, metavar="STORE", help="RUN/trajectories/SOURCE")
    options.add_argument(
        "--granularity", type=AtLeast(1, most=trajectories.FINEST), default=10, help="k: the times i/k for i = 0..k"
    )
    options.add_argument("--times", nargs="+", type=float, metavar="T", help="these times instead")
    options.add_argument("--fit-on", choices=["train", "test"], default="train", help="split that fits the critics")
    options.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4], metavar="K", help="of critics and batches")  # fmt: skip
    options.add_argument(
        "--width", type=AtLeast(1, most=16_384), default=mine.width, help="hidden units of a critic's two layers"
    )
    options.add_argument("--steps", type=AtLeast(1), default=mine.steps, help="training steps at most")
    options.add_argument(
        "--batch", type=AtLeast(2, "a row is paired with another"), default=mine.batch, help="rows a step"
    )
    options.add_argument("--learning-rate", type=Above(0.0), default=mine.learning_rate, help="of Adam")
    options.add_argument(
        "--check-every", type=AtLeast(1), default=mine.check_every, help="steps between looks at validation"
    )
    options.add_argument(
        "--patience", type=AtLeast(1), default=mine.patience, help="looks without improvement that end a critic"
    )
    options.add_argument(
        "--known", nargs="*", type=AtLeast(0.0), default=list(known_answers.KNOWN), metavar="NATS",
        help="known answers to estimate beside the map",
    )  # fmt: skip
    options.add_device()
    return options


@dataclass(frozen=True)
class Source:
    """One store at `times`, its splits one after another: which rows play which part, and what identifies the codes."""

    name: str
    run: Path
    times: list[float]
    splits: list[trajectories.Trajectories]
    rows: information.Rows
    checksums: dict[float, list[int]]

    @property
    def root(self) -> Path:
        """Where the results go."""
        return self.run / "mutual_information"

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Index pairs first < second."""
        return list(itertools.combinations(range(len(self.times)), 2))

    @property
    def dimension(self) -> int:
        """D."""
        return self.splits[0].dimension

    def key(self, pair: tuple[int, int]) -> dict[str, Any]:
        """The cell's key."""
        return {"source": self.name, "first": self.times[pair[0]], "second": self.times[pair[1]]}

    def codes(self, time: float) -> np.ndarray:
        """The codes [N, D] of all splits at one time, in float32; what is not finite or was altered is a ValueError."""
        z, start = np.empty((sum(split.count for split in self.splits), self.dimension), np.float32), 0
        for split in self.splits:
            for rows, block in split.blocks(time):
                z[start + rows.start : start + rows.stop] = block
            start += split.count
        return z


def main(argv: Sequence[str] | None = None) -> int:
    """Estimate the pairs that are missing, then write matrix and summary; 1 if a pair failed."""
    args = parser().parse_args(argv)
    settings = settings_of(args)
    source = open_source(args)
    device = experiment.choose_device(args.device)
    shared = protocol(args, settings, source)
    pairs = [
        Wanted(source.key(pair), shared | {"codes": [source.checksums[source.times[index]] for index in pair]}, pair)
        for pair in source.pairs
    ]
    known = [Wanted({"source": source.name, "known": nats}, shared, nats) for nats in sorted(args.known)]
    missing = [[one for one in wanted if results.finished(source.root, one.key, one.protocol) is None]
               for wanted in (pairs, known)]  # fmt: skip
    print(f"mutual information of {source.name}: {len(pairs)} pairs of times, {len(missing[0])} to do")
    codes, asked = map(source.codes, source.times), [[one.what for one in wanted] for wanted in missing]
    found = information.estimate_pairs(codes, asked[0], source.rows, settings, args.seeds, device)
    fill(source.root, missing[0], found, "mutual information", "pairs")
    at_once = max(1, len(source.times) - 1)  # no more memory than the map took
    found = known_answers.estimate(asked[1], source.dimension, source.rows, settings, args.seeds, device, at_once)
    fill(source.root, missing[1], found, "known answers", "answers")
    command = shlex.join(["python", "qualitative_analysis/estimate_mi.py", *(sys.argv[1:] if argv is None else argv)])
    return summarise(source, pairs, known, shared, command)


@dataclass(frozen=True)
class Wanted:
    """A cell that is asked for: its key, its protocol, and the pair of times or the known nats that it is of."""

    key: dict[str, Any]
    protocol: dict[str, Any]
    what: Any

    def read(self, root: Path) -> results.Cell:
        """The cell, which is there."""
        return results.read_cell(results.cell_path(root, **self.key))


def fill(root: Path, missing: list[Wanted], found: Iterable[tuple[Any, Any]], what: str, unit: str) -> None:
    """Write the missing cells, each as soon as it is estimated."""
    cells = {one.what: one for one in missing}
    for name, estimate in experiment.progress(found, what, unit, len(missing)):
        results.write_cell(root, cells[name].key, value_of(estimate), cells[name].protocol)


def settings_of(args: argparse.Namespace) -> information.Mine:
    """The critics' settings; values out of range are a UsageError that names the option."""
    if len(set(args.seeds)) < len(args.seeds):
        raise experiment.UsageError(f"--seeds {' '.join(map(str, args.seeds))}: expected each seed once")
    if len(set(args.known)) < len(args.known):
        raise experiment.UsageError(
            f"--known {' '.join(f'{nats:g}' for nats in args.known)}: expected each number once"
        )
    return information.Mine(
        width=args.width, steps=args.steps, batch=args.batch, learning_rate=args.learning_rate,
        check_every=args.check_every, patience=args.patience,
    )  # fmt: skip


def open_source(args: argparse.Namespace) -> Source:
    """The store asked for, with the rows cut into parts."""
    store = Path(args.store).absolute()
    if store.parent.name != "trajectories":
        inside = sorted(entry.name for entry in (store / "trajectories").glob("*/"))
        there = f"; its stores: {', '.join(inside)}" if inside else ""
        raise experiment.UsageError(f"{args.store} is no store: expected RUN/trajectories/SOURCE{there}")
    names = ["train", "test"] if args.fit_on == "train" else ["test"]
    splits = [trajectories.Trajectories(store / name) for name in names]
    if len(splits[-1].times) < 2:
        raise ValueError(
            f"{args.store} holds one time alone, and mutual information is that of two: give another store"
        )
    asked = trajectories.grid(args.granularity) if args.times is None else sorted(set(args.times))
    times = [splits[-1].nearest(time) for time in asked]
    if len(times) < 2:
        raise ValueError(f"mutual information needs at least two times of {args.store}, got {len(times)}")
    if len({split.dimension for split in splits}) > 1:
        told = " and ".join(f"{split.dimension} in {split.folder.name}" for split in splits)
        raise ValueError(f"{args.store} holds codes of {told}, expected one number of features: make it again")
    if args.fit_on == "test":
        rows = information.split_rows(splits[0].count)
    else:
        rows = information.split_train(splits[0].count, splits[1].count)
    checksums = {time: [split.meta["stored"][f"{time:.8f}"]["crc32"] for split in splits] for time in times}
    return Source(store.name, store.parent.parent, times, splits, rows, checksums)


def protocol(args: argparse.Namespace, settings: information.Mine, source: Source) -> dict[str, Any]:
    """Everything that decides a cell besides its key and its codes."""
    return {
        "estimator": "MINE: Donsker-Varadhan bound of normal scores, read off on held-out rows, mean over seeds",
        **asdict(settings),
        "seeds": args.seeds,
        "fit_on": args.fit_on,
        "rows": {name: len(getattr(source.rows, name)) for name in ("fit", "validation", "held_out")},
        "dimension": source.dimension,
        "ceiling": source.rows.ceiling,
        "unit": "nats",
    }


def value_of(estimate: information.Estimate) -> dict[str, Any]:
    """A cell's value; an estimate that is not finite is recorded as failed."""
    if not np.isfinite(estimate.per_seed).all():
        return {"error": "a critic diverged: pass a smaller --learning-rate"}
    return {
        "nats": estimate.nats,
        "deviation": estimate.deviation,
        "error_of_rows": estimate.error,
        "per_seed": list(estimate.per_seed),
        "steps": list(estimate.steps),
        "beyond_ceiling": estimate.beyond_ceiling,
        "still_rising": estimate.still_rising,
    }


def summarise(source: Source, pairs: list[Wanted], known: list[Wanted], shared: dict[str, Any], command: str) -> int:
    """Write the matrix as a figure with its numbers and the summary; 1 if a cell failed."""
    cells = {one.what: one.read(source.root) for one in (*pairs, *known)}
    failed = {what: cell for what, cell in cells.items() if cell.failed}
    for cell in failed.values():
        print(f"error: {cell.path}: {cell.value['error']}", file=sys.stderr)
    good = {one.what: cells[one.what].value for one in pairs if one.what not in failed}
    if not good:
        return 1
    answers = [{"truth": one.what, **cells[one.what].value} for one in known if one.what not in failed]
    reached = known_answers.vouched((one["truth"], one["nats"]) for one in answers)
    for value in good.values():
        value["beyond_known"] = bool(answers) and (reached is None or value["nats"] > reached)
    size = len(source.times)
    nats = np.full((size, size), np.nan)
    for (first, second), value in good.items():
        nats[first, second] = nats[second, first] = value["nats"]
    words = known_answers.in_words((one["truth"], one["nats"]) for one in answers)
    draw(source, nats, good, words)

    def times_of(chosen: Iterable[tuple[int, int]]) -> list[list[float]]:
        return [[source.times[first], source.times[second]] for first, second in chosen]

    content = {
        "kind": "mutual information summary",
        "source": source.name,
        "times": source.times,
        "nats": [[None if np.isnan(value) else float(value) for value in row] for row in nats],
        "largest": float(np.nanmax(nats)),
        "smallest": float(np.nanmin(nats)),
        "ceiling": source.rows.ceiling,
        **{name: times_of(pair for pair, value in good.items() if value[name]) for name in MARKS},
        "known": answers,
        "known_up_to": reached,
        "failed": times_of(one.what for one in pairs if one.what in failed),
        "diagonal": "left out: I(z; z) of a continuous code is infinite",
        "protocol": shared,
        "command": command,
    }
    path = source.root / f"summary_{source.name}.json"
    arrays.write_json(path, content)
    tell(path, content, words)
    return 1 if failed else 0


def tell(path: Path, content: dict[str, Any], answers: str) -> None:
    """The summary in words."""
    picture = path.with_name(f"matrix_{content['source']}.png")
    print(
        f"{picture}: {content['smallest']:.2f} to {content['largest']:.2f} nats, ceiling {content['ceiling']:.2f}, "
        f"{len(content['beyond_ceiling'])} pairs above it, {len(content['still_rising'])} still rising at the end"
    )
    if answers:
        reached = "none" if content["known_up_to"] is None else f"up to {content['known_up_to']:.2f}"
        print(f"known answers: {answers}; recovered {reached}, {len(content['beyond_known'])} pairs above")


def draw(source: Source, nats: np.ndarray, values: dict[tuple[int, int], dict[str, Any]], answers: str) -> None:
    """The map, empty where there is no number, with its marks and known answers; its CSV holds one line a pair."""
    figure, axes = figures.panels(width=5.6, height=5.2)
    axis, held_out = axes[0, 0], len(source.rows.held_out)
    figures.heat_map(
        figure, axis, nats, [f"{time:g}" for time in source.times],
        f"I(z(t); z(s)), {source.name}, {held_out} held-out rows", "nats (MINE, lower bound)",
    )  # fmt: skip
    shown = [
        ("still_rising", "^", 0.3, "still rising at the end"),
        ("beyond_known", "o", -0.3, "above recovered answers"),
    ]
    for name, marker, offset, meaning in shown:
        pairs = [pair for pair, value in values.items() if value[name]]
        if pairs:
            places = np.array([*pairs, *(pair[::-1] for pair in pairs)])
            axis.scatter(places[:, 0] + offset, places[:, 1] + 0.3, 14, "white", marker=marker, edgecolors="black",
                         linewidths=0.6, label=meaning)  # fmt: skip
    if any(value[name] for value in values.values() for name, *_ in shown):
        figure.legend(loc="outside lower center", ncols=2)
    note = f"normals of {source.dimension} features on as many rows: {answers}"
    axis.set_xlabel("\n".join(["time t", *(textwrap.wrap(note, 64) if answers else [])]))
    axis.set_ylabel("time s")
    table = {
        "first": [source.times[first] for first, _ in values],
        "second": [source.times[second] for _, second in values],
        "nats": [value["nats"] for value in values.values()],
        "deviation_of_seeds": [value["deviation"] for value in values.values()],
        "error_of_rows": [value["error_of_rows"] for value in values.values()],
        **{name: [int(value[name]) for value in values.values()] for name in MARKS},
    }
    figures.save(figure, source.root / f"matrix_{source.name}.png", table)


if __name__ == "__main__":
    experiment.launch(main)
