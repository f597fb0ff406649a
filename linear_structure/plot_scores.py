"""Neural against closed-form scores: the figures over levels, directions and checkpoints, their numbers, and pictures.

RUN holds the cells that compare_scores.py made. Writes to RUN/scores/

    summary.json      every measure over levels at one checkpoint, and the level from which 99 % are explained
    scores.png        the measures over levels, on noised images        trajectory.png    the same along trajectories
    directions.png    the network's gain along each eigenvector against the Wiener filter's, and errors by groups of them
    denoised.png      what the denoisers see and say                    checkpoints.png   errors over training

each with its numbers as .csv (the gains in gains.csv), and those for which there are cells. Between two levels the
unexplained part is taken as a power of the level.

  python linear_structure/plot_scores.py runs/edm-cifar10
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from diffusion_model import arrays, checkpoint, experiment, figures, results
from diffusion_model.experiment import AtLeast
from linear_structure import cells, closed_forms, inputs
from linear_structure.compare_scores import KIND, POINTS
from linear_structure.measures import MEASURES, level_from

ALWAYS = ("mean", "isotropic", "gaussian")  # compared at every level
SHARE = 0.99
COLUMN = ("mean", "low", "high")
TITLES = {  # measure: (title, axis, scale, how much of 1 is left where that is what is drawn)
    "relative_error": ("|s_nn - s|² / |s_nn|²", "relative error of the score", "log", False),
    "cosine": ("1 - cos(s_nn, s)", "1 - cosine of the scores", "log", True),
    "explained_variance": ("1 - |D_nn - D|² / |D_nn|²", "explained variance of the denoiser", "linear", False),
    "centred": ("1 - Σ|D_nn - D|² / Σ|D_nn - mu|²", "explained variance, centred", "linear", False),
}
EXPLAINS = {  # what is explained: (measure, whether it is the unexplained part)
    "score": ("relative_error", True),
    "denoiser": ("explained_variance", False),
    "centred": ("centred", False),
}


def make_parser() -> experiment.Parser:
    """The command line."""
    parser = experiment.Parser(__doc__, prog="plot_scores.py")
    parser.add_argument(
        "run", metavar="RUN", type=Path, nargs="?", default=inputs.RUN, help="a run with compared scores"
    )
    parser.add_argument("--step", type=int, help="checkpoint of all figures but one (default: the newest compared)")
    parser.add_argument(
        "--pictures", type=AtLeast(1, most=1000), default=4, help="levels at which the denoised images are shown"
    )
    parser.add_argument(
        "--panels", type=AtLeast(1, most=1000), default=4, help="levels of the figure over checkpoints at most"
    )
    parser.add_pdf()
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    args = make_parser().parse_args(argv)
    folder = args.run / "scores"
    remedy = f"run `python linear_structure/compare_scores.py {args.run} PARAMS` first"
    noised, *others = (read(folder, points, remedy) for points in POINTS)
    if not noised:
        raise FileNotFoundError(f"no noised points in {folder}: {remedy}")
    step = choose_step(noised, args.step, folder)
    summary = summarise(noised, step)
    draw_scores(summary, folder / "scores.png", args.pdf)
    drawn = ["scores.png"]
    for points, found in zip(POINTS[1:], others, strict=True):
        if step in {cell.key["step"] for cell in found}:
            summary[points] = summarise(found, step)
            draw_scores(summary[points], folder / f"{points}.png", args.pdf)
            drawn.append(f"{points}.png")
    if draw_directions(noised, step, folder / "directions.png", remedy, args.pdf):
        drawn.append("directions.png")
    draw_pictures(summary, folder, args.pictures, remedy, args.pdf)
    summary["checkpoints"] = over_training(noised, args.run)
    if summary["checkpoints"]:
        draw_checkpoints(summary, args.panels, folder / "checkpoints.png", args.pdf)
        drawn.append("checkpoints.png")
    arrays.write_json(folder / "summary.json", summary)
    print(", ".join(str(folder / name) for name in [*drawn, "denoised.png", "summary.json"]))
    for sentence in [*best_sentences(summary), explains_sentence(summary)]:
        print(sentence)
    return 0


def read(folder: Path, points: str, remedy: str) -> list[results.Cell]:
    """The finished cells of one kind of points; none where there are none, and never of two protocols."""
    if not (folder / f"points={points}").is_dir():
        return []
    found = results.read_cells(folder / f"points={points}", remedy)
    first = found[0].protocol | {"form": None}
    for cell in found:
        other = [name for name, value in (cell.protocol | {"form": None}).items() if value != first.get(name)]
        if other:
            raise ValueError(
                f"{folder} mixes cells of several protocols ({', '.join(other)} of {cell.path}): remove it and {remedy}"
            )
    return found


def choose_step(found: list[results.Cell], step: int | None, folder: Path) -> int:
    """The checkpoint asked for, or the newest."""
    steps = sorted({cell.key["step"] for cell in found})
    if step is not None and step not in steps:
        raise ValueError(f"--step {step}: {folder} has scores of {', '.join(map(str, steps))}")
    return steps[-1] if step is None else step


def in_order(names: Collection[str]) -> list[str]:
    """Names of closed forms, the well-known ones first and the training images last."""
    known = [name for name in closed_forms.LOOKS if name in names and name != "delta"]
    return known + sorted(set(names) - {*known, "delta"}) + ["delta"] * ("delta" in names)


def summarise(found: list[results.Cell], step: int) -> dict[str, Any]:
    """Every measure at one checkpoint as lists over the levels, ascending; null where a form was not compared."""
    chosen = {(cell.key["form"], cell.key["level"]): cell for cell in found if cell.key["step"] == step}
    every = sorted({level for _, level in chosen})
    levels = [level for level in every if all((form, level) in chosen for form in ALWAYS)]
    if not levels:
        raise ValueError(f"no level of step {step} has all of {', '.join(ALWAYS)}: run compare_scores.py again")
    forms = in_order({form for form, _ in chosen})
    protocol = {name: value for name, value in found[0].protocol.items() if name != "form"}
    summary = {
        "format": arrays.FORMAT,
        "kind": "scores summary",
        "points": found[0].key["points"],
        "step": step,
        "levels": levels,
        "labels": {form: next(cell.value["label"] for (name, _), cell in chosen.items() if name == form) for form in forms},
        "protocol": protocol | {"step": step, "interval": "95 %, normal, over images"},
    }  # fmt: skip
    for measure in MEASURES:
        summary[measure] = {
            form: {end: [number(chosen, form, level, measure, end) for level in levels] for end in COLUMN}
            for form in forms
        }
    summary["explains"] = {"share": SHARE, "from_level": {form: explained_from(summary, form) for form in forms}}
    return summary


def number(chosen: Mapping[Any, results.Cell], form: str, level: float, measure: str, end: str) -> float | None:
    """One number of one cell, None where there is no such cell."""
    cell = chosen.get((form, level))
    return None if cell is None else cell.value[measure][end]


def explained_from(summary: dict[str, Any], form: str) -> dict[str, float | None]:
    """The level from which a closed form explains SHARE of the score, of the denoiser, and of it about the mean."""
    found = {}
    for name, (measure, unexplained) in EXPLAINS.items():
        values = summary[measure][form]["mean"]
        pairs = [(level, value) for level, value in zip(summary["levels"], values, strict=True) if value is not None]
        levels, parts = zip(*pairs, strict=True)
        found[name] = level_from(levels, [1 - part if unexplained else part for part in parts], SHARE)
    return found


def explains_sentence(summary: dict[str, Any]) -> str:
    """The levels from which the Gaussian explains SHARE, in words."""
    levels, found, parts = summary["levels"], summary["explains"]["from_level"]["gaussian"], []
    names = {"score": "the neural score", "denoiser": "the neural denoiser", "centred": "it about the mean"}
    for name, (measure, unexplained) in EXPLAINS.items():
        level, last = found[name], summary[measure]["gaussian"]["mean"][-1]
        if level is None:
            share = 1 - last if unexplained else last
            parts.append(f"of {names[name]} not even at the highest level {levels[-1]:.3g} ({share:.2%} there)")
        elif level == levels[0]:
            parts.append(f"of {names[name]} at every level, {level:.3g} and up")
        else:
            parts.append(f"of {names[name]} from level {level:.3g} on")
    return f"the Gaussian explains {SHARE:.0%} {'; '.join(parts)}"


def draw_scores(summary: dict[str, Any], path: Path, pdf: bool) -> None:
    """Every measure over levels."""
    figure, axes = figures.panels(2, 2, width=5.0, height=3.4)
    for axis, measure in zip(axes.flat, TITLES, strict=True):
        draw_measure(axis, summary, measure)
    axes[0, 0].axhline(1 - SHARE, color="black", linewidth=0.8, linestyle=":")
    for axis in axes[1]:
        axis.set_xlabel("noise level (model space)")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(f"{described(summary)}, step {summary['step']}", fontsize=10.5)
    table = {"level": summary["levels"]}
    for measure in MEASURES:
        for form in summary["labels"]:
            for end in COLUMN:
                table[f"{measure}_{form}" + ("" if end == "mean" else f"_{end}")] = summary[measure][form][end]
    figures.save(figure, path, table, pdf)


def draw_measure(axis: Any, summary: dict[str, Any], measure: str) -> None:
    """One measure of every closed form over the levels at which it was compared."""
    title, label, scale, left = TITLES[measure]
    for form, (name, colour) in closed_forms.looks(summary["labels"]).items():
        found = np.array([summary[measure][form][end] for end in COLUMN], float)
        there = np.isfinite(found[0])
        levels, (mean, low, high) = np.array(summary["levels"])[there], found[:, there]
        if left:
            mean, low, high = 1 - mean, 1 - high, 1 - low
        look = {"color": colour, "label": figures.legend_name(name), "zorder": 3 if form == "gaussian" else 2}
        axis.plot(levels, mean, f"o{style(form)}", markersize=3.5, **look)
        figures.band(axis, levels, np.maximum(low, mean / 10) if scale == "log" else low, high, colour)
    axis.set_xscale("log")
    axis.set_yscale(scale)
    axis.set_title(title)
    axis.set_ylabel(label)
    if scale == "linear":
        axis.set_ylim(-0.3, 1.03)


def style(form: str) -> str:
    """Dashed where labels are given."""
    return "--" if form.endswith(closed_forms.LABELLED) else "-"


def described(summary: dict[str, Any]) -> str:
    """The states compared, in words."""
    protocol = summary["protocol"]
    if summary["points"] == "noised":
        return f"{protocol['n']} noised images of {protocol['dataset']}/{protocol['split']}"
    return f"{protocol['n']} trajectories of the network itself, {protocol['dataset']}"


def draw_directions(found: list[results.Cell], step: int, path: Path, remedy: str, pdf: bool) -> bool:
    """The gain along each eigenvector against lambda / level^2, and the score's error by group; False without any."""
    chosen = [cell for cell in found if cell.key["step"] == step and cell.key["form"] == "gaussian"]
    chosen.sort(key=lambda cell: cell.key["level"])
    held = [
        arrays.read_folder(cell.path.with_name(cell.path.name.removesuffix(".json")), KIND, remedy)[0]
        for cell in chosen
    ]
    if not len(held[0]["lambdas"]):
        return False
    figure, axes = figures.panels(1, 2, width=5.2, height=4.0)
    levels = [cell.key["level"] for cell in chosen]
    draw_gains(figure, axes[0, 0], levels, held)
    draw_groups(axes[0, 1], levels, chosen, len(held[0]["lambdas"]))
    groups = [{"level": cell.key["level"], **group} for cell in chosen for group in cell.value["groups"]]
    table = {name: [group[name] for group in groups] for name in ("level", "first", "last", "variance")}
    table |= {f"relative_error_{end}": [group["relative_error"][end] for group in groups] for end in COLUMN}
    figures.save(figure, path, table, pdf)
    figures.write_table(path.with_name("gains.csv"), gains_table(levels, held))
    return True


def gains_table(levels: list[float], held: list[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The measured gain and the Wiener filter's, a row a level and eigenvector."""
    count = len(held[0]["lambdas"])
    found = {name: np.concatenate([entry[name] for entry in held]) for name in ("lambdas", "gain", "low", "high")}
    level = np.repeat(levels, count)
    wiener = found["lambdas"] / (found["lambdas"] + level**2)
    return {"level": level, "k": np.tile(np.arange(1, count + 1), len(levels)), **found, "wiener": wiener}


def draw_gains(figure: Any, axis: Any, levels: list[float], held: list[Mapping[str, np.ndarray]]) -> None:
    """Points (lambda / level^2, measured gain), a colour a level, and the Wiener filter's curve v / (1 + v)."""
    norm, colours = LogNorm(levels[0], levels[-1]), matplotlib.colormaps["viridis"]
    for level, entry in zip(levels, held, strict=True):
        v = entry["lambdas"] / level**2
        axis.plot(v, entry["gain"], ".", color=colours(norm(level)), markersize=3, alpha=0.6, markeredgewidth=0)
    low, high = min(held[-1]["lambdas"]) / levels[-1] ** 2, held[0]["lambdas"][0] / levels[0] ** 2
    v = np.geomspace(max(low, min(1e-5, high / 10)), min(high, 1e5), 200)
    axis.plot(v, v / (1 + v), color="black", linewidth=1.2, label="Wiener filter, v / (1 + v)")
    axis.set_xscale("log")
    axis.set_xlim(v[0], v[-1])
    axis.set_ylim(-0.15, 1.25)
    axis.set_xlabel("v = eigenvalue / level²")
    axis.set_ylabel("measured gain of the network's denoiser")
    axis.set_title("gain along each eigenvector")
    axis.legend(loc="upper left")
    figure.colorbar(matplotlib.cm.ScalarMappable(norm, colours), ax=axis, label="noise level")


def draw_groups(axis: Any, levels: list[float], chosen: list[results.Cell], rank: int) -> None:
    """Relative error of the Gaussian score within each group of eigenvectors, over levels."""
    groups = chosen[0].value["groups"]
    inside = matplotlib.colormaps["plasma"](np.linspace(0, 0.9, len(groups)))
    for place, group in enumerate(groups):
        errors = [cell.value["groups"][place]["relative_error"] for cell in chosen]
        label = f"{group['first']}" if group["first"] == group["last"] else f"{group['first']}-{group['last']}"
        label = "the rest" if group["first"] > rank else label
        axis.plot(levels, [error["mean"] for error in errors], color=inside[place], label=label, linewidth=1.5)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("noise level (model space)")
    axis.set_ylabel("relative error of the Gaussian score")
    axis.set_title("by groups of eigenvectors (k)")
    axis.legend(fontsize=7.5, ncols=2)


def draw_pictures(summary: dict[str, Any], folder: Path, count: int, remedy: str, pdf: bool) -> None:
    """What the denoisers see and say at a few levels, high noise on the right."""
    levels = summary["levels"]
    everywhere = [
        place
        for place in range(len(levels))
        if all(summary["cosine"][form]["mean"][place] is not None for form in summary["labels"])
    ]
    places = spaced(everywhere or range(len(levels)), count)
    chosen = [levels[place] for place in places]
    whole = [
        form
        for form in summary["labels"]
        if all(summary["cosine"][form]["mean"][place] is not None for place in places)
    ]
    forms = ["gaussian", "isotropic", *(form for form in whole if form not in ALWAYS)]
    figure, axes = figures.panels(2 + len(forms), len(chosen), width=2.6, height=0.5)
    for column, level in enumerate(chosen):
        strips = read_strips(folder, summary, forms, level, remedy)
        for axis, (name, strip) in zip(axes[:, column], strips.items(), strict=True):
            draw_strip(axis, strip, name if not column else "")
        axes[0, column].set_title(f"level {level:.3g}", fontsize=9)
    table = {"level": chosen}
    for form in whole:
        values = summary["explained_variance"][form]["mean"]
        table[f"explained_variance_{form}"] = [values[place] for place in places]
    figures.save(figure, folder / "denoised.png", table, pdf)


def spaced(entries: Sequence[Any], count: int) -> list[Any]:
    """At most `count` entries, evenly spaced, the first and the last among them."""
    places = np.linspace(0, len(entries) - 1, min(count, len(entries))).round().astype(int)
    return [entries[place] for place in dict.fromkeys(places.tolist())]


def read_strips(
    folder: Path, summary: dict[str, Any], forms: list[str], level: float, remedy: str
) -> dict[str, np.ndarray]:
    """Rows of images side by side [H, N*W, C]: the noised ones, the network's and those of closed forms."""
    found: dict[str, np.ndarray] = {}
    for form in forms:
        key = {"points": summary["points"], "step": summary["step"], "form": form, "level": level}
        held, _ = arrays.read_folder(cells.beside(folder, key), KIND, remedy)
        if form == "gaussian":
            found |= {"noised": held["noised"], "neural": held["neural"]}
        found[form] = held["denoised"]
    return {
        name: np.concatenate([image.transpose(1, 2, 0) for image in images], axis=1) for name, images in found.items()
    }


def draw_strip(axis: Any, strip: np.ndarray, name: str) -> None:
    """One row of images, without axes."""
    axis.imshow(np.broadcast_to(strip, (*strip.shape[:2], 3)), interpolation="nearest")
    axis.set_xticks([])
    axis.set_yticks([])
    axis.grid(False)
    for side in axis.spines.values():
        side.set_visible(False)
    if name:
        axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)


def over_training(found: list[results.Cell], run: Path) -> list[dict[str, Any]]:
    """For each level and closed form compared at several checkpoints: errors over images trained, and the best."""
    batch = checkpoint.read_run(run)["config"]["training.batch"]
    lines: dict[tuple[float, str], list[results.Cell]] = {}
    for cell in sorted(found, key=lambda cell: cell.key["step"]):
        lines.setdefault((cell.key["level"], cell.key["form"]), []).append(cell)
    made = []
    for (level, form), line in sorted(lines.items()):
        if len(line) < 2:
            continue
        errors = [cell.value["relative_error"]["mean"] for cell in line]
        images = [cell.key["step"] * batch for cell in line]
        best = int(np.argmin(errors))
        made.append({
            "level": level, "form": form, "label": line[0].value["label"], "images": images,
            "relative_error": {end: [cell.value["relative_error"][end] for cell in line] for end in COLUMN},
            "unexplained_denoiser": [1 - cell.value["explained_variance"]["mean"] for cell in line],
            "best": {"images": images[best], "relative_error": errors[best], "last": errors[-1]},
        })  # fmt: skip
    return made


def draw_checkpoints(summary: dict[str, Any], panels: int, path: Path, pdf: bool) -> None:
    """What closed forms leave unexplained of score and denoiser over images trained, a column a level; stars at the least."""
    lines = summary["checkpoints"]
    levels = sorted({line["level"] for line in lines})
    shown = spaced(levels, panels)
    labels = {line["form"]: line["label"] for line in lines}
    looks = closed_forms.looks({form: labels[form] for form in in_order(labels)})
    figure, axes = figures.panels(2, len(shown), width=3.3, height=2.9, sharex="col")
    for column, level in zip(axes.T, shown, strict=True):
        for line in (line for line in lines if line["level"] == level):
            draw_line(column, line, looks[line["form"]][1])
        column[0].set_title(f"level {level:.3g}")
        column[1].set_xlabel("images trained")
        for axis in column:
            axis.set_xscale("log")
            axis.set_yscale("log")
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=9))
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_formatter(NullFormatter())
    axes[0, 0].set_ylabel("score: relative error")
    axes[1, 0].set_ylabel("denoiser: 1 - explained variance")
    handles = [Line2D([], [], color=colour, label=label) for label, colour in looks.values()]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(f"{described(summary)}; a star where a closed form is closest to the network", fontsize=10.5)
    figures.save(figure, path, training_table(lines), pdf)


def draw_line(axes: Sequence[Any], line: dict[str, Any], colour: str) -> None:
    """One closed form at one level: the score's error above, the denoiser's below."""
    error, images = line["relative_error"], line["images"]
    figures.band(axes[0], images, np.maximum(error["low"], np.array(error["mean"]) / 10), error["high"], colour)
    for axis, values in zip(axes, (error["mean"], line["unexplained_denoiser"]), strict=True):
        axis.plot(images, values, style(line["form"]), color=colour)
        best = int(np.argmin(values))
        axis.plot(images[best], values[best], "*", color=colour, markersize=10, markeredgecolor="white", zorder=3)


def training_table(lines: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """The figure over checkpoints in numbers, a row a closed form, level and checkpoint."""
    rows = [(line, place) for line in lines for place in range(len(line["images"]))]
    table = {name: [line[name] for line, _ in rows] for name in ("level", "form")}
    table["images"] = [line["images"][place] for line, place in rows]
    for end in COLUMN:
        table[f"relative_error_{end}"] = [line["relative_error"][end][place] for line, place in rows]
    table["unexplained_denoiser"] = [line["unexplained_denoiser"][place] for line, place in rows]
    return table


def best_sentences(summary: dict[str, Any]) -> list[str]:
    """When the Gaussian score agreed best, a sentence a level."""
    return [
        f"level {line['level']:.3g}: the Gaussian score is closest to the neural one after {line['best']['images']:,} images "
        f"(relative error {line['best']['relative_error']:.3g}; {line['best']['last']:.3g} at the last checkpoint)"
        for line in summary["checkpoints"]
        if line["form"] == "gaussian"
    ]


if __name__ == "__main__":
    experiment.launch(main)
