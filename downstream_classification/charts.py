"""Figures of accuracies: against time, granularity, latent size and number of labels, and over blocks and times.

Each figure has a panel an attribute (or more), a legend to its right, one colour and line a head throughout, and its
numbers beside it as CSV. A line is the mean over encoders and head seeds, shaded one standard deviation.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from diffusion_model import figures
from downstream_classification.accuracies import FAMILIES, Score, best, in_network_order, of_one_time, of_several_times
from downstream_classification.summaries import families, main_family

GREY = "#808080"
CONTROLS = {"untrained": ("s", "-."), "pixels": ("x", ":"), "pca": ("+", "--")}  # marker and line, in grey
SINGLE = figures.COLOURS[0]
SINGLE_LINES = {"mlp": "-", "linear": "--"}  # of heads of one time; of all others dotted
MIXING = {
    "concat": "#009E73",
    "mean": "#E69F00",
    "weights": "#CC79A7",
    "vote": "#56B4E9",
    "gru": "#000000",
    "transformer": "#D55E00",
}  # colours of heads that mix, by the first word of their names
OTHERS = ("#332288", "#117733", "#882255", "#999933", "#AA4499")  # of heads that are not listed there
READOUT_LINES = {"linear": "--"}  # by the last word; of all others solid
HIDING_LINES = (":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))  # of heads from which something was hidden
MOST_MARKS = 20  # points of a line; of more, none is marked
COLUMNS = ("panel", "source", "head", "times", "labels", "x", "test", "deviation", "validation", "encoders", "seeds")


@dataclass
class Line:
    """A line of one panel: scores by their place on the horizontal axis."""

    label: str
    points: Mapping[float, Score]
    look: Mapping[str, Any]


@dataclass
class Panel:
    """One panel: lines, levels (scores that belong to no place on the axis) and the accuracy of chance."""

    title: str
    lines: list[Line] = field(default_factory=list)
    levels: list[tuple[str, Score, Mapping[str, Any]]] = field(default_factory=list)
    chance: float | None = None


def looks(methods: Iterable[str]) -> dict[str, dict[str, Any]]:
    """A colour and a line for each head that mixes, heads of one kind side by side."""
    kinds = list(MIXING)
    ordered = sorted(
        set(methods), key=lambda method: (kinds.index(kind_of(method)) if kind_of(method) in kinds else 99, method)
    )
    hiding = [method for method in ordered if "(" in method]
    return {
        method: {
            "color": MIXING.get(kind_of(method), OTHERS[sum(map(ord, kind_of(method))) % len(OTHERS)]),
            "linestyle": HIDING_LINES[hiding.index(method) % len(HIDING_LINES)]
            if method in hiding
            else READOUT_LINES.get(method.partition("-")[2], "-"),
        }
        for method in ordered
    }


def kind_of(method: str) -> str:
    """concat of concat-linear, transformer of transformer (CLS hidden)."""
    return method.partition(" ")[0].partition("-")[0]


def arrange(count: int) -> tuple[int, int, float, float]:
    """Rows and columns of so many panels, and the width and height of one in inches."""
    columns = 1 if count == 1 else 2 if count <= 6 else min(6, math.ceil(math.sqrt(count)))
    scale = 1.0 if columns <= 2 else 2.4 / columns + 0.2
    return -(-count // columns), columns, figures.WIDTH * scale, 3.2 * scale


def draw(
    panels: Sequence[Panel], path: Path, x: str, pdf: bool = False, prepare: Callable[[Any], None] | None = None,
    shape: tuple[int, int] | None = None,
) -> Path:  # fmt: skip
    """A figure of panels with one legend to the right; `prepare` sets up the horizontal axis of each, `shape` rows and columns."""
    rows, columns, width, height = arrange(len(panels))
    if shape:
        rows, columns = shape
        width, height = figures.WIDTH * (1.0 if columns <= 2 else 0.8), 3.0
    figure, axes = figures.panels(rows, columns, width, height)
    figure.set_figwidth(figure.get_figwidth() + 2.6)  # the legend's
    table: dict[str, list] = {name: [] for name in COLUMNS}
    handles: dict[str, Any] = {}
    for index, (axis, panel) in enumerate(zip(axes.flat, panels, strict=False)):
        draw_panel(axis, panel, table)
        if prepare:
            prepare(axis)
        if shape:
            share_height(list(axes[index // columns, : index % columns + 1]))
        handles |= {label: handle for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    for axis in list(axes.flat)[len(panels) :]:
        axis.set_axis_off()
    for index, axis in enumerate(axes.flat):
        axis.set_ylabel("test accuracy, %" if index % columns == 0 else "")
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}"))
        axis.set_xlabel(x if index + columns >= len(panels) else "")
    figure.legend(handles.values(), handles, loc="outside right upper", frameon=False)
    return figures.save(figure, path, table, pdf)


def share_height(axes: Sequence[Any]) -> None:
    """One vertical range for all of these."""
    lows, highs = zip(*(axis.get_ylim() for axis in axes), strict=True)
    for axis in axes:
        axis.set_ylim(min(lows), max(highs))


def draw_panel(axis: Any, panel: Panel, table: dict[str, list]) -> None:
    """One panel, its numbers added to the table."""
    for line in panel.lines:
        places = sorted(line.points)
        tests = np.array([line.points[place].test for place in places])
        spread = np.array([line.points[place].deviation or 0.0 for place in places])
        look = dict(line.look) | ({"marker": None} if len(places) > MOST_MARKS else {})
        axis.plot(places, tests, label=figures.legend_name(line.label), **look)
        figures.band(axis, places, tests - spread, tests + spread, line.look["color"])
        for place in places:
            record(table, panel.title, line.points[place], place)
    for label, score, look in panel.levels:
        axis.axhline(score.test, label=figures.legend_name(label), linewidth=1.5, **look)
        record(table, panel.title, score, None)
    low, high = axis.get_ylim()
    if panel.chance is not None and panel.chance > low - 0.3 * (high - low):  # else it would press the lines together
        axis.axhline(panel.chance, color=GREY, linestyle=(0, (1, 3)), linewidth=1.2, label="chance")
    axis.set_title(panel.title)


def record(table: dict[str, list], panel: str, score: Score, place: float | None) -> None:
    """Add one score to a figure's numbers."""
    times = score.times if score.mixes else f"{score.times:g}"
    deviation = "" if score.deviation is None else f"{score.deviation:.5f}"
    row = (panel, score.source, score.method, times, score.labels or "", "" if place is None else f"{place:g}",
           f"{score.test:.5f}", deviation, f"{score.validation:.5f}", len(score.runs), " ".join(map(str, score.seeds)))  # fmt: skip
    for column, value in zip(table.values(), row, strict=True):
        column.append(value)


def over_times(scores: Sequence[Score], title: str, head: str | None) -> Panel:
    """Accuracy against single time, the heads that mix as levels; of blocks, the one that validation chose."""
    whole = of_several_times([score for score in scores if score.labels is None])
    main = main_family(whole)
    panel = Panel(title, chance=whole[0].protocol["chance"])
    for family in families(whole):
        single = [score for score in whole if score.family == family and not score.mixes]
        chosen = best(of_one_time(single, head))
        methods = {score.method for score in single} if family == main else {chosen.method} if chosen else set()
        for method in sorted(methods, key=lambda method: (method != (chosen and chosen.method), method)):
            add_single(panel, of_one_time(single, method), family == main)
    ours = [score for score in whole if score.family == main and score.mixes]
    grids = {score.granularity for score in ours}
    seen = f"all times of k = {grids.pop()}" if len(grids) == 1 else "all times"
    for method, look in looks(score.method for score in ours).items():
        panel.levels.append((f"{method}, {seen}", best(score for score in ours if score.method == method), look))
    return panel


def add_single(panel: Panel, scores: Sequence[Score], main: bool) -> None:
    """The line of one head at single times, of the source that validation chose; a level where there is one time."""
    chosen = best(scores)
    points = {score.times: score for score in scores if score.source == chosen.source}
    name = (
        f"{FAMILIES.get(chosen.family, 'best block' if chosen.family == 'blocks' else chosen.source)}, {chosen.method}"
    )
    marker, line = CONTROLS.get(chosen.family, ("^", "-."))
    if main:
        line = SINGLE_LINES.get(chosen.method, ":")
        marker = "o" if line == "-" else None
    look: dict[str, Any] = {"color": SINGLE if main else GREY, "linestyle": line}
    if len(points) > 1:
        panel.lines.append(Line(f"{name} at each time", points, {**look, "marker": marker}))
    else:
        panel.levels.append((name, chosen, look))


def compared(scores: Sequence[Score], head: str | None) -> dict[str, tuple[list[Score], dict[str, Any]]]:
    """What the other figures compare in the main family: the single head, and each head that mixes, with their looks."""
    family = main_family(scores)
    ours = [score for score in scores if score.family == family]
    found = {}
    single = of_one_time(ours, head)
    if single:
        found[f"{head}, best single time" if head else "best single time"] = (
            single,
            {"color": SINGLE, "linestyle": "-"},
        )
    for method, look in looks(score.method for score in ours if score.mixes).items():
        found[method] = ([score for score in ours if score.method == method and score.mixes], look)
    return found


def against(
    scores: Sequence[Score], title: str, head: str | None, place: Callable[[Score], Iterable[float]]
) -> Panel:  # fmt: skip
    """A panel of the single head and the heads that mix, each at its best view among those of one place."""
    panel = Panel(title, chance=scores[0].protocol["chance"])
    lines = []
    for name, (ours, look) in compared(scores, head).items():
        by_place: dict[float, list[Score]] = {}
        for score in ours:
            for value in place(score):
                by_place.setdefault(value, []).append(score)
        lines.append(Line(name, {value: best(members) for value, members in by_place.items()}, {**look, "marker": "o"}))
    longest = max((len(line.points) for line in lines), default=0)
    panel.lines = [line for line in lines if len(line.points) > 1 or longest == 1]  # a point alone says nothing here
    return panel


def logarithmic(places: Iterable[float]) -> Callable[[Any], None]:
    """A horizontal axis of logarithmic scale with a tick at each of these places, or at as many as can be read."""
    ticks = sorted(set(places))
    while len(ticks) > 9:
        ticks = ticks[::2]

    def prepare(axis: Any) -> None:
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(FixedLocator(ticks))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter(
            FuncFormatter(lambda value, _: f"{value / 1000:g}k" if value >= 1000 else f"{value:g}")
        )

    return prepare


def draw_blocks(scores: Sequence[Score], attributes: Sequence[str], head: str, path: Path, pdf: bool = False) -> Path:
    """Accuracy of one head of one time over blocks and times, a map an attribute; framed: what validation chose."""
    rows, columns, *_ = arrange(len(attributes))
    blocks = sorted({score.source for score in scores}, key=in_network_order)
    times = sorted({score.times for score in scores})
    size = max(2.6, 0.26 * len(blocks) + 1.2)
    figure, axes = figures.panels(rows, columns, max(4.2, 0.42 * len(times) + 2.2), size)
    table: dict[str, list] = {name: [] for name in COLUMNS}
    for axis, attribute in zip(axes.flat, attributes, strict=False):
        ours = [score for score in scores if score.attribute == attribute]
        matrix = np.full((len(blocks), len(times)), np.nan)
        for score in ours:
            matrix[blocks.index(score.source), times.index(score.times)] = 100 * score.test
            record(table, attribute, score, score.times)
        chosen = best(ours)
        draw_map(figure, axis, matrix, [block.removeprefix("block-") for block in blocks], times)
        axis.set_title(f"{attribute}: {head}")
        if chosen:
            frame(axis, times.index(chosen.times) - 0.5, blocks.index(chosen.source) - 0.5)
    for axis in list(axes.flat)[len(attributes) :]:
        axis.set_axis_off()
    return figures.save(figure, path, table, pdf)


def frame(axis: Any, left: float, bottom: float) -> None:
    """Frame one cell of a map."""
    axis.plot([left, left + 1, left + 1, left, left], [bottom, bottom, bottom + 1, bottom + 1, bottom], color="#D55E00",
              linewidth=2)  # fmt: skip


def draw_map(figure: Figure, axis: Any, matrix: np.ndarray, blocks: Sequence[str], times: Sequence[float]) -> None:
    """A map of accuracies in per cent [blocks, times], its values written in the cells where they fit."""
    image = axis.imshow(matrix, cmap="viridis", aspect="auto")
    axis.grid(False)
    shown = range(0, len(times), -(-len(times) // 11))
    axis.set_xticks(shown, [f"{times[index]:.3g}" for index in shown])
    axis.set_yticks(range(len(blocks)), blocks, fontsize=8)
    axis.set_xlabel("noise time t")
    figure.colorbar(image, ax=axis, label="test accuracy, %", shrink=0.85)
    if len(times) > 12:
        return
    middle = (np.nanmin(matrix) + np.nanmax(matrix)) / 2
    for row, column in np.ndindex(matrix.shape):
        if np.isfinite(matrix[row, column]):
            shade = "white" if matrix[row, column] < middle else "black"
            axis.text(column, row, f"{matrix[row, column]:.0f}", ha="center", va="center", fontsize=7, color=shade)
