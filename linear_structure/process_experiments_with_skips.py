"""Distance against skipped steps: the figure, the table and the number of steps that can be skipped.

RUN holds a sweep made by sweep_skips.py. Intervals are 95 %, by leaving out one block of seeds at a time. The recommended
skip is the largest whose paired upper bound lies within --margin of the distance without skipping: pairing is so sharp
that without a margin one skipped step may already count as worse.

  python linear_structure/process_experiments_with_skips.py runs/edm-cifar10

Writes distance.png (.csv), samples.png (.csv), table.md and summary.json to RUN/sweeps/NAME/.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import LogFormatter

from diffusion_model import arrays, experiment, figures, results
from diffusion_model.experiment import AtLeast
from diffusion_model.features import Reference
from diffusion_model.fid import symmetric_root
from diffusion_model.moments import Moments
from linear_structure import inputs
from linear_structure.intervals import Estimate, distances, increase

LOOKS = {  # kind: (colour, label)
    "gaussian": (figures.COLOURS[0], "Gaussian jump"),
    "isotropic": (figures.COLOURS[1], "isotropic jump (mean and variance)"),
    "mean": (figures.COLOURS[4], "isotropic jump (mean only)"),
}


def make_parser() -> experiment.Parser:
    """The command line."""
    parser = experiment.Parser(__doc__, prog="process_experiments_with_skips.py")
    parser.add_argument("run", metavar="RUN", type=Path, nargs="?", default=inputs.RUN, help="a run with a sweep")
    parser.add_argument("--name", default="default", help="the sweep's folder in RUN/sweeps")
    parser.add_argument("--margin", type=AtLeast(0.0), default=0.01, help="relative increase that is accepted")
    parser.add_argument("--blocks", type=int, default=20, help="blocks of seeds for the intervals")
    parser.add_argument("--pdf", action="store_true", help="also write the figures as PDF")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    args = make_parser().parse_args(argv)
    folder = inputs.sweep_folder(args.run, args.name)
    remedy = f"run `python linear_structure/sweep_skips.py {args.run} PARAMS --name {args.name}` first"
    rows = read_sweep(folder, args.blocks, remedy)
    start = next((row for row in rows if row["kind"] == "none"), None)
    if start is None or not any(row["kind"] in LOOKS for row in rows):
        raise ValueError(f"{folder} has no cell with skipped steps beside one without: {remedy}")
    summary = summarise(rows, args.margin, args.blocks)
    arrays.write_json(folder / "summary.json", summary)
    draw_distances(rows, summary, folder / "distance.png", args.pdf)
    draw_samples(rows, summary, folder / "samples.png", args.pdf)
    arrays.write_atomically(folder / "table.md", lambda temporary: temporary.write_text(markdown(rows)))
    print(markdown(rows))
    print(sentence(summary))
    print(f"{folder / 'distance.png'}, {folder / 'samples.png'}, {folder / 'summary.json'}")
    return 0


def read_sweep(folder: Path, blocks: int, remedy: str) -> list[dict[str, Any]]:
    """The cells of one sweep, each with its distance and its paired increase as estimates; kinds together, by skip."""
    cells = results.read_cells(folder, remedy)
    protocols = {
        name: {str(cell.protocol.get(name)) for cell in cells}
        for name in cells[0].protocol
        if name not in ("images", "test")
    }
    mixed = [name for name, values in protocols.items() if len(values) > 1]
    if mixed:
        raise ValueError(f"{folder} mixes cells of different {', '.join(mixed)}: remove it and {remedy}")
    moments = Moments.load(folder / "reference", remedy)
    reference = Reference(moments, symmetric_root(moments.covariance))
    order = ["none", *LOOKS, "real"]
    cells = sorted(cells, key=lambda cell: (order.index(cell.key["kind"]), cell.key["skip"]))
    rows, start = [], None
    for cell in experiment.progress(cells, "intervals", "cell"):
        held, _ = arrays.read_folder(cell.path.with_suffix(""), "sweep cell", remedy)
        found = distances(held["features"], reference, blocks)
        start = found if cell.key["kind"] == "none" else start
        change = increase(found, start) if start and cell.key["kind"] != "real" else None
        rows.append(
            {
                **cell.key,
                **cell.value,
                "estimate": found,
                "change": change,
                "images": held["images"],
                "protocol": cell.protocol,
            }
        )
    return rows


def summarise(rows: list[dict[str, Any]], margin: float, blocks: int) -> dict[str, Any]:
    """What the sweep shows: no skip, the recommended skip, the largest skip, the floor, and every cell."""
    start = next(row for row in rows if row["kind"] == "none")
    kind = next(name for name in LOOKS if any(row["kind"] == name for row in rows))
    skipped = [row for row in rows if row["kind"] == kind]
    within = [row for row in skipped if row["change"].high <= margin]
    floor = next((row for row in rows if row["kind"] == "real"), None)
    protocol = start["protocol"] | {
        "margin": margin,
        "blocks": blocks,
        "interval": "95 %, delete-one-block jackknife over seeds",
    }
    return {
        "format": arrays.FORMAT,
        "kind": "sweep summary",
        "distance": start["protocol"]["distance"],
        "features": start["protocol"]["features"],
        "n": start["protocol"]["n"],
        "margin": margin,
        "jump": kind,
        "start": record(start, start),
        "recommended": record(within[-1] if within else start, start),
        "largest": record(skipped[-1], start),
        "floor": floor and {**floor["estimate"].as_dict("distance"), "images": floor["protocol"]["images"]},
        "cells": [record(row, start) for row in rows if row["kind"] != "real"],
        "protocol": protocol,
    }


def record(row: dict[str, Any], start: dict[str, Any]) -> dict[str, Any]:
    """One cell as the summary holds it."""
    change: Estimate = row["change"]
    return {
        "jump": row["kind"],
        "skip": row["skip"],
        "level": row["level"],
        "evaluations": row["evaluations"],
        "evaluations_saved": 1 - row["evaluations"] / start["evaluations"],
        **row["estimate"].as_dict("distance"),
        "increase": change.as_dict(),
        "drift": row["drift"],
        "seconds": row["seconds"],
    }


def sentence(summary: dict[str, Any]) -> str:
    """The recommendation in words."""
    chosen, largest, unit = summary["recommended"], summary["largest"], summary["distance"]
    what = (
        f"recommended: skip {chosen['skip']} of {summary['protocol']['steps']} steps (start at level {chosen['level']:.3g}), "
        f"{chosen['evaluations_saved']:.0%} of the evaluations saved; {unit} {chosen['distance']:.4g} against "
        f"{summary['start']['distance']:.4g} without skipping"
    )
    if not chosen["skip"]:
        what = (
            f"no skip lies within {summary['margin']:.1%} of {unit} {summary['start']['distance']:.4g} without skipping"
        )
    return f"{what}; {largest['distance']:.4g} at skip {largest['skip']}"


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table in Markdown."""
    unit = rows[0]["protocol"]["distance"]
    lines = [
        f"| jump | skipped steps | start level | evaluations | {unit} [95 %] | paired change [95 %] | drift (L2) | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        found, change = row["estimate"], row["change"]
        distance = f"{found.value:.5g} [{found.low:.5g}, {found.high:.5g}]"
        if row["kind"] == "real":
            lines.append(f"| real images | | | | {distance} | | | |")
            continue
        paired = f"{change.value:+.2%} [{change.low:+.2%}, {change.high:+.2%}]" if row["skip"] else ""
        lines.append(
            f"| {row['kind']} | {row['skip']} | {row['level']:.4g} | {row['evaluations']} | {distance} | {paired} "
            f"| {row['drift']:.4g} | {row['seconds']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def draw_distances(rows: list[dict[str, Any]], summary: dict[str, Any], path: Path, pdf: bool) -> None:
    """Distance and drift against skipped steps, evaluations on the upper axis, a line a kind of jump, the floor dashed."""
    figure, axes = figures.panels(1, 2, width=5.4, height=4.2)
    axis, beside = axes[0]
    start = next(row for row in rows if row["kind"] == "none")
    values = [row["estimate"].value for row in rows]
    for kind, (colour, label) in LOOKS.items():
        line = [start, *(row for row in rows if row["kind"] == kind)]
        if len(line) == 1:
            continue
        skips = [row["skip"] for row in line]
        found = [row["estimate"] for row in line]
        axis.plot(skips, [one.value for one in found], "o-", color=colour, label=label)
        figures.band(axis, skips, [one.low for one in found], [one.high for one in found], colour)
        beside.plot(skips[1:], [row["drift"] for row in line[1:]], "o-", color=colour, label=label)
    if summary["floor"]:
        axis.axhline(
            summary["floor"]["distance"], color=figures.COLOURS[6], linestyle="--", label=f"{summary['n']} real images"
        )
    chosen = summary["recommended"]
    axis.axvline(
        chosen["skip"],
        color=figures.COLOURS[2],
        linestyle=":",
        label=f"recommended: {chosen['skip']} (margin {summary['margin']:.0%})",
    )
    if max(values) > 8 * min(values):
        axis.set_yscale("log")
        for scale in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
            scale(LogFormatter(labelOnlyBase=False))
    protocol = summary["protocol"]
    axis.set_ylabel(summary["distance"])
    beside.set_ylabel("drift from skip 0 (mean L2, model space)")
    beside.set_yscale("log")
    skips = sorted({row["skip"] for row in rows})
    per_step = (start["evaluations"] - summary["largest"]["evaluations"]) / summary["largest"]["skip"]
    for one in (axis, beside):
        one.set_xticks(skips)
        one.set_xlabel(f"skipped steps of {protocol['steps']} ({protocol['sampler']})")
        upper = one.secondary_xaxis("top")
        upper.set_xticks(skips, [f"{start['evaluations'] - per_step * skip:g}" for skip in skips])
        upper.set_xlabel("network evaluations")
    axis.legend(frameon=False)
    figure.suptitle(f"{protocol['dataset']}, {summary['n']} paired seeds", fontsize=10.5)
    table = {
        "jump": [row["kind"] for row in rows],
        "skip": [row["skip"] for row in rows],
        "level": [row.get("level", "") for row in rows],
        "evaluations": [row.get("evaluations", "") for row in rows],
        "distance": values,
        "low": [row["estimate"].low for row in rows],
        "high": [row["estimate"].high for row in rows],
        "increase": [row["change"].value if row["change"] else "" for row in rows],
        "increase_low": [row["change"].low if row["change"] else "" for row in rows],
        "increase_high": [row["change"].high if row["change"] else "" for row in rows],
        "drift": [row.get("drift", "") for row in rows],
        "seconds": [row.get("seconds", "") for row in rows],
    }
    figures.save(figure, path, table, pdf)


def draw_samples(rows: list[dict[str, Any]], summary: dict[str, Any], path: Path, pdf: bool, columns: int = 10) -> None:
    """The same seeds at every number of skipped steps: one row of images a cell of the main jump."""
    shown = [row for row in rows if row["kind"] in ("none", summary["jump"])]
    columns = min(columns, len(shown[0]["images"]))
    figure, axes = figures.panels(len(shown), 1, width=0.62 * columns + 1.2, height=0.66)
    for axis, row in zip(axes[:, 0], shown, strict=True):
        strip = np.concatenate([image.transpose(1, 2, 0) for image in row["images"][:columns]], axis=1)
        axis.imshow(np.broadcast_to(strip, (*strip.shape[:2], 3)), interpolation="nearest")
        axis.set_xticks([])
        axis.set_yticks([])
        axis.grid(False)
        for side in axis.spines.values():
            side.set_visible(False)
        axis.set_ylabel(f"skip {row['skip']}", rotation=0, ha="right", va="center", fontsize=9)
    protocol = summary["protocol"]
    figure.suptitle(
        f"{protocol['dataset']}: seeds {protocol['seed_base']} to {protocol['seed_base'] + columns - 1}", fontsize=10
    )
    table = {name: [row[name] for row in shown] for name in ("kind", "skip", "level", "drift")}
    figures.save(figure, path, table, pdf)


if __name__ == "__main__":
    experiment.launch(main)
