"""Estimate the mutual information between the representations at every two times, and draw it as a map.

STORE is RUN/trajectories/SOURCE, as representations.py writes it. A critic (MINE) is trained for every pair of times and
every seed, all together; its best iterate is chosen on validation rows and its value, in nats, read off on rows that
neither saw. With `--fit-on train` (the default) the train split fits and validates and every test image is held out; with
`--fit-on test` the test split alone is cut in three (half, a fifth, the rest).

The matrix is symmetric: 11 times are 55 pairs. A time is not paired with itself, for I(z; z) of a continuous code is
infinite. A code is a function of its image, so between two times too the truth may be infinite or, with N distinct images,
ln N: the map says what critics of one size find from the same rows, and is to be read by comparison. n held-out rows
certify about ln n nats; pairs above that are listed.

Written: RUN/mutual_information/source=S/first=T/second=T.json, matrix_S.png, matrix_S.csv and summary_S.json. Running the
command again fills what is missing.
"""

import argparse
import itertools
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_model import arrays, experiment, figures, results, trajectories
from diffusion_model.experiment import Above, AtLeast
from qualitative_analysis import information


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
    options.add_device()
    return options


@dataclass(frozen=True)
class Source:
    """Codes z [N, T, D] of one store at `times`, which rows play which part, and what identifies them."""

    name: str
    run: Path
    times: list[float]
    z: np.ndarray
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

    def key(self, pair: tuple[int, int]) -> dict[str, Any]:
        """The cell's key."""
        return {"source": self.name, "first": self.times[pair[0]], "second": self.times[pair[1]]}


def main(argv: Sequence[str] | None = None) -> int:
    """Estimate the pairs that are missing, then write matrix and summary; 1 if a pair failed."""
    args = parser().parse_args(argv)
    settings = settings_of(args)
    source = open_source(args)
    device = experiment.choose_device(args.device)
    protocols = {pair: protocol(args, settings, source, pair) for pair in source.pairs}
    missing = [
        pair for pair in source.pairs if results.finished(source.root, source.key(pair), protocols[pair]) is None
    ]
    print(f"mutual information of {source.name}: {len(source.pairs)} pairs of times, {len(missing)} to do")
    estimates = information.estimate_pairs(source.z, missing, source.rows, settings, args.seeds, device)
    for pair, estimate in experiment.progress(estimates, "mutual information", "pairs", len(missing)):
        results.write_cell(source.root, source.key(pair), value_of(estimate), protocols[pair])
    command = shlex.join(["python", "qualitative_analysis/estimate_mi.py", *(sys.argv[1:] if argv is None else argv)])
    return summarise(source, protocols, command)


def settings_of(args: argparse.Namespace) -> information.Mine:
    """The critics' settings; values out of range are a UsageError that names the option."""
    if len(set(args.seeds)) < len(args.seeds):
        raise experiment.UsageError(f"--seeds {' '.join(map(str, args.seeds))}: expected each seed once")
    return information.Mine(
        width=args.width, steps=args.steps, batch=args.batch, learning_rate=args.learning_rate,
        check_every=args.check_every, patience=args.patience,
    )  # fmt: skip


def open_source(args: argparse.Namespace) -> Source:
    """The codes asked for, with the rows cut into parts."""
    store = Path(args.store).absolute()
    if store.parent.name != "trajectories":
        inside = sorted(entry.name for entry in (store / "trajectories").glob("*/"))
        there = f"; its stores: {', '.join(inside)}" if inside else ""
        raise experiment.UsageError(f"{args.store} is no store: expected RUN/trajectories/SOURCE{there}")
    names = ["train", "test"] if args.fit_on == "train" else ["test"]
    splits = [trajectories.Trajectories(store / name) for name in names]
    asked = trajectories.grid(args.granularity) if args.times is None else sorted(set(args.times))
    times = [splits[-1].nearest(time) for time in asked]
    if len(times) < 2:
        raise ValueError(f"mutual information needs at least two times of {args.store}, got {len(times)}")
    z = np.concatenate([split.select(times) for split in splits])
    if args.fit_on == "test":
        rows = information.split_rows(len(z))
    else:
        rows = information.split_train(splits[0].count, splits[1].count)
    checksums = {time: [split.meta["stored"][f"{time:.8f}"]["crc32"] for split in splits] for time in times}
    return Source(store.name, store.parent.parent, times, z, rows, checksums)


def protocol(
    args: argparse.Namespace, settings: information.Mine, source: Source, pair: tuple[int, int]
) -> dict[str, Any]:
    """Everything that decides a cell besides its key."""
    return {
        "estimator": "MINE: Donsker-Varadhan bound, read off on held-out rows, mean over seeds",
        **asdict(settings),
        "seeds": args.seeds,
        "fit_on": args.fit_on,
        "rows": {name: len(getattr(source.rows, name)) for name in ("fit", "validation", "held_out")},
        "dimension": source.z.shape[-1],
        "ceiling": source.rows.ceiling,
        "unit": "nats",
        "codes": [source.checksums[source.times[index]] for index in pair],
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
    }


def summarise(source: Source, protocols: dict[tuple[int, int], dict[str, Any]], command: str) -> int:
    """Write the matrix as a figure with its numbers and the summary; 1 if a pair failed."""
    cells = {pair: results.read_cell(results.cell_path(source.root, **source.key(pair))) for pair in source.pairs}
    failed = {pair: cell for pair, cell in cells.items() if cell.failed}
    for cell in failed.values():
        print(f"error: {cell.path}: {cell.value['error']}", file=sys.stderr)
    good = {pair: cell for pair, cell in cells.items() if not cell.failed}
    if not good:
        return 1
    size = len(source.times)
    nats = np.full((size, size), np.nan)
    for (first, second), cell in good.items():
        nats[first, second] = nats[second, first] = cell.value["nats"]
    draw(source, nats, good)

    def times_of(pairs: Sequence[tuple[int, int]]) -> list[list[float]]:
        return [[source.times[first], source.times[second]] for first, second in pairs]

    shared = {name: value for name, value in next(iter(protocols.values())).items() if name != "codes"}
    content = {
        "kind": "mutual information summary",
        "source": source.name,
        "times": source.times,
        "nats": [[None if np.isnan(value) else float(value) for value in row] for row in nats],
        "largest": float(np.nanmax(nats)),
        "smallest": float(np.nanmin(nats)),
        "ceiling": source.rows.ceiling,
        "beyond_ceiling": times_of([pair for pair, cell in good.items() if cell.value["beyond_ceiling"]]),
        "failed": times_of(list(failed)),
        "diagonal": "left out: I(z; z) of a continuous code is infinite",
        "protocol": shared,
        "command": command,
    }
    path = source.root / f"summary_{source.name}.json"
    arrays.write_json(path, content)
    print(
        f"{path.with_name(f'matrix_{source.name}.png')}: {content['smallest']:.2f} to {content['largest']:.2f} nats, "
        f"ceiling {content['ceiling']:.2f}, {len(content['beyond_ceiling'])} pairs above it"
    )
    return 1 if failed else 0


def draw(source: Source, nats: np.ndarray, cells: dict[tuple[int, int], results.Cell]) -> None:
    """The map, empty where there is no number; its CSV holds one line a pair."""
    figure, axes = figures.panels(width=5.6, height=4.8)
    axis = axes[0, 0]
    figures.heat_map(
        figure, axis, nats, [f"{time:g}" for time in source.times],
        f"I(z(t); z(s)), {source.name}, {len(source.rows.held_out)} held-out rows", "nats (MINE, lower bound)",
    )  # fmt: skip
    axis.set_xlabel("time t")
    axis.set_ylabel("time s")
    table = {
        "first": [source.times[first] for first, _ in cells],
        "second": [source.times[second] for _, second in cells],
        "nats": [cell.value["nats"] for cell in cells.values()],
        "deviation_of_seeds": [cell.value["deviation"] for cell in cells.values()],
        "error_of_rows": [cell.value["error_of_rows"] for cell in cells.values()],
    }
    figures.save(figure, source.root / f"matrix_{source.name}.png", table)


if __name__ == "__main__":
    experiment.launch(main)
