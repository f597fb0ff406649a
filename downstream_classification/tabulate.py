"""Accuracy against time: what each time of a trajectory knows, and what mixing the times adds.

    python downstream_classification/tabulate.py runs/drl-synthetic16
    python downstream_classification/tabulate.py runs/cifar10_*_none_*_False_0.0002_*

Each RUN holds classify/, as classify.py writes it. Runs whose configurations differ in nothing but the seed are one
setting, with an encoder a run; several settings (modes, widths, data sets) are also put side by side.

Validation chooses, never the test images: the learning rate of each run by its mean over head seeds, then the block, the
time and the granularity by the mean over runs and head seeds. Deviations are over encoders (over head seeds, of a single
encoder). Differences are paired: "mixed minus best single time" is measured on the same test images, head seeds and
encoders, which are resampled 2,000 times, head seeds inside encoders; intervals are the central 95 % of the resampled
means. The choice itself is not made anew. With one or two encoders an interval says little about training another one.

Written to --out, each figure only where its cells exist, as PNG with its numbers as CSV:
accuracy_NAME (against single time, the mixing heads as lines; also .md, .tex, .json, and _table.csv with every summary),
granularity_NAME, labels_NAME (against the number of labels), blocks_NAME (block x time); of several settings latent_NAME
(against the latent size), modes_NAME (side by side) and comparison_NAME.md, .tex, .csv.
NAME is the run's, what the names of a setting's runs have in common, or --name.
"""

import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusion_model import arrays, experiment, trajectories
from downstream_classification import accuracies, accuracy_tables, bootstrap, charts, settings, summaries, texts
from downstream_classification.accuracies import FAMILIES, Score

CONTROLS = ("untrained", "pixels")  # what a trained encoder should be compared with
MOST_ROWS = 8  # of modes side by side


@dataclass(frozen=True)
class Table:
    """A setting, its scores, and the summary of each attribute."""

    setting: settings.Setting
    scores: list[Score]
    summaries: dict[str, summaries.Summary]

    def of(self, attribute: str, whole: bool = True) -> list[Score]:
        """Scores of one attribute: of all labels, or of any number of them."""
        return [score for score in self.scores if score.attribute == attribute and not (whole and score.labels)]


def parser() -> experiment.Parser:
    """The command line."""
    options = experiment.Parser(__doc__, prog="tabulate.py")
    options.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders with classify/")
    options.add_argument("--out", type=Path, default=Path("tables"), metavar="DIR", help="folder to write to")
    options.add_argument(
        "--name",
        type=experiment.file_name,
        help="of what is written (default: the run's; of several settings: comparison)",
    )
    options.add_argument("--head", help="head of one time to compare by (default: the one that validates best)")
    options.add_argument("--attributes", nargs="+", metavar="A", help="label columns (default: all that are there)")
    options.add_argument("--joint", help="take the fits of these attributes together, as classify.py --joint names them")  # fmt: skip
    options.add_pdf()
    return options


def main(argv: Sequence[str] | None = None) -> None:
    """Read the cells, write figures, tables and summaries."""
    args = parser().parse_args(argv)
    command = shlex.join(["python", "downstream_classification/tabulate.py", *(sys.argv[1:] if argv is None else argv)])
    tables = [tabulate(args, setting) for setting in settings.group(args.runs)]
    for table in tables:
        name = args.name if args.name and len(tables) == 1 else table.setting.name
        written = [*write(args, table, name, command), *draw(args, table, name)]
        print(f"written: {args.out}/{', '.join(written)}")
    if len(tables) > 1:
        written = [*compare(args, tables, args.name or "comparison")]
        print(f"written: {args.out}/{', '.join(written)}")


def tabulate(args: Any, setting: settings.Setting) -> Table:
    """The scores and summaries of one setting; what is asked for and not there is an error."""
    scores = accuracies.read(setting.runs, args.joint)
    heads = sorted({score.method for score in scores if not score.mixes})
    where = ", ".join(map(str, setting.runs))
    if not heads:
        raise ValueError(f"{where} holds no head of one time to compare with: run classify.py with --heads mlp too")
    if args.head not in (None, *heads):
        raise experiment.UsageError(f"--head: no results of {args.head!r} in {where}; there are: {', '.join(heads)}")
    attributes = list(dict.fromkeys(score.attribute for score in scores if score.labels is None))
    for name in args.attributes or []:
        if name not in attributes:
            raise ValueError(
                f"no results of attribute {name!r} in {setting.runs[0]}; there are: {', '.join(attributes)}"
            )
    attributes = args.attributes or attributes
    scores = [score for score in scores if score.attribute in attributes]
    there = {score.family for score in scores}
    for source in CONTROLS if "encoder" in there else ():
        if source not in there:
            print(
                f"no results for {FAMILIES[source]}: run classify.py {setting.runs[0]}/trajectories/{source} to compare with it"
            )
    found = {attribute: summaries.summarise(scores, attribute, args.head) for attribute in attributes}
    return Table(setting, scores, found)


def write(args: Any, table: Table, name: str, command: str) -> list[str]:
    """The tables and the summary of one setting; returns what was written."""
    note = explained(table)
    title = table.setting.label
    told = [
        accuracy_tables.accuracies(table.summaries, f"{title}: test accuracy", note).upright(),
        accuracy_tables.differences(table.summaries, f"{title}: minus best single time", NOTE).upright(),
        *(
            accuracy_tables.single_times(table.scores, list(table.summaries), head, f"{title}: {head} at single times")
            for head in shown_heads(table, args.head)
        ),
    ]
    told = [one for one in told if one.rows]
    path = args.out / f"accuracy_{name}"
    write_texts(path, told)
    records = accuracy_tables.records(title, table.summaries)
    write_text(path.with_name(f"accuracy_{name}_table.csv"), texts.comma_separated(records))
    protocol = table.scores[0].protocol
    summary = {
        "kind": "accuracy summary",
        "run": str(table.setting.runs[0]),
        "runs": list(map(str, table.setting.runs)),
        "head": args.head or "the head of one time that validates best",
        "source": summaries.main_family(table.scores),
        "attributes": table.summaries,
        "protocol": {
            "best_time": "highest mean validation accuracy over encoders and head seeds",
            "interval": f"central 95 % of {bootstrap.RESAMPLES} resamplings of encoders, head seeds inside them, and test images, "
            "the same for both sides",
            "encoders": len(table.setting.runs),
            **{field: protocol[field] for field in ("test_images", "standardise", "validation_fraction")},
        },
        "command": command,
    }
    arrays.write_json(path.with_name(path.name + ".json"), summary)
    print(texts.markdown(told))
    for attribute, found in table.summaries.items():
        print(
            accuracy_tables.verdict(attribute, found) or f"{attribute}: no head that mixes beside one of a single time"
        )
    return [f"accuracy_{name}{end}" for end in (".md", ".tex", ".json", "_table.csv")]


def shown_heads(table: Table, head: str | None) -> list[str]:
    """The heads of one time whose every time is told: the one asked for, or those chosen, and that of most blocks."""
    chosen = [accuracy_tables.main_single(found) for found in table.summaries.values()]
    heads = [head] if head else [single["head"] for single in chosen if single]
    return list(dict.fromkeys([*heads, *on_most_blocks(table.scores, head)]))


NOTE = (
    "Paired differences in points [95 % interval over encoders, head seeds inside them, and test images]. Validation chose "
    "the head, block, time and granularity of both sides."
)


def explained(table: Table) -> str:
    """How the accuracies of a setting were measured."""
    counts = sorted({score.protocol["test_images"] for score in table.scores})
    encoders = len(table.setting.runs)
    seeds = sorted({len(score.seeds) for score in table.scores})
    fits = f"{' or '.join(map(str, seeds))} head seed{'s' * (seeds != [1])}"
    over = f"{encoders} encoders, each the mean of {fits}" if encoders > 1 else fits
    return (
        f"Mean +- standard deviation over {over}, on {' and '.join(f'{count:,}' for count in counts)} test images. "
        "t: the single time, k: the granularity that validation chose."
    )


def write_texts(path: Path, tables: Sequence[texts.Table]) -> None:
    """The tables as Markdown and LaTeX."""
    write_text(path.with_name(path.name + ".md"), texts.markdown(tables))
    write_text(path.with_name(path.name + ".tex"), texts.latex(tables))


def write_text(path: Path, text: str) -> None:
    """One text file."""
    arrays.write_atomically(path, lambda temporary: temporary.write_text(text))


def draw(args: Any, table: Table, name: str) -> Iterable[str]:
    """The figures of one setting; yields what was written."""
    attributes = list(table.summaries)
    panels = [
        charts.over_times(table.of(attribute), described(table, attribute), args.head) for attribute in attributes
    ]
    yield charts.draw(panels, args.out / f"accuracy_{name}.png", "noise time t of the representation", args.pdf).name
    grids = sorted({score.granularity for score in table.scores if score.mixes})
    if len(grids) > 1:
        panels = [against_granularity(table, attribute, args.head, grids) for attribute in attributes]
        axis = charts.logarithmic(grids)
        yield charts.draw(panels, args.out / f"granularity_{name}.png", "granularity k", args.pdf, axis).name
    if any(score.labels for score in table.scores):
        panels = [against_labels(table, attribute, args.head) for attribute in attributes]
        axis = charts.logarithmic(labels_of(score) for score in table.scores)
        yield charts.draw(panels, args.out / f"labels_{name}.png", "labelled images", args.pdf, axis).name
    for head in on_most_blocks(table.scores, args.head):
        single = [score for score in of_blocks(table.scores) if score.method == head]
        yield charts.draw_blocks(single, attributes, head, args.out / f"blocks_{name}.png", args.pdf).name


def of_blocks(scores: Sequence[Score]) -> list[Score]:
    """Heads of one time on blocks of a score network, with all labels."""
    return [score for score in scores if score.family == "blocks" and not score.mixes and not score.labels]


def on_most_blocks(scores: Sequence[Score], head: str | None) -> list[str]:
    """The head of one time that was fitted on the most blocks, this one among equals; none where there is one block only."""
    blocks: dict[str, set[str]] = {}
    for score in of_blocks(scores):
        blocks.setdefault(score.method, set()).add(score.source)
    widest = max(sorted(blocks), key=lambda method: (len(blocks[method]), method == head), default=None)
    return [widest] if widest and len(blocks[widest]) > 1 else []


def described(table: Table, attribute: str) -> str:
    """The title of an attribute's panel."""
    summary = table.summaries[attribute]
    return f"{attribute} ({summary['classes']} classes, chance {100 * summary['chance']:.3g} %)"


def against_granularity(table: Table, attribute: str, head: str | None, grids: Sequence[int]) -> charts.Panel:
    """Accuracy against granularity: of a single time, the best of those that a granularity has."""
    times = {k: trajectories.grid(k) for k in grids}

    def place(score: Score) -> list[float]:
        if score.mixes:
            return [score.granularity]
        return [
            k for k, grid in times.items() if min(abs(time - score.times) for time in grid) < trajectories.TOLERANCE
        ]

    return charts.against(table.of(attribute), described(table, attribute), head, place)


def labels_of(score: Score) -> int:
    """How many labelled images a head had."""
    return score.labels or score.protocol.get("train_images", 0)


def against_labels(table: Table, attribute: str, head: str | None) -> charts.Panel:
    """Accuracy against the number of labelled images."""
    scores = accuracies.of_several_times(table.of(attribute, whole=False))
    return charts.against(scores, described(table, attribute), head, lambda score: [labels_of(score)])


def compare(args: Any, tables: Sequence[Table], name: str) -> Iterable[str]:
    """Tables and figures of several settings; yields what was written."""
    held = {table.setting.label: table.summaries for table in tables}
    attributes = list(dict.fromkeys(attribute for table in tables for attribute in table.summaries))
    told = [one for attribute in attributes for one in accuracy_tables.settings(held, attribute, NOTE)]
    write_texts(args.out / f"comparison_{name}", told)
    records = [record for label, found in held.items() for record in accuracy_tables.records(label, found)]
    write_text(args.out / f"comparison_{name}.csv", texts.comma_separated(records))
    print(texts.markdown(told))
    yield from (f"comparison_{name}{end}" for end in (".md", ".tex", ".csv"))
    yield from draw_latent(args, tables, name)
    yield from draw_modes(args, tables, name)


def alike(tables: Sequence[Table], *fields: str) -> list[list[Table]]:
    """Groups of at least two settings that differ in these fields of their configurations alone."""
    groups: dict[str, list[Table]] = {}
    for table in tables:
        if table.setting.config:
            groups.setdefault(table.setting.beside(*fields), []).append(table)
    return [members for members in groups.values() if len({table.setting.label for table in members}) > 1]


def draw_latent(args: Any, tables: Sequence[Table], name: str) -> Iterable[str]:
    """Accuracy against latent size, a panel an attribute and setting besides."""
    panels, sizes = [], set()
    for members in alike(tables, "encoder.widen"):
        for attribute in shared(members):
            scores = [score for table in members for score in table.of(attribute) if score.family == "encoder"]
            scores = accuracies.of_several_times(scores)
            if scores:
                sizes |= {score.protocol["dimension"] for score in scores}
                title = ", ".join(part for part in (without_width(members[0].setting.label), attribute) if part)
                panels.append(charts.against(scores, title, args.head, lambda score: [score.protocol["dimension"]]))
    if len(sizes) > 1:
        axis = charts.logarithmic(sizes)
        yield charts.draw(panels, args.out / f"latent_{name}.png", "size of the latent", args.pdf, axis).name


def without_width(label: str) -> str:
    """The label of a setting without its widen factor."""
    return ", ".join(part for part in label.split(", ") if not part.startswith("widen"))


def draw_modes(args: Any, tables: Sequence[Table], name: str) -> Iterable[str]:
    """Accuracy against single time with the modes of one setting side by side, a row an attribute."""
    groups = alike(tables, "model.mode", "objective.lambda_z")
    rows = [(members, attribute) for members in groups for attribute in shared(members)]
    if len(rows) > MOST_ROWS:
        print(
            f"modes side by side: {len(rows)} rows are more than {MOST_ROWS}: choose with --attributes, or give fewer runs"
        )
        rows = []
    columns = max((len(members) for members, _ in rows), default=0)
    panels: list[charts.Panel] = []
    for members, attribute in rows:
        drawn = [
            charts.over_times(table.of(attribute), f"{table.setting.label}: {attribute}", args.head)
            for table in members
        ]
        panels += drawn + [charts.Panel("")] * (columns - len(drawn))
    if panels:
        path = args.out / f"modes_{name}.png"
        yield charts.draw(panels, path, "noise time t of the representation", args.pdf, shape=(len(rows), columns)).name


def shared(tables: Sequence[Table]) -> list[str]:
    """Attributes that all of these have."""
    return [attribute for attribute in tables[0].summaries if all(attribute in table.summaries for table in tables)]


if __name__ == "__main__":
    experiment.launch(main)
