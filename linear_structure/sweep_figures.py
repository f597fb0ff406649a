"""Figures of a sweep over skips, each with its numbers beside it.

distance.png   distance against skipped steps or levels, a panel a sampler and number of steps
levels.png     distance over level jumped to and number of evaluations, where a sweep has jumps to levels
samples.png    the same seeds after ever longer jumps
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, NullFormatter

from diffusion_model import figures
from linear_structure.summaries import NAMES, Line, Row, lines, saved, table

LOOKS = {  # kind: (colour, label)
    "gaussian": (figures.COLOURS[0], "Gaussian jump"),
    "mixture": (figures.COLOURS[3], "mixture jump"),
    "isotropic": (figures.COLOURS[1], "isotropic jump (mean and variance)"),
    "mean": (figures.COLOURS[4], "isotropic jump (mean only)"),
}


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
