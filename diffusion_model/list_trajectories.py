"""List the stores of representations of a run: times, sizes, where they come from, and whether they are whole.

    python diffusion_model/list_trajectories.py runs/drl-cifar10
    python diffusion_model/list_trajectories.py runs/drl-cifar10 --verify

A line for each source and split. A store is whole, unfinished (being written, or interrupted: the share of rows that is
there), of another step than the run's newest checkpoint, or broken, with the reason; one that is whole stays so while times
are added. --verify reads every file for its checksum and for values that are not finite, and tells "over t", the share of
the variance that lies between the times of an image: 0 where trajectories stand still and leave nothing to mix, 1 where
times have nothing in common. Exit status 1 if one is broken.
"""

import json
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from diffusion_model import arrays, checkpoint, data, experiment, readouts, row_files, trajectories

BROKEN = "broken: "


@dataclass
class Row:
    """One store and split; `levels` are the least and the most, in standard deviations of the data, `size` in bytes."""

    source: str
    split: str
    health: str = ""
    times: int = 0
    requested: int = 0
    levels: tuple[float, float] | None = None
    count: int = 0
    dimension: int = 0
    dtype: str = ""
    size: int = 0
    step: int | None = None
    over_times: float | None = None
    provenance: dict[str, Any] | None = None


def make_parser() -> experiment.Parser:
    """The command line."""
    parser = experiment.Parser(__doc__, prog="list_trajectories.py")
    parser.add_argument("run", metavar="RUN", type=Path, help="a run")
    parser.add_argument(
        "--verify", action="store_true", help="read every file: checksums, and values that are not finite"
    )
    parser.add_argument("--json", action="store_true", help="for machines: a list of objects, one a store and split")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print the stores; 1 if one is broken."""
    args = make_parser().parse_args(argv)
    record = checkpoint.read_run(args.run)
    folders = [path for path in sorted((args.run / "trajectories").glob("*/*/")) if path.name in data.SPLITS]
    if not folders:
        raise FileNotFoundError(f"no trajectories in {args.run / 'trajectories'}: {trajectories.REMEDY}")
    newest = max(checkpoint.steps(args.run), default=record.get("step"))
    rows = [describe(folder, record, newest, args.verify) for folder in folders]
    print(json.dumps([asdict(row) for row in rows], indent=2) if args.json else arrays.plain(table(rows)))
    return int(any(row.health.startswith(BROKEN) for row in rows))


def describe(folder: Path, record: dict[str, Any], newest: int | None, verify: bool) -> Row:
    """One store and split, whatever its state."""
    row = Row(folder.parent.name, folder.name)
    try:
        store = trajectories.Trajectories(folder, unfinished=True)
        fill(row, store)
        row.health = health(store, record, newest, verify)
        row.over_times = store.share_over_times() if verify else None
    except (ValueError, OSError) as error:
        row.health = f"{BROKEN}{error}"
    return row


def fill(row: Row, store: trajectories.Trajectories) -> None:
    """What a readable meta.json tells."""
    meta = store.meta
    row.times, row.requested, row.step = len(store.times), len(meta["requested"]), meta.get("step")
    row.count, row.dimension, row.dtype = store.count, store.dimension, store.dtype
    levels = [trajectories.level_of(time) for time in meta["requested"]]
    row.levels = (min(levels), max(levels)) if levels else None
    row.size = sum(path.stat().st_size for path in store.folder.iterdir() if path.is_file())
    told = ("dataset", "data_hash", "weights", "precision", "draws", "pooling", "mode")
    row.provenance = {name: meta[name] for name in told if name in meta}


def health(store: trajectories.Trajectories, record: dict[str, Any], newest: int | None, verify: bool) -> str:
    """The state of a store in a few words; what makes it unreadable is a ValueError."""
    meta, own = store.meta, record["data"]
    train = meta.get("split") == "train" and meta.get("data_hash") != own["hash"]
    if train or meta.get("dataset", own["name"]) != own["name"]:
        raise ValueError(f"it is of another data set than the run: remove {store.folder.parent}")
    mode = record["config"].get("model.mode")
    if meta.get("mode", mode) != mode:
        raise ValueError(
            f"it is of a run of mode {meta['mode']}, this one is of mode {mode}: remove {store.folder.parent}"
        )
    for time in store.times:
        if verify:
            deque(store.blocks(time), maxlen=0)
        else:
            store.look(time)
    pending = trajectories.missing(meta, meta["requested"])
    if pending:
        names = [f"z_{time:.8f}.npy" for time in pending]
        there = len(store.times) + len(pending) * row_files.share_written(store.folder, names, store.count)
        return f"unfinished, {there / len(meta['requested']):.0%} is there"
    begun = row_files.begun(store.folder)
    share = row_files.share_written(store.folder, begun, store.count)
    added = f", {len(begun)} more times begun ({share:.0%} is there)" if begun else ""
    if meta.get("step") not in (None, 0, newest):
        return f"whole, of step {meta['step']} (the run is at {newest}){added}"
    return ("whole, verified" if verify else "whole") + added


def table(rows: Sequence[Row]) -> str:
    """The stores as aligned columns."""
    cells = [
        ("source", "split", "times", "levels", "images", "features", "dtype", "MB", "over t", "step", "data", "health")
    ]
    for row in rows:
        levels = "" if row.levels is None else " to ".join(f"{level:.3g}" for level in dict.fromkeys(row.levels))
        levels = "clean" if row.source in readouts.TIMELESS else levels
        times = f"{row.times}" if row.times == row.requested else f"{row.times}/{row.requested}"
        told = row.provenance or {}
        step = "" if row.step is None else f"{row.step:,}"
        origin = f"{told.get('dataset', '')} {told.get('data_hash', '')[:8]}".strip()
        counts = (f"{row.count:,}", f"{row.dimension:,}", row.dtype, f"{row.size / 1e6:.1f}") if told else ("",) * 4
        moving = "" if row.over_times is None else f"{row.over_times:.2%}"
        cells.append((row.source, row.split, times, levels, *counts, moving, step, origin, row.health))
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in cells
    )


if __name__ == "__main__":
    experiment.launch(main)
