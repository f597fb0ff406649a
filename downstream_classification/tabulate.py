"""Accuracy against time: what each time of a trajectory knows, and what mixing all times adds.

RUN holds classify/, as classify.py writes it. For each attribute: the head of one time at every time of the trained and
of the untrained encoder, raw pixels, chance, and the heads that mix all times.

The best time of each encoder is the one of the highest *validation* accuracy (mean over seeds, the earliest of equals);
test accuracies choose nothing. Differences are paired: both sides are scored on the same test images, averaged over
seeds, and the images are resampled 2,000 times; intervals are the central 95 % of the resampled means. They cover the
choice of test images, not the training of the encoder.

Written to --out: accuracy_RUN.png and .csv (every point of the figure), .md (the same as a table) and .json (the summary).
"""

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_model import arrays, experiment, figures, results

REMEDY = "run `python downstream_classification/classify.py RUN/trajectories/encoder` first"
RESAMPLES = 2000
BLOCK = 200  # resamples at once: 200 x 10,000 counts are 16 MB
SOURCES = {"encoder": "trained encoder", "untrained": "untrained encoder", "pixels": "pixels"}
CELL = {  # as classify.py writes it and `arrays.expect` takes it
    "key": {"source": str, "attribute": str, "head": str, "times": (float, str), "seed": int},
    "value": {"validation": float, "test": float, "count": int, "correct": str},
    "protocol": {"chance": float, "majority": float, "classes": int, "dimension": int, "test_images": int},
}
COLUMNS = ("attribute", "source", "head", "times", "validation", "test", "lowest_seed", "highest_seed", "seeds")
MUST_AGREE = ("test_images", "test_labels", "standardise", "validation_fraction")  # or a comparison is none


@dataclass(frozen=True)
class Score:
    """One head on one view: the mean over seeds of validation accuracy and of each test image's hits [N]."""

    source: str
    attribute: str
    head: str
    times: float | str
    seeds: tuple[int, ...]
    validation: float
    tests: tuple[float, ...]  # test accuracy by seed
    hits: np.ndarray
    protocol: Mapping[str, Any]

    @property
    def test(self) -> float:
        """Mean test accuracy over seeds."""
        return float(np.mean(self.tests))

    @property
    def mixes(self) -> bool:
        """Whether the head saw several times."""
        return isinstance(self.times, str)


def parser() -> experiment.Parser:
    """The command line."""
    options = experiment.Parser(__doc__, prog="tabulate.py")
    options.add_argument("run", type=Path, metavar="RUN", help="run folder with classify/")
    options.add_argument("--out", type=Path, default=Path("tables"), metavar="DIR", help="folder to write to")
    options.add_argument("--head", default="mlp", help="head of one time to compare by")
    options.add_argument("--pdf", action="store_true", help="write the figure as PDF too")
    return options


def main(argv: Sequence[str] | None = None) -> None:
    """Read the cells, write figure, tables and summary."""
    args = parser().parse_args(argv)
    scores = read(args.run)
    heads = sorted({score.head for score in scores if not score.mixes})
    if args.head not in heads:
        raise experiment.UsageError(f"--head: no results of {args.head!r} in {args.run}; there are: {', '.join(heads)}")
    scores = [score for score in scores if score.mixes or score.head == args.head]
    attributes = list(dict.fromkeys(score.attribute for score in scores if score.source == "encoder"))
    missing = [source for source in SOURCES if source not in {score.source for score in scores}]
    if "encoder" in missing:
        raise FileNotFoundError(f"no results of the trained encoder in {args.run}/classify: {REMEDY}")
    for source in missing:
        print(f"no results for {SOURCES[source]}: run classify.py {args.run}/trajectories/{source} to compare with it")

    name = f"accuracy_{args.run.resolve().name}"
    summaries = {attribute: summarise(scores, attribute) for attribute in attributes}
    draw(scores, attributes, args.head, args.out / f"{name}.png", args.pdf)
    table = markdown(summaries, scores, attributes)
    arrays.write_atomically(args.out / f"{name}.md", lambda temporary: temporary.write_text(table))
    command = ["python", "downstream_classification/tabulate.py", *(sys.argv[1:] if argv is None else argv)]
    summary = {
        "kind": "accuracy summary",
        "run": str(args.run),
        "head": args.head,
        "attributes": summaries,
        "protocol": {
            "best_time": "highest mean validation accuracy over seeds",
            "interval": f"central 95 % of {RESAMPLES} resamplings of the test images, the same for both sides",
            **{field: scores[0].protocol[field] for field in ("test_images", "standardise", "validation_fraction")},
        },
        "command": shlex.join(command),
    }
    arrays.write_json(args.out / f"{name}.json", summary)
    print(table)
    print(f"written: {args.out / name}.png, .csv, .md, .json")


def read(run: Path) -> list[Score]:
    """Scores from every finished cell, over the seeds that all times of a source, attribute and head share."""
    cells = results.read_cells(run / "classify", REMEDY, CELL)
    check(cells, run)
    groups: dict[tuple, list[results.Cell]] = {}
    for cell in cells:
        family = (cell.key["source"], cell.key["attribute"], cell.key["head"], isinstance(cell.key["times"], str))
        groups.setdefault(family, []).append(cell)
    scores = []
    for (source, attribute, head, _), members in groups.items():
        seeds: dict[float | str, dict[int, results.Cell]] = {}
        for cell in members:
            seeds.setdefault(cell.key["times"], {})[cell.key["seed"]] = cell
        shared = set.intersection(*(set(by_seed) for by_seed in seeds.values()))
        dropped = sorted(set().union(*seeds.values()) - shared)
        if not shared:
            raise ValueError(
                f"{run}/classify: no seed of {source}, {attribute}, {head} is finished at every time: run classify.py again"
            )
        if dropped:
            print(f"{source}, {attribute}, {head}: seeds {dropped} are not finished at every time and left out")
        for times, by_seed in seeds.items():
            scores.append(score([by_seed[seed] for seed in sorted(shared)], source, attribute, head, times))
    return sorted(scores, key=lambda entry: (entry.mixes, -1.0 if entry.mixes else entry.times))


def check(cells: Sequence[results.Cell], run: Path) -> None:
    """Refuse to compare cells of one attribute that were scored on other images or prepared in another way."""
    first: dict[str, results.Cell] = {}
    for cell in cells:
        other = first.setdefault(cell.key["attribute"], cell)
        differing = [name for name in MUST_AGREE if cell.protocol[name] != other.protocol[name]]
        if differing:
            raise ValueError(
                f"{cell.path} and {other.path} differ in {', '.join(differing)} and cannot be compared: "
                f"remove {run}/classify and classify again"
            )


def score(cells: Sequence[results.Cell], source: str, attribute: str, head: str, times: float | str) -> Score:
    """The mean over the seeds' cells."""
    hits = [
        np.unpackbits(np.frombuffer(bytes.fromhex(cell.value["correct"]), np.uint8), count=cell.value["count"])
        for cell in cells
    ]
    return Score(
        source, attribute, head, times,
        seeds=tuple(cell.key["seed"] for cell in cells),
        validation=float(np.mean([cell.value["validation"] for cell in cells])),
        tests=tuple(cell.value["test"] for cell in cells),
        hits=np.mean(hits, axis=0),
        protocol=cells[0].protocol,
    )  # fmt: skip


def best(scores: Sequence[Score]) -> Score | None:
    """The score of the highest validation accuracy, the first of equals; None where there is none."""
    return max(scores, key=lambda score: score.validation, default=None)


def interval(values: np.ndarray, key: str) -> tuple[float, float]:
    """Central 95 % of the mean of values [N] over resamplings of its N entries; `key` decides the resamplings."""
    count = len(values)
    random = np.random.default_rng(experiment.seed_of("bootstrap", key, count))
    means = np.empty(RESAMPLES)
    for start in range(0, RESAMPLES, BLOCK):
        size = min(BLOCK, RESAMPLES - start)
        times_drawn = random.multinomial(count, np.full(count, 1 / count), size=size)  # [size, N]
        means[start : start + size] = times_drawn @ values / count
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def summarise(scores: Sequence[Score], attribute: str) -> dict[str, Any]:
    """The summary of one attribute: each source at its best time, the mixing heads, and the paired differences."""
    ours = [score for score in scores if score.attribute == attribute]
    found = {
        source: best([score for score in ours if score.source == source and not score.mixes]) for source in SOURCES
    }
    mixed = [score for score in ours if score.mixes and score.source == "encoder"]
    mixing = {
        head: best([score for score in mixed if score.head == head]) for head in {score.head: 0 for score in mixed}
    }
    protocol = ours[0].protocol
    summary: dict[str, Any] = {name: protocol[name] for name in ("chance", "majority", "classes")}
    summary |= {source: accuracy(chosen, attribute) for source, chosen in found.items() if chosen}
    summary["mixed"] = {head: accuracy(chosen, attribute) for head, chosen in mixing.items()}
    if found["encoder"] and found["untrained"]:
        summary["encoder_minus_untrained"] = difference(found["encoder"], found["untrained"], attribute)
    if found["encoder"]:
        summary["mixed_minus_single"] = {
            head: difference(chosen, found["encoder"], attribute) for head, chosen in mixing.items()
        }
    return summary


def accuracy(chosen: Score, attribute: str) -> dict[str, Any]:
    """Test accuracy of one score with its interval over test images."""
    low, high = interval(chosen.hits, attribute)
    where = {"times": chosen.times} if chosen.mixes else {"best_time": chosen.times}
    return {
        **where,
        "accuracy": chosen.test,
        "low": low,
        "high": high,
        "validation": chosen.validation,
        "seeds": list(chosen.seeds),
        "dimension": chosen.protocol["dimension"],
    }


def difference(ours: Score, theirs: Score, attribute: str) -> dict[str, float]:
    """Paired difference in test accuracy with its interval over test images."""
    paired = ours.hits - theirs.hits
    low, high = interval(paired, attribute)
    return {"difference": float(paired.mean()), "low": low, "high": high}


def draw(scores: Sequence[Score], attributes: Sequence[str], head: str, path: Path, pdf: bool) -> None:
    """One panel an attribute: accuracy against time, with the mixing heads, pixels and chance as horizontal lines."""
    columns = min(2, len(attributes))
    figure, axes = figures.panels(-(-len(attributes) // columns), columns, sharex=True)
    table: dict[str, list] = {name: [] for name in COLUMNS}
    for axis, attribute in zip(axes.flat, attributes, strict=False):
        ours = [score for score in scores if score.attribute == attribute]
        lines(axis, ours)
        protocol = ours[0].protocol
        axis.axhline(protocol["chance"], color=figures.COLOURS[6], linestyle="--", linewidth=1.1, label="chance")
        axis.set_title(f"{attribute} ({protocol['classes']} classes)")
        axis.set_ylim(bottom=0)
        axis.set_ylabel("test accuracy")
        for entry in ours:
            record(table, entry)
    for axis in axes[-1]:
        axis.set_xlabel("noise time t of the representation")
    for axis in list(axes.flat)[len(attributes) :]:
        axis.set_axis_off()
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", frameon=False, ncols=columns)
    figures.save(figure, path, table, pdf)


def lines(axis: Any, scores: Sequence[Score]) -> None:
    """The lines of one attribute; shaded: lowest to highest seed."""
    for colour, source in zip(figures.COLOURS, ("encoder", "untrained"), strict=False):
        points = [score for score in scores if score.source == source and not score.mixes]
        if points:
            times = [score.times for score in points]
            marks = {"encoder": ("o", "-"), "untrained": ("s", "-.")}[source]
            axis.plot(times, [score.test for score in points], marker=marks[0], linestyle=marks[1], color=colour,
                      label=f"{SOURCES[source]}, {points[0].head} at each time")  # fmt: skip
            lows, highs = ([pick(score.tests) for score in points] for pick in (min, max))
            figures.band(axis, times, lows, highs, colour)
    level(axis, [score for score in scores if score.source == "pixels" and not score.mixes], ":", figures.COLOURS[3])
    shades = {"encoder": figures.COLOURS[2], "untrained": figures.COLOURS[4]}
    for source, colour in shades.items():
        level(axis, [score for score in scores if score.source == source and score.mixes], "-", colour)


def level(axis: Any, scores: Sequence[Score], style: str, colour: str) -> None:
    """A horizontal line and its seed band for each score that belongs to no single time."""
    for entry in scores:
        what = f"{entry.head}, {entry.times.replace('all', 'all times of k = ')}" if entry.mixes else entry.head
        axis.axhline(entry.test, color=colour, linestyle=style, linewidth=1.6, label=f"{SOURCES[entry.source]}, {what}")
        axis.axhspan(min(entry.tests), max(entry.tests), color=colour, alpha=0.15, linewidth=0)


def record(table: dict[str, list], entry: Score) -> None:
    """Add one score to the figure's numbers."""
    times = entry.times if entry.mixes else f"{entry.times:g}"
    row = (entry.attribute, entry.source, entry.head, times, f"{entry.validation:.5f}", f"{entry.test:.5f}",
           f"{min(entry.tests):.5f}", f"{max(entry.tests):.5f}", " ".join(map(str, entry.seeds)))  # fmt: skip
    for column, value in zip(table.values(), row, strict=True):
        column.append(value)


def markdown(summaries: Mapping[str, Mapping[str, Any]], scores: Sequence[Score], attributes: Sequence[str]) -> str:
    """The summary as a Markdown table: test accuracies in per cent with their 95 % intervals."""
    mixing = list(dict.fromkeys(head for summary in summaries.values() for head in summary["mixed"]))
    header = ["attribute", "chance", *SOURCES.values(), "trained - untrained"]
    for head in mixing:
        header += [f"{head}, all times", f"{head} - best single time"]
    rows = [header, ["---"] * len(header)]
    for attribute in attributes:
        summary = summaries[attribute]
        row = [attribute, f"{100 * summary['chance']:.1f}"]
        row += [_accuracy(summary.get(source)) for source in SOURCES]
        row.append(_difference(summary.get("encoder_minus_untrained")))
        for head in mixing:
            row += [_accuracy(summary["mixed"].get(head)), _difference(summary["mixed_minus_single"].get(head))]
        rows.append(row)
    count = scores[0].protocol["test_images"]
    note = (
        f"Test accuracy in % on {count:,} images, mean over seeds [95 % interval over test images]; "
        "t: the time that validation chose."
    )
    return "\n".join([*("| " + " | ".join(row) + " |" for row in rows), "", note, ""])


def _accuracy(entry: Mapping[str, Any] | None) -> str:
    if not entry:
        return "-"
    when = f", t = {entry['best_time']:g}" if "best_time" in entry else ""
    return f"{100 * entry['accuracy']:.1f} [{100 * entry['low']:.1f}, {100 * entry['high']:.1f}]{when}"


def _difference(entry: Mapping[str, float] | None) -> str:
    return f"{100 * entry['difference']:+.1f} [{100 * entry['low']:+.1f}, {100 * entry['high']:+.1f}]" if entry else "-"


if __name__ == "__main__":
    experiment.launch(main)
