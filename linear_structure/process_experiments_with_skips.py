"""Distance against skipped steps: the figures, the table and the number of steps that can be skipped.

RUN holds a sweep made by sweep_skips.py. Intervals are 95 %, by leaving out one block of seeds at a time. The recommended
skip of a sampler is the largest whose paired upper bound lies within --margin of the distance without skipping: pairing is
so sharp that without a margin one skipped step may already count as worse. The margin is a share of that distance (0.01
is 1 %), or "spread": the relative standard error of that distance, by which it moves as well if all seeds are others.
Jumps to levels from which all steps are spread anew save no evaluations: there the level of least distance is recommended.

  python linear_structure/process_experiments_with_skips.py runs/edm-cifar10

Writes to RUN/sweeps/NAME/ table.md, samples.png (.csv), summary.json and

    distance.png (.csv)   distance against skipped steps or levels, a panel a sampler and number of steps
    levels.png (.csv)     distance over level jumped to and number of evaluations, where a sweep has jumps to levels
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, NullFormatter

from diffusion_model import arrays, experiment, fid, figures, results
from diffusion_model.features import Reference
from diffusion_model.moments import Moments
from diffusion_model.samplers import SAMPLERS
from linear_structure import inputs
from linear_structure.intervals import Margin, accepted, distances, increase

LOOKS = {  # kind: (colour, label)
    "gaussian": (figures.COLOURS[0], "Gaussian jump"),
    "mixture": (figures.COLOURS[3], "mixture jump"),
    "isotropic": (figures.COLOURS[1], "isotropic jump (mean and variance)"),
    "mean": (figures.COLOURS[4], "isotropic jump (mean only)"),
}
SAMPLER_ORDER = ("heun", *(name for name in SAMPLERS if name != "heun"))
VARIED = ("images", "test", "mixture")  # protocol fields that some cells of one sweep have
NAMES = {
    "heun": "Heun",
    "euler": "Euler",
    "dpmpp-2m": "DPM-Solver++ (2M)",
    "unipc-bh1": "UniPC-bh1",
    "unipc-bh2": "UniPC-bh2",
}
Row = dict[str, Any]


@dataclass(frozen=True)
class Line:
    """The cells that share a plain solver, by kind of jump, from the least jump: over its own grid or to any level."""

    sampler: str
    steps: int
    by: str
    start: Row
    kinds: dict[str, list[Row]]

    @property
    def main(self) -> list[Row]:
        """The cells of the first kind."""
        return next(iter(self.kinds.values()))

    @property
    def title(self) -> str:
        """The solver, as a figure says it."""
        return f"{NAMES.get(self.sampler, self.sampler)}, {self.steps} steps"


def make_parser() -> experiment.Parser:
    """The command line."""
    parser = experiment.Parser(__doc__, prog="process_experiments_with_skips.py")
    parser.add_argument("run", metavar="RUN", type=Path, nargs="?", default=inputs.RUN, help="a run with a sweep")
    parser.add_argument("--name", default="default", help="the sweep's folder in RUN/sweeps")
    parser.add_argument(
        "--margin", type=Margin(0.0), default=0.01, help="relative increase that is accepted, or spread"
    )
    parser.add_argument("--blocks", type=int, default=20, help="blocks of seeds for the intervals")
    parser.add_argument("--pdf", action="store_true", help="also write the figures as PDF")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    args = make_parser().parse_args(argv)
    folder = inputs.sweep_folder(args.run, args.name)
    remedy = f"run `python linear_structure/sweep_skips.py {args.run} PARAMS --name {args.name}` first"
    rows = read_sweep(folder, args.blocks, remedy)
    found = lines(rows)
    if not found:
        raise ValueError(f"{folder} has no cell with skipped steps beside one without: {remedy}")
    summary = summarise(rows, args.margin, args.blocks)
    arrays.write_json(folder / "summary.json", summary)
    drawn = draw(rows, summary, folder, args.pdf)
    arrays.write_atomically(folder / "table.md", lambda temporary: temporary.write_text(markdown(rows)))
    print(markdown(rows))
    for line in summary["lines"]:
        print(sentence(summary, line))
    print(", ".join(str(path) for path in [*drawn, folder / "summary.json"]))
    return 0


def read_sweep(folder: Path, blocks: int, remedy: str) -> list[Row]:
    """The cells of one sweep, each with its distance and its paired increase as estimates: by solver, kind and level."""
    cells = results.read_cells(folder, remedy)
    names = {name for cell in cells for name in cell.protocol} - {*VARIED}
    mixed = sorted(name for name in names if len({str(cell.protocol.get(name)) for cell in cells}) > 1)
    if mixed:
        raise ValueError(f"{folder} mixes cells of different {', '.join(mixed)}: remove it and {remedy}")
    moments = Moments.load(folder / "reference", remedy)
    reference = Reference(moments, fid.factor(moments.covariance))
    rows, starts = [], {}
    for cell in experiment.progress(sorted(cells, key=_order), "intervals", "cell"):
        held, _ = arrays.read_folder(cell.path.with_suffix(""), "sweep cell", remedy)
        found = distances(held["features"], reference, blocks)
        # a cell of format 1 before samplers were part of the key has them in its protocol
        given = {name: cell.protocol[name] for name in ("sampler", "steps") if name in cell.protocol}
        row = {**given, **cell.value, **cell.key, "by": "level" if "level" in cell.key else "skip", "estimate": found}
        solver = (row.get("sampler"), row.get("steps"))
        if row["kind"] == "none":
            starts[solver] = found
        paired = row["kind"] != "real" and solver in starts
        change = increase(found, starts[solver]) if paired else None
        rows.append({**row, "change": change, "images": held["images"], "protocol": cell.protocol})
    return rows


def _order(cell: results.Cell) -> tuple:
    """The plain solvers, then kinds in the order of LOOKS from the least jump, then real images; Heun before others."""
    given = cell.protocol | cell.key
    kinds, sampler = ["none", *LOOKS, "real"], given.get("sampler")
    place = SAMPLER_ORDER.index(sampler) if sampler in SAMPLER_ORDER else len(SAMPLER_ORDER)
    return (
        cell.key["kind"] == "real", place, -given.get("steps", 0), kinds.index(cell.key["kind"]), "level" in cell.key,
        cell.key.get("skip", 0), -cell.key.get("level", 0.0),
    )  # fmt: skip


def lines(rows: list[Row]) -> list[Line]:
    """The cells by solver, those on the solvers' own grids first; a solver without a plain cell or without jumps has none."""
    found = []
    for by in ("skip", "level"):
        for start in (row for row in rows if row["kind"] == "none"):
            solver = (start["sampler"], start["steps"])
            own = [row for row in rows if row["by"] == by and (row.get("sampler"), row.get("steps")) == solver]
            kinds = {kind: [row for row in own if row["kind"] == kind] for kind in LOOKS}
            kinds = {kind: cells for kind, cells in kinds.items() if cells}
            if kinds:
                found.append(Line(*solver, by, start, kinds))
    return found


def summarise(rows: list[Row], margin: float | str, blocks: int) -> dict[str, Any]:
    """What the sweep shows: no skip, the recommended skip, the largest skip, the floor, and every cell.

    `lines` has that for every solver; the fields beside it are those of the first.
    """
    every = [outline(line, margin) for line in lines(rows)]
    first, start = every[0], next(row for row in rows if row["kind"] == "none")
    floor = next((row for row in rows if row["kind"] == "real"), None)
    protocol = start["protocol"] | {"sampler": first["sampler"], "steps": first["steps"]}
    starts = {(row["sampler"], row["steps"]): row for row in rows if row["kind"] == "none"}
    paired = [(row, starts.get((row.get("sampler"), row.get("steps")))) for row in rows if row["change"] is not None]
    return {
        "format": arrays.FORMAT,
        "kind": "sweep summary",
        "distance": start["protocol"]["distance"],
        "features": start["protocol"]["features"],
        "n": start["protocol"]["n"],
        **{name: first[name] for name in ("margin", "jump", "start", "recommended", "largest")},
        "floor": floor and {**floor["estimate"].as_dict("distance"), "images": floor["protocol"]["images"]},
        "lines": every,
        "cells": [record(row, beside) for row, beside in paired],
        "protocol": protocol
        | {"margin": margin, "blocks": blocks, "interval": "95 %, delete-one-block jackknife over seeds"},
    }


def outline(line: Line, margin: float | str) -> dict[str, Any]:
    """What one solver's cells show: the recommended jump of the first kind, and what speaks against the next.

    Over its own grid that is the largest skip within the margin, for it saves the most; to a level, where all cost the
    same, it is the jump of least distance.
    """
    accept = accepted(margin, line.start["estimate"])
    cells = [line.start, *line.main]
    if line.by == "skip":
        place = max(place for place, row in enumerate(cells) if row["change"].high <= accept or not place)
    else:
        place = min(range(len(cells)), key=lambda place: cells[place]["estimate"].value)
    beyond = cells[place + 1] if place + 1 < len(cells) else None
    return {
        "sampler": line.sampler,
        "steps": line.steps,
        "by": line.by,
        "jump": line.main[0]["kind"],
        "margin": accept,
        "start": record(line.start, line.start),
        "recommended": record(cells[place], line.start),
        "beyond": beyond and record(beyond, line.start) | {"surely_worse": bool(beyond["change"].low > accept)},
        "largest": record(line.main[-1], line.start),
    }


def record(row: Row, start: Row) -> dict[str, Any]:
    """One cell as the summary holds it."""
    return {
        "sampler": row["sampler"],
        "steps": row["steps"],
        "jump": row["kind"],
        "by": row["by"],
        "skip": row["skip"],
        "level": row["level"],
        "evaluations": row["evaluations"],
        "evaluations_saved": 1 - row["evaluations"] / start["evaluations"],
        **row["estimate"].as_dict("distance"),
        **{name: row[name] for name in ("kernel_distance", "kernel_deviation") if name in row},
        "increase": row["change"].as_dict(),
        "drift": row["drift"],
        **{name: row[name] for name in ("seconds", "busy_seconds") if name in row},
        "seconds_saved": saved(row, start),
    }


def saved(row: Row, start: Row) -> float:
    """The share of the plain solver's time that a cell did without; below 0 where it took longer."""
    spent, whole = (one.get("busy_seconds", one["seconds"]) for one in (row, start))
    return 1 - spent / whole if whole else 0.0


def sentence(summary: dict[str, Any], line: dict[str, Any]) -> str:
    """The recommendation for one solver in words, and how sure it is."""
    said = by_skip(summary, line) if line["by"] == "skip" else by_level(summary, line)
    return f"recommended ({line['sampler']}, {line['steps']} steps, n = {summary['n']}): {said}"


def by_skip(summary: dict[str, Any], line: dict[str, Any]) -> str:
    """The number of steps that can be skipped, and whether one more is known to be too many."""
    chosen, start, beyond, unit = line["recommended"], line["start"], line["beyond"], summary["distance"]
    margin = f"margin {line['margin']:.2g}" if line["margin"] < 1e-3 else f"margin {line['margin']:.1%}"
    what = f"skip nothing: no {line['jump']} jump lies within the {margin} of {unit} {start['distance']:.4g}"
    if chosen["skip"]:
        what = (
            f"skip {chosen['skip']} of {line['steps']} steps by a {chosen['jump']} jump to level {chosen['level']:.3g}: "
            f"{chosen['evaluations']} evaluations in place of {start['evaluations']} ({chosen['evaluations_saved']:.0%} "
            f"saved, {chosen['seconds_saved']:.0%} of the time); {unit} {chosen['distance']:.4g} against "
            f"{start['distance']:.4g}, {interval(chosen)}, {margin}"
        )
    if not beyond:
        return f"{what}; nothing beyond it was tried"
    doubt = "surely worse" if beyond["surely_worse"] else "undecided"
    hint = "" if beyond["surely_worse"] else ": a larger --n would tell"
    return f"{what}; skip {beyond['skip']} is {doubt}, {interval(beyond)}{hint}"


def by_level(summary: dict[str, Any], line: dict[str, Any]) -> str:
    """The level from which all steps do best."""
    chosen, start = line["recommended"], line["start"]
    what = f"{start['evaluations']} evaluations do best "
    what += (
        "without a jump"
        if chosen["jump"] == "none"
        else f"below a {chosen['jump']} jump to level {chosen['level']:.3g}"
    )
    change = "" if chosen["jump"] == "none" else f" against {start['distance']:.4g}, {interval(chosen)}"
    return f"{what}: {summary['distance']} {chosen['distance']:.4g}{change}"


def interval(cell: dict[str, Any]) -> str:
    """A paired change with its interval, in percent."""
    change = cell["increase"]
    return f"{change['value']:+.1%} [{100 * change['low']:+.1f}, {100 * change['high']:+.1f}]"


def markdown(rows: list[Row]) -> str:
    """The table in Markdown; solvers are named where there are several."""
    unit = rows[0]["protocol"]["distance"]
    kernel = any("kernel_distance" in row for row in rows)
    several = len({(row.get("sampler"), row.get("steps")) for row in rows if row["kind"] == "none"}) > 1
    names = ["solver", "steps"] * several + ["jump", "skipped steps", "start level", "evaluations", f"{unit} [95 %]"]
    names += ["paired change [95 %]"] + [rows[0]["protocol"].get("kernel_distance", "kernel distance")] * kernel
    names += ["drift (L2)", "seconds"]
    table = [names, ["---"] * len(names)]
    for row in rows:
        real, found, change = row["kind"] == "real", row["estimate"], row["change"]
        cells = [row.get("sampler", ""), str(row.get("steps", ""))] * several
        skip = str(row["skip"]) if row["by"] == "skip" else "to level"
        cells += (
            ["real images", "", "", ""] if real else [row["kind"], skip, f"{row['level']:.4g}", str(row["evaluations"])]
        )
        paired = f"{change.value:+.2%} [{change.low:+.2%}, {change.high:+.2%}]" if change else ""
        cells += [f"{found.value:.5g} [{found.low:.5g}, {found.high:.5g}]", "" if row["kind"] == "none" else paired]
        cells += [deviated(row)] * kernel
        table.append(cells + (["", ""] if real else [f"{row['drift']:.4g}", f"{row['seconds']:.1f}"]))
    return "".join(f"| {' | '.join(cells)} |\n" for cells in table)


def deviated(row: Row) -> str:
    """A kernel distance with its deviation over subsets."""
    if "kernel_distance" not in row:
        return ""
    deviation = row.get("kernel_deviation")
    return f"{row['kernel_distance']:.3g}" + ("" if deviation is None else f" (s.d. {deviation:.2g})")


def draw(rows: list[Row], summary: dict[str, Any], folder: Path, pdf: bool) -> list[Path]:
    """All figures that the sweep's cells allow, each with its numbers."""
    found, drawn = lines(rows), []
    skipped = [line for line in found if line.by == "skip"]
    levels = [line for line in found if line.by == "level"]
    budgets = {line.sampler: sum(other.sampler == line.sampler for other in levels) for line in levels}
    shown = skipped or [line for line in levels if budgets[line.sampler] == 1]
    if shown:
        drawn.append(draw_distances(rows, shown, summary, folder / "distance.png", pdf))
    if levels and not (len(levels) == len(shown) and not skipped):
        drawn.append(draw_levels(levels, summary, folder / "levels.png", pdf))
    return [*drawn, draw_samples(found[0], summary, folder / "samples.png", pdf)]


def draw_distances(rows: list[Row], shown: list[Line], summary: dict[str, Any], path: Path, pdf: bool) -> Path:
    """A row a sampler: distance against the skip, a panel a number of steps, and the drift where there is one number."""
    samplers = list(dict.fromkeys(line.sampler for line in shown))
    grid = [[line for line in shown if line.sampler == sampler] for sampler in samplers]
    columns = max(map(len, grid))
    figure, axes = figures.panels(len(grid), max(columns, 1 + (columns == 1)), width=5.6, height=4.3)
    outlines = {(one["sampler"], one["steps"], one["by"]): one for one in summary["lines"]}
    for panels, of_sampler in zip(axes, grid, strict=True):
        for axis in panels[len(of_sampler) + (columns == 1) :]:
            axis.set_axis_off()
        for axis, line in zip(panels, of_sampler, strict=False):
            draw_line(axis, line, outlines[line.sampler, line.steps, line.by], summary)
        if columns == 1:
            draw_drift(panels[1], of_sampler[0])
    axes[0, 0].legend(frameon=False)
    figure.suptitle(f"{summary['protocol']['dataset']}, {summary['n']} paired seeds", fontsize=10.5)
    return figures.save(figure, path, table(rows), pdf)


def draw_line(axis: Any, line: Line, found: dict[str, Any], summary: dict[str, Any]) -> None:
    """Distances with their bands, a line a kind of jump; the floor dashed, the recommended skip dotted."""
    values = [line.start["estimate"].value]
    for kind, cells in line.kinds.items():
        colour, label = LOOKS[kind]
        cells = [line.start, *cells]
        estimates = [row["estimate"] for row in cells]
        values += [one.value for one in estimates]
        axis.plot(places(cells, line.by), [one.value for one in estimates], "o-", color=colour, label=label)
        figures.band(
            axis, places(cells, line.by), [one.low for one in estimates], [one.high for one in estimates], colour
        )
    floor, chosen = summary["floor"], found["recommended"]
    if floor:
        values.append(floor["distance"])
        axis.axhline(floor["distance"], color=figures.COLOURS[6], linestyle="--", label=f"{summary['n']} real images")
    axis.axvline(chosen[line.by], color=figures.COLOURS[2], linestyle=":", label="recommended")
    where = f"skip {chosen['skip']}" if line.by == "skip" else f"level {chosen['level']:.3g}"
    axis.set_title(f"{line.title}: {where} recommended (margin {found['margin']:.1%})", fontsize=9.5)
    if max(values) > 8 * min(values):
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        few = max(values) < 100 * min(values)
        minor = FuncFormatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
        axis.yaxis.set_minor_formatter(minor if few else NullFormatter())
    axis.set_ylabel(summary["distance"])
    mark_axis(axis, line, told=True)


def draw_drift(axis: Any, line: Line) -> None:
    """How far a sample moves from the plain solver's of the same seed, on average."""
    axis.set_title("drift from the plain solver's sample", fontsize=9.5)
    for kind, cells in line.kinds.items():
        colour, label = LOOKS[kind]
        axis.plot(places(cells, line.by), [row["drift"] for row in cells], "o-", color=colour, label=label)
    axis.set_ylabel("drift (mean L2, model space)")
    if all(row["drift"] > 0 for cells in line.kinds.values() for row in cells):
        axis.set_yscale("log")
    mark_axis(axis, line, told=False)


def places(cells: Iterable[Row], by: str) -> list[float]:
    """Where cells lie on the horizontal axis."""
    return [row[by] for row in cells]


def mark_axis(axis: Any, line: Line, told: bool) -> None:
    """The horizontal axis: skipped steps, with evaluations and saved time on top if `told`, or falling levels."""
    cells = {row[line.by]: row for kind in reversed(line.kinds) for row in [line.start, *line.kinds[kind]]}
    shown = sorted(cells)
    if line.by == "level":
        axis.set_xscale("log")
        axis.set_xlim(shown[-1] * 1.15, shown[0] / 1.15)
        axis.set_xticks(shown, [f"{level:.3g}" for level in shown])
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_xlabel(f"level jumped to, {line.start['evaluations']} evaluations from there")
        return
    axis.set_xticks(shown)
    axis.set_xlim(shown[0] - 0.4, shown[-1] + 0.4)
    axis.set_xlabel(f"skipped steps of {line.steps}")
    if not told:
        return
    upper = axis.secondary_xaxis("top")
    costs = [f"{cells[skip]['evaluations']}\n{-saved(cells[skip], line.start):+.0%}" for skip in shown]
    costs[0] = f"{line.start['evaluations']}\n "
    upper.set_xticks(shown, costs, fontsize=8)
    upper.set_xlabel("network evaluations; time", fontsize=9)


def table(rows: list[Row]) -> dict[str, list[Any]]:
    """The numbers of the figure, a row a cell."""
    columns = {
        "sampler": [row.get("sampler", "") for row in rows],
        "steps": [row.get("steps", "") for row in rows],
        "jump": [row["kind"] for row in rows],
        "by": [row["by"] for row in rows],
    }
    columns |= {name: [row.get(name, "") for row in rows] for name in ("skip", "level", "evaluations")}
    columns |= {
        "distance": [row["estimate"].value for row in rows],
        "low": [row["estimate"].low for row in rows],
        "high": [row["estimate"].high for row in rows],
    }
    for name, field in (("increase", "value"), ("increase_low", "low"), ("increase_high", "high")):
        columns[name] = [getattr(row["change"], field) if row["change"] else "" for row in rows]
    rest = ("kernel_distance", "kernel_deviation", "drift", "seconds", "busy_seconds")
    return columns | {name: [row.get(name, "") for row in rows] for name in rest}


def draw_levels(found: list[Line], summary: dict[str, Any], path: Path, pdf: bool) -> Path:
    """Distance over the level jumped to (rows, the plain solver on top) and evaluations: a map a sampler and kind."""
    samplers = list(dict.fromkeys(line.sampler for line in found))
    kinds = [kind for kind in LOOKS if any(kind in line.kinds for line in found)]
    maps = {(kind, sampler): level_map(found, kind, sampler) for kind in kinds for sampler in samplers}
    held = np.concatenate([values.ravel() for _, _, values in maps.values()])
    norm = LogNorm(np.nanmin(held), max(np.nanmax(held), np.nanmin(held) * 1.01))
    rows, columns = (max(len(one[side]) for one in maps.values()) for side in (0, 1))
    size = {"width": 1.5 + 0.58 * columns, "height": 1.1 + 0.34 * rows}
    figure, axes = figures.panels(len(kinds), len(samplers), **size)
    for axis, ((kind, sampler), one) in zip(axes.ravel(), maps.items(), strict=True):
        draw_map(axis, *one, norm)
        axis.set_title(f"{NAMES.get(sampler, sampler)}, {LOOKS[kind][1]}", fontsize=9.5)
    for axis in axes[-1]:
        axis.set_xlabel("network evaluations")
    for axis in axes[:, 0]:
        axis.set_ylabel("level jumped to")
    figure.suptitle(
        f"{summary['distance']} of {summary['protocol']['dataset']}, {summary['n']} paired seeds; "
        "framed: least of a column",
        fontsize=10,
    )
    cells = [row for line in found for row in (line.start, *(row for kind in line.kinds.values() for row in kind))]
    return figures.save(figure, path, table(cells), pdf)


def level_map(found: list[Line], kind: str, sampler: str) -> tuple[list[float], list[int], np.ndarray]:
    """Levels from the highest, evaluations, and distances there; NaN where there is no cell."""
    own = sorted((line for line in found if line.sampler == sampler), key=lambda line: line.steps)
    cells = [[line.start, *line.kinds.get(kind, [])] for line in own]
    levels = sorted({row["level"] for column in cells for row in column}, reverse=True)
    values = np.full((len(levels), len(own)), np.nan)
    for place, column in enumerate(cells):
        for row in column:
            values[levels.index(row["level"]), place] = row["estimate"].value
    return levels, [line.start["evaluations"] for line in own], values


def draw_map(axis: Any, levels: list[float], counts: list[int], values: np.ndarray, norm: LogNorm) -> None:
    """One annotated map; the least distance of each column is framed."""
    axis.imshow(values, cmap="viridis", norm=norm, aspect="auto")
    axis.grid(False)
    axis.set_xticks(range(len(counts)), counts)
    axis.set_yticks(range(len(levels)), [f"{level:.3g}" for level in levels])
    axis.set_yticklabels([f"{levels[0]:.3g} (none)", *(f"{level:.3g}" for level in levels[1:])])
    axis.tick_params(length=0)
    for row, column in np.argwhere(np.isfinite(values)):
        value = values[row, column]
        text = f"{value:.3g}" if value < 1000 else f"{value:.0f}"
        shade = "white" if norm(value) < 0.6 else "black"
        axis.text(column, row, text, ha="center", va="center", fontsize=8, color=shade)
    for column in range(len(counts)):
        least = int(np.nanargmin(values[:, column]))
        axis.add_patch(
            Rectangle((column - 0.48, least - 0.46), 0.96, 0.92, fill=False, color=figures.COLOURS[1], lw=1.8)
        )


def draw_samples(line: Line, summary: dict[str, Any], path: Path, pdf: bool, columns: int = 10) -> Path:
    """The same seeds after ever longer jumps: one row of images a cell of the first kind."""
    shown = [line.start, *line.main]
    columns = min(columns, len(line.start["images"]))
    figure, axes = figures.panels(len(shown), 1, width=0.62 * columns + 1.2, height=0.66)
    for axis, row in zip(axes[:, 0], shown, strict=True):
        strip = np.concatenate([image.transpose(1, 2, 0) for image in row["images"][:columns]], axis=1)
        axis.imshow(np.broadcast_to(strip, (*strip.shape[:2], 3)), interpolation="nearest")
        axis.set_xticks([])
        axis.set_yticks([])
        axis.grid(False)
        for side in axis.spines.values():
            side.set_visible(False)
        label = f"skip {row['skip']}" if line.by == "skip" else f"level {row['level']:.3g}"
        axis.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
    protocol = summary["protocol"]
    seeds = f"seeds {protocol['seed_base']} to {protocol['seed_base'] + columns - 1}"
    figure.suptitle(f"{protocol['dataset']}: {line.title}, {seeds}", fontsize=10)
    numbers = {name: [row[name] for row in shown] for name in ("kind", "skip", "level", "drift")}
    return figures.save(figure, path, numbers, pdf)


if __name__ == "__main__":
    experiment.launch(main)
