"""Write WORKDIR/report.html: everything a study has made, on one page that needs no other file.

The page holds the study's claims with their numbers, each run with its configuration, loss and samples, every figure with
a caption that says what is drawn and how it was measured, the numbers behind it, the commands and the environment. What
is missing is named with the command that makes it. With `--check` the status is 1, with a sentence each, if a claim fails:

1. the trained encoder beats the untrained one on the attributes claimed (paired 95 % interval above 0);
2. at high noise the Gaussian score is closer to the neural one than the isotropic score, and ever closer;
3. the distances at the recommended and at the largest skip differ by more than their intervals.

Written: WORKDIR/report.html, and RUN/loss.png with its numbers beside every metrics.jsonl.
"""

import json
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusion_model import arrays, checkpoint, experiment, figures
from qualitative_analysis import claims, known_answers, page

NOT_LOSSES = ("step", "images", "images_per_second", "memory_mb", "seconds_left")
RECORD = {"images": int, "images_per_second?": float, "memory_mb?": float, ...: (float, None)}  # of metrics.jsonl
Caption = Callable[[Path, Path], str]


def parser() -> experiment.Parser:
    """The command line."""
    options = experiment.Parser(__doc__, prog="write_report.py")
    options.add_argument(
        "workdir",
        type=Path,
        metavar="WORKDIR",
        nargs="?",
        default=Path(),
        help="folder of a study, with runs/ and tables/",
    )
    options.add_argument("--check", action="store_true", help="status 1 with a sentence each where a claim fails")
    options.add_argument(
        "--no-check", dest="check", action="store_false", help="only report the claims, whatever a preset says"
    )
    options.add_argument(
        "--claims-attributes",
        nargs="+",
        metavar="A",
        help="attributes of the first claim (default: foreground and location where present, else all)",
    )
    options.set_defaults(check=False)
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page; with --check, 1 if a claim fails."""
    args = parser().parse_args(argv)
    runs = sorted(path.parent for path in args.workdir.glob("runs/*/config.json"))
    if not runs:
        raise FileNotFoundError(
            f"nothing to report in {args.workdir}: expected runs/RUN/config.json there; run `bash scripts/reproduce.sh` first"
        )
    judged = claims.judge(args.workdir, args.claims_attributes)
    command = shlex.join(["python", "qualitative_analysis/write_report.py", *(sys.argv[1:] if argv is None else argv)])
    path = args.workdir / "report.html"
    content = compose(args.workdir, runs, judged, command)
    arrays.write_atomically(path, lambda temporary: temporary.write_text(content))
    print(f"{path} ({path.stat().st_size / 2**20:.1f} MiB)")
    for claim in judged:
        print(f"{'holds' if claim.holds else 'does not hold'}: {claim.title}")
        for sentence in claim.failures:
            print(f"{'error: ' if args.check else '  '}{sentence}", file=sys.stderr if args.check else sys.stdout)
    return int(args.check and not all(claim.holds for claim in judged))


def compose(workdir: Path, runs: Sequence[Path], judged: Sequence[claims.Claim], command: str) -> str:
    """The HTML of the whole page."""
    sets = sorted({checkpoint.read_run(run)["data"]["name"] for run in runs})
    title = f"Score trajectories: {', '.join(sets)}"
    parts = [
        ("claims", "Claims", "".join(claim_box(claim) for claim in judged)),
        *((chapter.name, chapter.title, show(chapter, workdir)) for chapter in CHAPTERS),
        ("runs", "Trained models", "".join(describe_run(run, workdir) for run in runs)),
        ("commands", "Commands", page.commands(command_lines(workdir, command))),
        ("environment", "Environment", environment(runs)),
    ]
    links = "".join(f'<a href="#{name}">{page.text(heading)}</a>' for name, heading, _ in parts)
    written = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    lead = (
        f"<h1>{page.text(title)}</h1>\n<p>What {len(runs)} trained score model{'s' * (len(runs) > 1)} show: representations "
        f"at every noise time and what a classifier gains by mixing them; how linear the score is at high noise, and how "
        f"many steps of a sampler that saves. Intervals are 95 % unless said otherwise. Written {written}.</p>\n<nav>{links}</nav>\n"
    )
    return page.document(title, lead + "".join(page.section(*part) for part in parts))


def claim_box(claim: claims.Claim) -> str:
    """One claim with its verdict and numbers."""
    verdict, kind = ("Holds", "holds") if claim.holds else ("Does not hold", "fails")
    entries = "".join(f"<li>{page.text(entry)}</li>" for entry in [*claim.numbers, *claim.failures])
    return f'<div class="claim {kind}"><p><strong>{verdict}.</strong> {page.text(claim.title)}.</p><ul>{entries}</ul></div>\n'


@dataclass(frozen=True)
class Drawing:
    """Figures found by a pattern below WORKDIR, how each is captioned, what makes them, and a table to show below."""

    title: str
    pattern: str
    caption: Caption
    command: str
    table: Callable[[Path], str] | None = None
    optional: bool = False  # whether a study may do without


@dataclass(frozen=True)
class Chapter:
    """A part of the page: figures that belong together."""

    name: str
    title: str
    drawings: tuple[Drawing, ...]


def show(chapter: Chapter, workdir: Path) -> str:
    """Every figure of a chapter with caption and numbers; what is missing is named."""
    parts = []
    for drawing in chapter.drawings:
        found = sorted(workdir.glob(drawing.pattern))
        if not found and drawing.optional:
            continue
        if not found:
            parts.append(page.missing(f"{drawing.title} ({drawing.pattern})", drawing.command))
        for path in found:
            where = path.relative_to(workdir)
            parts.append(f"<h3>{page.text(drawing.title)}</h3>\n")
            try:
                caption, table = drawing.caption(path, workdir), drawing.table(path) if drawing.table else ""
            except (ValueError, FileNotFoundError) as error:
                parts.append(page.missing(f"the protocol of {where} ({error})", drawing.command))
                caption, table = f"{drawing.title}.", ""
            parts.append(page.figure(page.image(path, f"{drawing.title}: {where}"), f"{caption} File: {where}."))
            parts.append(table)
            parts.append(numbers(path, workdir, drawing.command))
    return "".join(parts)


def numbers(path: Path, workdir: Path, command: str) -> str:
    """The CSV beside a figure as a table."""
    beside = path.with_suffix(".csv")
    where = beside.relative_to(workdir)
    if not beside.is_file():
        return page.missing(f"the numbers of {path.name} ({where})", command)
    return page.details(f"Numbers: {where}", page.table(figures.read_table(beside), str(where)))


def describe_run(run: Path, workdir: Path) -> str:
    """One trained model: what it is, loss, newest samples, configuration."""
    record = checkpoint.read_run(run)
    where = run.relative_to(workdir)
    history = list(read_metrics(run / "metrics.jsonl"))
    parts = [f"<h3>{page.text(where)}</h3>\n", page.table(facts(run, record, history), f"facts of {where}")]
    train = f"python diffusion_model/main.py --mode train --config FILE:PRESET --workdir {where}"
    if history:
        terms = ", ".join(losses(history))
        picture = page.image(draw_losses(history, run / "loss.png"), f"loss of {where}")
        caption = (
            f"Training loss by term ({terms}) against images seen, each point the mean since the one before it. "
            f"File: {where}/loss.png."
        )
        parts += [page.figure(picture, caption), numbers(run / "loss.png", workdir, train)]
    else:
        parts.append(page.missing(f"the training history ({where}/metrics.jsonl)", train))
    samples = sample_grids(run)
    for path in samples:
        caption = f"Samples of the averaged weights. File: {path.relative_to(workdir)}."
        parts.append(page.figure(page.image(path, f"samples of {where}", pixels=True), caption))
    if not samples and record["config"].get("model.mode") == "none":
        sample = f"python diffusion_model/main.py --mode sample --workdir {where}"
        parts.append(page.missing(f"samples ({where}/samples)", sample))
    config = {name: json.dumps(entry) for name, entry in record["config"].items()}
    rest = {name: json.dumps(record[name]) for name in ("data", "scaling", "shape", "std") if name in record}
    shown = {"field": [*config, *rest], "value": [*config.values(), *rest.values()]}
    parts.append(page.details(f"Configuration: {where}/config.json", page.table(shown, f"configuration of {where}")))
    return "".join(parts)


def sample_grids(run: Path) -> list[Path]:
    """The grid of the last training step, and every grid that `--mode sample` made."""
    grids = sorted(run.glob("samples/*.png"))
    steps = [path for path in grids if path.name.startswith("step_")]
    return steps[-1:] + [path for path in grids if path not in steps]


def facts(run: Path, record: dict[str, Any], history: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """The few numbers that say how large a run is, as one row."""
    config = record["config"]
    last = history[-1] if history else {}
    speeds = [entry["images_per_second"] for entry in history if "images_per_second" in entry]
    log = run / "log.txt"
    counted = re.search(r"([\d,]+) parameters", log.read_text(errors="replace")) if log.is_file() else None
    return {
        "data": [record["data"]["name"]],
        "mode": [config.get("model.mode", "unknown")],
        "preconditioning": [config.get("model.precondition", "unknown")],
        "parameters": [counted.group(1) if counted else "unknown"],
        "step": [last.get("step", "unknown")],
        "images seen": [last.get("images", "unknown")],
        "images/s (median)": [f"{sorted(speeds)[len(speeds) // 2]:.0f}" if speeds else "unknown"],
        "peak memory, MB": [f"{last['memory_mb']:.0f}" if "memory_mb" in last else "unknown"],
    }


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """Records of a metrics.jsonl; a last line cut short by an interruption is left out, any other is a ValueError."""
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    for index, line in enumerate(lines):
        try:
            record = arrays.parse_json(line, path)
        except (ValueError, RecursionError):
            if index < len(lines) - 1:
                raise ValueError(f"{path}: line {index + 1} is no JSON: the file was altered") from None
            return
        arrays.expect(record, path, RECORD, "the file was altered", f"line {index + 1}")
        yield record


def losses(history: Sequence[dict[str, Any]]) -> list[str]:
    """Names of the loss terms."""
    return [name for name in history[-1] if name not in NOT_LOSSES]


def draw_losses(history: Sequence[dict[str, Any]], path: Path) -> Path:
    """Loss by term against images, one panel a term; a figure newer than metrics.jsonl stays."""
    if path.is_file() and path.stat().st_mtime > path.with_name("metrics.jsonl").stat().st_mtime:
        return path
    terms = losses(history)
    history = [entry for entry in history if all(entry.get(name) is not None for name in terms)]
    figure, axes = figures.panels(1, max(1, len(terms)), width=4.4, height=2.7)
    images = [entry["images"] for entry in history]
    for index, (axis, name) in enumerate(zip(axes[0], terms, strict=False)):
        values = [entry[name] for entry in history]
        axis.plot(images, values, color=figures.COLOURS[index % len(figures.COLOURS)])
        if min(values, default=0) > 0:
            axis.set_yscale("log")
        axis.set_title(name)
        axis.set_xlabel("images")
        axis.set_ylabel("loss")
    return figures.save(
        figure, path, {"images": images, **{name: [entry[name] for entry in history] for name in terms}}
    )


def command_lines(workdir: Path, command: str) -> list[str]:
    """The commands that made the study: its own record, else what the summaries say."""
    record = workdir / "commands.txt"
    if record.is_file():
        lines = record.read_text(errors="replace").splitlines()
        head = ["# in the study's folder; paths of commands and configurations from the project's root"]
        return head + lines + ([] if any("write_report.py" in line for line in lines) else [command])
    found = []
    for path in [*sorted(workdir.glob("runs/*/*/*.json")), *sorted(workdir.glob("tables/*.json"))]:
        content = {} if "=" in path.name else arrays.read_json(path)
        if isinstance(content, dict) and isinstance(content.get("command"), str):
            found.append(content["command"])
    return [*dict.fromkeys(found), command]


def environment(runs: Sequence[Path]) -> str:
    """Versions and hardware, where the models were trained and where the page was written."""
    columns = {"here": experiment.environment()}
    for run in runs:
        if (run / "env.json").is_file():
            columns[run.name] = arrays.read_json(run / "env.json")
            arrays.expect(columns[run.name], run / "env.json", dict)
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    shown = {"": names} | {where: [str(column.get(name, "")) for name in names] for where, column in columns.items()}
    return page.table(shown, "environment")


def accuracy_caption(path: Path, workdir: Path) -> str:
    """Accuracy against time: what is compared with what."""
    content = claims.read(path.with_suffix(".json"), "accuracy")
    images, names = content["protocol"]["test_images"], ", ".join(content["attributes"])
    return (
        f"Test accuracy on {images} images (vertical axis) of classifiers that see the representation at one noise time t "
        f"(horizontal axis), for {names}: trained and untrained encoder, raw pixels and chance, and heads that mix all times as "
        "horizontal lines. Learning rate and epoch are chosen on validation images; bands are one standard deviation over seeds. "
        "In the table each encoder stands at the time that validation chose, with 95 % intervals over encoders, head seeds and "
        "test images; differences are paired."
    )


AGAINST = {  # figures that tabulate.py draws where their cells exist: title and what they show
    "granularity": ("Accuracy against granularity", "against the granularity k, of which a head that mixes sees the times i/k"),
    "labels": ("Accuracy against the number of labels", "against the number of labelled images, those held out included"),
    "latent": ("Accuracy against the size of the latent", "against the size of the encoder's latent"),
    "modes": ("Modes side by side", "against noise time, with heads that mix as horizontal lines, a column a training mode"),
    "blocks": ("Accuracy over blocks and noise times", "of one time over blocks of the score network and noise times; framed: "
               "what validation chose"),
}  # fmt: skip


def curve_caption(path: Path, workdir: Path) -> str:
    """Accuracy against something else than time."""
    shown = AGAINST[path.stem.partition("_")[0]][1]
    return (
        f"Test accuracy of classifiers {shown}; each at the block, time and granularity that validation chose. Bands are one "
        "standard deviation over encoders, or over head seeds of a single encoder."
    )


def accuracy_table(path: Path) -> str:
    """Per cent correct by attribute, with intervals: what the figure comes to."""
    known = claims.read(path.with_suffix(".json"), "accuracy")["attributes"]
    heads = list(dict.fromkeys(head for entry in known.values() for head in entry.get("mixed", {})))
    columns: dict[str, list[str]] = {"test accuracy, %": list(known)}
    columns["chance"] = [f"{100 * entry['chance']:.1f}" for entry in known.values()]
    for source in ("pixels", "untrained", "encoder"):
        columns[source] = [percent(entry.get(source), "accuracy") for entry in known.values()]
    columns["pixels"] = [entry.partition(" at t")[0] for entry in columns["pixels"]]  # they know no time
    columns["encoder - untrained"] = [
        percent(entry.get("encoder_minus_untrained"), "difference", "+") for entry in known.values()
    ]
    for head in heads:
        columns[f"{head}, all times"] = [
            percent(entry.get("mixed", {}).get(head), "accuracy") for entry in known.values()
        ]
        columns[f"{head} - encoder"] = [
            percent(entry.get("mixed_minus_single", {}).get(head), "difference", "+") for entry in known.values()
        ]
    return page.table(columns, "accuracy by attribute")


def percent(entry: dict[str, Any] | None, name: str, sign: str = "") -> str:
    """`72.1 [70.0, 74.2] at t = 0.3`, or nothing."""
    if not entry:
        return ""
    value, low, high = (f"{100 * entry[end]:{sign}.1f}" for end in (name, "low", "high"))
    when = f" at t = {entry['best_time']:g}" if entry.get("best_time") is not None else ""
    return f"{value} [{low}, {high}]{when}"


def attention_caption(path: Path, workdir: Path) -> str:
    """Attention over time."""
    summary = path.with_name("profile.json")
    known = claims.read(summary, "attention")["attributes"]
    if not known:
        raise ValueError(f"{summary} holds no attribute")
    told = ", ".join(f"{name} t = {entry['most_attended']:g}" for name, entry in known.items())
    first = next(iter(known.values()))
    what = (
        "Mean attention of the classification token for the test images of each class (vertical axis) over the noise times t "
        "(horizontal axis), one map an attribute, on one colour scale"
        if path.stem == "profile_classes"
        else "Attention of the classification token of the mixing transformer (vertical axis) over the noise times t (horizontal "
        "axis), mean over test images, heads and seeds; bands span the seeds, the dashed line is uniform attention"
    )
    return (
        f"{what}; {first['images']} test images, {len(first['seeds'])} seeds. Most attended: {told}. Attention says where a "
        "classifier looks, not what it would lose without that time."
    )


def information_caption(path: Path, workdir: Path) -> str:
    """Mutual information between times."""
    summary = path.with_name(path.stem.replace("matrix_", "summary_") + ".json")
    content = claims.read(summary, "information")
    protocol, above = content["protocol"], len(content["beyond_ceiling"])
    rows = protocol["rows"]
    return (
        f"Mutual information in nats between the representations at two noise times (both axes), {content['source']} codes of "
        f"{protocol['dimension']} features: MINE, a lower bound found by critics of width {protocol['width']} on {rows['fit']} "
        f"rows, their best iterate chosen on {rows['validation']} and the value read off on {rows['held_out']} rows that neither "
        f"saw; mean over {len(protocol['seeds'])} seeds. {rows['held_out']} rows certify about {content['ceiling']:.2f} nats (their "
        f"logarithm); {above} pairs lie above. {known_caption(content)}The diagonal is left out: a continuous code's information about "
        "itself is infinite."
    )


def known_caption(content: dict[str, Any]) -> str:
    """What the end of the training and known answers say of a map; nothing of one that was made before they were kept."""
    told = (
        f"Triangles: {len(content['still_rising'])} pairs still rising at the end. "
        if "still_rising" in content
        else ""
    )
    if not content.get("known"):
        return told
    reached, count = content["known_up_to"], sum(content["protocol"]["rows"].values())
    answers = known_answers.in_words((one["truth"], one["nats"]) for one in content["known"])
    found = "none came" if reached is None else f"those up to {reached:.2f} came"
    return (
        f"{told}Normals of as many features on as many rows (n = {count}), of which the truth is known: {answers}; {found} back to a "
        f"fifth. Circles: {len(content['beyond_known'])} pairs above, of which the truth may be far larger; errors over seeds and "
        "rows do not tell. "
    )


def sweep_caption(path: Path, workdir: Path) -> str:
    """Distance against skipped steps, the map of levels and evaluations, or the samples behind them."""
    content = claims.read(path.with_name("summary.json"), "sweep")
    chosen, protocol = content["recommended"], content["protocol"]
    if path.stem == "samples":
        return (
            f"The same start noise (columns) sampled with more and more steps replaced by the {content['jump']} jump (rows, from none); "
            f"{protocol.get('sampler', 'sampler')}, {protocol.get('steps', '?')} steps."
        )
    if path.stem == "levels":
        return (
            f"{content['distance']} to the data after one closed-form jump to a level (rows; the first is the plain solver's own) from "
            f"which all steps are spread anew, against network evaluations (columns); n = {content['n']} samples from paired seeds, "
            f"features: {content['features']}. Framed: the least of a column."
        )
    floor = content.get("floor")
    real = f" {content['n']} real images reach {floor['distance']:.4g} (dashed)." if floor else ""
    first = {"sampler": protocol.get("sampler", "sampler"), "steps": protocol.get("steps", "?"), "recommended": chosen}
    found = [
        f"{one['sampler']} {one.get('by', 'skip')} {one['recommended'][one.get('by', 'skip')]:.3g} ({one['steps']} steps)"
        for one in content.get("lines", [first])
    ]
    return (
        f"{content['distance']} to the data (vertical axis) against the number of the solver's first steps replaced by one closed-form "
        f"jump (horizontal axis; network evaluations and saved time on top), n = {content['n']} samples from paired seeds, "
        f"features: {content['features']}; bands are 95 % intervals over blocks of seeds. Recommended: {', '.join(found)}, the largest "
        f"whose upper paired bound lies within {content['margin']:.1%} of no skip.{real} "
        "The drift is how far a sample moves from the one without skipping."
    )


def scores_caption(path: Path, workdir: Path) -> str:
    """Closed-form scores against the neural one: over levels, along directions, over training, and the pictures behind."""
    content = claims.read(path.with_name("summary.json"), "scores")
    levels, protocol = content["levels"], content["protocol"]
    if path.stem == "denoised":
        return "What the denoisers see (noised) and say (neural, closed forms) at a few noise levels, high noise on the right."
    if path.stem == "directions":
        return (
            "Left: how far the neural denoiser keeps each eigenvector of the data's covariance, against its variance over the squared "
            "noise level; a Gaussian's denoiser lies on the curve. Right: relative error of the Gaussian score within groups of "
            "eigenvectors, from the largest variance (1) on, against the noise level."
        )
    if path.stem == "checkpoints":
        return "What closed forms leave unexplained of the neural score and of its denoiser against images trained, at a few levels."
    states = f"n = {protocol.get('n', '?')} noised {protocol.get('split', '')} images"
    if path.stem == "trajectory":
        states = "the states of the network's own trajectories"
    else:
        states += f", {len(levels)} levels from {levels[0]:.3g} to {levels[-1]:.3g} in model space"
    return (
        "Closed-form scores against the neural one. Above: relative squared error and 1 - cosine of the scores (dotted: 99 % "
        "explained); below: variance of the neural denoiser that the closed-form ones explain, and that about the mean image, since a "
        f"relative score error is almost bound to fall. All against the noise level; {states}; bands are 95 % intervals."
    )


CLASSIFY = "python downstream_classification/classify.py RUN/trajectories/SOURCE"
PROFILE, INFORMATION, SCORES, SWEEP = (
    claims.REMEDIES[name] for name in ("attention", "information", "scores", "sweep")
)
ACCURACY_DRAWINGS = (
    Drawing(
        "Accuracy against noise time",
        "tables/accuracy_*.png",
        accuracy_caption,
        f"{CLASSIFY}, then {claims.REMEDIES['accuracy']}",
        accuracy_table,
    ),
    *(
        Drawing(title, f"tables/{name}_*.png", curve_caption, claims.REMEDIES["accuracy"], optional=True)
        for name, (title, _) in AGAINST.items()
    ),
)
ATTENTION_DRAWINGS = (
    Drawing("Attention over noise time", "runs/*/attention/profile.png", attention_caption, PROFILE),
    Drawing("Attention by class", "runs/*/attention/profile_classes.png", attention_caption, PROFILE),
)
INFORMATION_DRAWINGS = (
    Drawing(
        "Mutual information between times",
        "runs/*/mutual_information/matrix_*.png",
        information_caption,
        INFORMATION,
    ),
)
SCORE_DRAWINGS = (
    Drawing("Closed-form scores against the neural score", "runs/*/scores/scores.png", scores_caption, SCORES),
    Drawing("Along trajectories", "runs/*/scores/trajectory.png", scores_caption, SCORES, optional=True),
    Drawing("Gain along each eigenvector", "runs/*/scores/directions.png", scores_caption, SCORES, optional=True),
    Drawing("Over training", "runs/*/scores/checkpoints.png", scores_caption, SCORES, optional=True),
    Drawing("Denoised images", "runs/*/scores/denoised.png", scores_caption, SCORES),
)
SKIP_DRAWINGS = (
    Drawing("Distance against skipped steps", "runs/*/sweeps/*/distance.png", sweep_caption, SWEEP),
    Drawing("Distance over level and evaluations", "runs/*/sweeps/*/levels.png", sweep_caption, SWEEP, optional=True),
    Drawing("Samples with more and more steps skipped", "runs/*/sweeps/*/samples.png", sweep_caption, SWEEP),
)
CHAPTERS = (
    Chapter("accuracy", "Which noise time knows what", ACCURACY_DRAWINGS),
    Chapter("attention", "Where the mixing classifier looks", ATTENTION_DRAWINGS),
    Chapter("information", "What two times share", INFORMATION_DRAWINGS),
    Chapter("scores", "How linear the score is", SCORE_DRAWINGS),
    Chapter("skips", "How many steps can be skipped", SKIP_DRAWINGS),
)


if __name__ == "__main__":
    experiment.launch(main)
