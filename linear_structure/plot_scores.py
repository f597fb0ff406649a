"""Neural against isotropic and Gaussian score over noise levels: the figure, its numbers and pictures of the denoisers.

RUN holds the cells that compare_scores.py made. Writes scores.png (.csv), denoised.png (.csv) and summary.json to RUN/scores/.

  python linear_structure/plot_scores.py runs/edm-cifar10
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_model import arrays, experiment, figures, results
from diffusion_model.experiment import AtLeast
from linear_structure import inputs
from linear_structure.compare_scores import beside

LOOKS = {  # closed form: (colour, label)
    "mean": (figures.COLOURS[4], "isotropic (mean only)"),
    "isotropic": (figures.COLOURS[1], "isotropic (mean and variance)"),
    "gaussian": (figures.COLOURS[0], "Gaussian"),
}
MEASURES = ("relative_error", "explained_variance")


def make_parser() -> experiment.Parser:
    """The command line."""
    parser = experiment.Parser(__doc__, prog="plot_scores.py")
    parser.add_argument(
        "run", metavar="RUN", type=Path, nargs="?", default=inputs.RUN, help="a run with compared scores"
    )
    parser.add_argument("--pictures", type=AtLeast(1), default=4, help="levels at which the denoised images are shown")
    parser.add_argument("--pdf", action="store_true", help="also write the figures as PDF")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    args = make_parser().parse_args(argv)
    folder = args.run / "scores"
    remedy = f"run `python linear_structure/compare_scores.py {args.run} PARAMS` first"
    cells = sorted(results.read_cells(folder, remedy), key=lambda cell: cell.key["level"])
    protocols = {str(sorted(cell.protocol.items())) for cell in cells}
    if len(protocols) > 1:
        raise ValueError(f"{folder} mixes levels of {len(protocols)} protocols: remove it and {remedy}")
    summary = summarise(cells)
    arrays.write_json(folder / "summary.json", summary)
    draw_scores(summary, folder / "scores.png", args.pdf)
    draw_pictures(cells, args.pictures, folder / "denoised.png", remedy, args.pdf)
    level, middle = summary["levels"][-1], summary["levels"][len(cells) // 2]
    found = {name: summary["relative_error"][name]["mean"] for name in ("isotropic", "gaussian")}
    print(
        f"relative error of the Gaussian against the isotropic score: {found['gaussian'][len(cells) // 2]:.3g} against "
        f"{found['isotropic'][len(cells) // 2]:.3g} at level {middle:.3g}, {found['gaussian'][-1]:.3g} against "
        f"{found['isotropic'][-1]:.3g} at level {level:.3g}"
    )
    print(f"{folder / 'scores.png'}, {folder / 'denoised.png'}, {folder / 'summary.json'}")
    return 0


def summarise(cells: list[results.Cell]) -> dict[str, Any]:
    """Every measure as lists over the levels, ascending."""
    summary = {
        "format": arrays.FORMAT,
        "kind": "scores summary",
        "levels": [cell.key["level"] for cell in cells],
        "protocol": cells[0].protocol | {"interval": "95 %, normal, over images"},
    }
    for measure in MEASURES:
        summary[measure] = {
            form: {end: [cell.value[measure][form][end] for cell in cells] for end in ("mean", "low", "high")}
            for form in LOOKS
        }
    summary["centred"] = {form: [cell.value["centred"][form] for cell in cells] for form in LOOKS}
    return summary


def draw_scores(summary: dict[str, Any], path: Path, pdf: bool) -> None:
    """Relative error of the score (log-log) and the denoiser's explained variance over levels."""
    figure, axes = figures.panels(1, 2, width=5.0, height=3.8)
    levels = summary["levels"]
    for axis, measure in zip(axes[0], MEASURES, strict=True):
        for form, (colour, label) in LOOKS.items():
            found = summary[measure][form]
            axis.plot(levels, found["mean"], "o-", color=colour, label=label)
            figures.band(axis, levels, found["low"], found["high"], colour)
        axis.set_xscale("log")
        axis.set_xlabel("noise level (model space)")
    axes[0, 0].set_yscale("log")
    axes[0, 0].set_ylabel("relative error of the score")
    axes[0, 0].set_title("|s_nn - s|² / |s_nn|²")
    axes[0, 0].legend(frameon=False)
    for form, (colour, _) in LOOKS.items():
        if form != "mean":
            axes[0, 1].plot(
                levels, summary["centred"][form], "--", color=colour, linewidth=1.2, label="centred on the mean"
            )
    axes[0, 1].set_ylabel("explained variance of the denoiser")
    axes[0, 1].set_title("1 - |D_nn - D|² / |D_nn|² (dashed: centred)")
    axes[0, 1].set_ylim(-0.3, 1.03)
    protocol = summary["protocol"]
    figure.suptitle(f"{protocol['dataset']}/{protocol['split']}, {protocol['n']} noised images", fontsize=10.5)
    table = {"level": levels}
    for measure in MEASURES:
        for form in LOOKS:
            for end in ("mean", "low", "high"):
                table[f"{measure}_{form}" + ("" if end == "mean" else f"_{end}")] = summary[measure][form][end]
    table |= {f"centred_{form}": summary["centred"][form] for form in LOOKS}
    figures.save(figure, path, table, pdf)


def draw_pictures(cells: list[results.Cell], count: int, path: Path, remedy: str, pdf: bool) -> None:
    """What the denoisers see and say at a few levels, high noise on the right."""
    places = np.unique(np.linspace(0, len(cells) - 1, min(count, len(cells))).round().astype(int))
    chosen = [cells[place] for place in places]
    rows = ("noised", "neural", "gaussian", "isotropic")
    figure, axes = figures.panels(len(rows), len(chosen), width=2.6, height=0.62)
    for column, cell in enumerate(chosen):
        held, _ = arrays.read_folder(beside(path.parent, cell.key["level"]), "denoised images", remedy)
        for row, name in enumerate(rows):
            axis = axes[row, column]
            strip = np.concatenate([image.transpose(1, 2, 0) for image in held[name]], axis=1)
            axis.imshow(np.broadcast_to(strip, (*strip.shape[:2], 3)), interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            axis.grid(False)
            for side in axis.spines.values():
                side.set_visible(False)
            if not column:
                axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
        axes[0, column].set_title(f"level {cell.key['level']:.3g}", fontsize=9)
    levels = [cell.key["level"] for cell in chosen]
    table = {"level": levels}
    table |= {
        f"explained_variance_{form}": [cell.value["explained_variance"][form]["mean"] for cell in chosen]
        for form in LOOKS
    }
    figures.save(figure, path, table, pdf)


if __name__ == "__main__":
    experiment.launch(main)
