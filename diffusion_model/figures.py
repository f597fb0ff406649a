"""One style for every figure; each is saved as PNG with its numbers beside it as CSV (and as PDF on request)."""

import csv
import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter

from diffusion_model import arrays

# Okabe and Ito's colours: told apart by the colour-blind and in grey print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4D4D4D", "#F0E442")
TEXT, TICK = 200, 60  # letters of a text in a figure, and of a name along an axis
WIDTH = 4.8  # inches of one panel
STYLE = {
    "figure.dpi": 110,
    "savefig.dpi": 130,
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "axes.prop_cycle": matplotlib.cycler(color=COLOURS),
}


def panels(
    rows: int = 1, columns: int = 1, width: float = WIDTH, height: float = 3.4, **options: Any
) -> tuple[Figure, np.ndarray]:
    """A figure and its axes [rows, columns] in the project's style; sizes in inches a panel."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, axes


def save(figure: Figure, path: Path, table: Mapping[str, Iterable[Any]], pdf: bool = False) -> Path:
    """Write `path` (.png), its numbers as CSV (`table`: column name -> values) and, if asked, a PDF; returns the PNG's path."""
    path = Path(path).with_suffix(".png")
    write_table(path.with_suffix(".csv"), table)
    spell(figure)
    with matplotlib.rc_context(STYLE):
        arrays.write_atomically(path, lambda temporary: figure.savefig(temporary, format="png"))
        if pdf:
            arrays.write_atomically(path.with_suffix(".pdf"), lambda temporary: figure.savefig(temporary, format="pdf"))
    return path


def spell(figure: Figure) -> None:
    """Take every text of a figure literally: names come from data, and matplotlib reads `$x$` in them as mathematics.

    Control characters are made visible and long texts cut; numbers along an axis stay matplotlib's own.
    """
    numbers = set()
    for axis in (side for axes in figure.axes for side in (axes.xaxis, axes.yaxis)):
        ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
        numbers |= {axis.offsetText, *(label for tick in ticks for label in (tick.label1, tick.label2))}
        if isinstance(names := axis.get_major_formatter(), FuncFormatter):
            axis.set_major_formatter(FuncFormatter(functools.partial(_literal, names)))
    for text in figure.findobj(Text):
        if text not in numbers:
            text.set_parse_math(False)
            text.set_text(_cut(text.get_text(), TEXT))


def legend_name(name: str) -> str:
    """A name for a legend, which leaves out what begins with an underscore."""
    return f" {name}" if name.startswith("_") else name


def _literal(names: Callable[..., str], value: float, place: int | None = None) -> str:
    """The name of a place along an axis, its dollars escaped: of what stands there no more than the text is asked for."""
    return re.sub(r"(?<!\\)\$", r"\\$", _cut(names(value, place), TICK))


def _cut(text: object, longest: int) -> str:
    shown = arrays.plain(str(text))
    return shown if len(shown) <= longest else f"{shown[: longest - 3]}..."


def spreadsheet(value: Any) -> Any:
    """A value for CSV: text that a spreadsheet would run as a formula stands behind an apostrophe, as it does there."""
    if not isinstance(value, str):
        return value
    shown = arrays.plain(value)
    if not shown.startswith(("=", "+", "-", "@", "\t")):
        return shown
    try:
        float(shown)
    except ValueError:
        return f"'{shown}"
    return shown


def write_table(path: Path, table: Mapping[str, Iterable[Any]]) -> Path:
    """Write columns of equal length as CSV; unequal lengths are a ValueError."""
    columns = {name: list(values) for name, values in table.items()}
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"columns of one table must have one length, got {lengths}")

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(map(spreadsheet, columns))
            writer.writerows([spreadsheet(value) for value in row] for row in zip(*columns.values(), strict=True))

    arrays.write_atomically(path, write)
    return path


def read_table(path: Path) -> dict[str, list[str]]:
    """Columns of a CSV as strings; a file that is none, or has rows of other lengths than its first, is a ValueError."""
    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
            rows = [[arrays.plain(value) for value in row] for row in csv.reader(file, strict=True)]
    except (csv.Error, ValueError) as error:
        raise ValueError(f"{path} is no table ({error}): {arrays.AGAIN}") from None
    if not rows or not rows[0] or {len(row) for row in rows} != {len(set(rows[0]))}:
        raise ValueError(f"{path} has rows of different lengths, or columns of one name: {arrays.AGAIN}")
    return {name: [row[index] for row in rows[1:]] for index, name in enumerate(rows[0])}


def band(axis: Any, x: Sequence[float], low: Sequence[float], high: Sequence[float], colour: str) -> None:
    """Shade an interval around a line of the same colour."""
    axis.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)


def heat_map(
    figure: Figure,
    axis: Any,
    matrix: np.ndarray,
    labels: Sequence[str],
    title: str,
    unit: str,
    show_values: bool = True,
) -> None:
    """A square map [T, T] with its values written in the cells where they fit."""
    image = axis.imshow(matrix, cmap="viridis", origin="lower")
    axis.grid(False)
    axis.set_title(title)
    axis.set_xticks(range(len(labels)), labels, rotation=60 if len(labels) > 6 else 0)
    axis.set_yticks(range(len(labels)), labels)
    figure.colorbar(image, ax=axis, label=unit, shrink=0.85)
    if show_values and len(labels) <= 11:
        middle = (np.nanmin(matrix) + np.nanmax(matrix)) / 2
        for row, column in np.ndindex(matrix.shape):
            if np.isfinite(matrix[row, column]):
                shade = "white" if matrix[row, column] < middle else "black"
                axis.text(
                    column, row, f"{matrix[row, column]:.1f}", ha="center", va="center", fontsize=6.5, color=shade
                )


def image_grid(images: np.ndarray, columns: int, path: Path) -> Path:
    """Write uint8 images [N, C, H, W] as one PNG, one pixel apart, enlarged to at least 64 pixels a side."""
    from PIL import Image

    count, _, height, width = images.shape
    rows = -(-count // columns)
    sheet = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1, 3), 255, np.uint8)
    for index, image in enumerate(images):
        top, left = index // columns * (height + 1), index % columns * (width + 1)
        sheet[top : top + height, left : left + width] = np.broadcast_to(image.transpose(1, 2, 0), (height, width, 3))
    scale = max(1, 64 // height)
    picture = Image.fromarray(sheet).resize((sheet.shape[1] * scale, sheet.shape[0] * scale), Image.Resampling.NEAREST)
    arrays.write_atomically(Path(path), lambda temporary: picture.save(temporary, format="PNG", optimize=True))
    return Path(path)
