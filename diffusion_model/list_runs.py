"""List the runs below a folder: how far each is, whether it is being trained, what it lacks and what to run next.

    python diffusion_model/list_runs.py
    python diffusion_model/list_runs.py studies/FashionMNIST
    python diffusion_model/list_runs.py docs/runs --json

WORKDIR holds runs/, or is itself a folder of runs, or one run. The states are running, finished, stopped and failed; a
process that was killed counts as stopped, and a run whose files cannot be read is broken. What a run lacks is named in
the order of the work, with the first command. --states prints a line a run for scripts: name, state, step, total and
what it lacks (or -), separated by tabs.
"""

import json
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from diffusion_model import arrays, checkpoint, data, experiment, run_state
from diffusion_model.board import is_number

ARGUMENTS = ("data.name", "data.augmentation", "model.mode", "training.mixup", "encoder.widen", "seed")  # of run.sh
NOT_A_LOSS = ("step", "images", "images_per_second", "memory_mb", "seconds_left")  # of the records in metrics.jsonl
TAIL = 1 << 16  # bytes of metrics.jsonl that are read: its last record is far shorter


@dataclass
class Row:
    """One run. `lacks` {what: the command that makes it}, in the order of the work; `rate` in images/s, `age` in seconds."""

    name: str
    state: str
    why: str
    step: int = 0
    total: int = 0
    mode: str = ""
    losses: dict[str, float] = field(default_factory=dict)
    rate: float | None = None
    age: float | None = None
    lacks: dict[str, str] = field(default_factory=dict)


def make_parser() -> experiment.Parser:
    """The command line."""
    parser = experiment.Parser(__doc__, prog="list_runs.py")
    parser.add_argument("workdir", metavar="WORKDIR", nargs="?", type=Path, default=Path(), help="where the runs are")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="for machines: a list of objects, one a run")
    form.add_argument("--states", action="store_true", help="for scripts: a line of five fields a run")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print the runs."""
    args = make_parser().parse_args(argv)
    rows = [describe(run) for run in find_runs(args.workdir)]
    if args.json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
    elif args.states:
        for row in rows:
            name = row.name if row.name.isprintable() else repr(row.name)  # a line stays a line
            print(name, row.state, row.step, row.total, ",".join(row.lacks) or "-", sep="\t")
    else:
        print(arrays.plain(table(rows)))
    return 0


def find_runs(workdir: Path) -> list[Path]:
    """Folders of the runs in WORKDIR/runs, in WORKDIR, or WORKDIR itself; FileNotFoundError where there is none."""
    if (workdir / "config.json").is_file():
        return [workdir]
    inside = workdir / "runs"
    found = [entry for entry in _folders(inside if inside.is_dir() else workdir) if inside.is_dir() or is_run(entry)]
    if not found:
        raise FileNotFoundError(
            f"no runs in {inside} or {workdir}: give a folder that holds runs, or run `bash scripts/run.sh` first"
        )
    return found


def _folders(parent: Path) -> list[Path]:
    entries = parent.iterdir() if parent.is_dir() else []
    return sorted(entry for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def is_run(folder: Path) -> bool:
    """Whether a folder looks like a run, be it a broken one."""
    return any((folder / name).exists() for name in ("config.json", "metrics.jsonl", "checkpoints"))


def describe(run: Path) -> Row:
    """The row of one run; what cannot be read is a row of state "broken" with the reason."""
    try:
        return _describe(run)
    except (ValueError, OSError, TypeError, AttributeError) as error:  # altered files may hold any JSON
        return Row(
            run.name, "broken", " ".join(str(error).split()), lacks={"config": f"remove {run} and train it again"}
        )


def _describe(run: Path) -> Row:
    config = checkpoint.read_run(run)["config"]
    state, last = run_state.state_of(run), last_record(run / "metrics.jsonl")
    losses = {name: value for name, value in last.items() if name not in NOT_A_LOSS and is_number(value)}
    rate = last.get("images_per_second")
    return Row(
        run.name, state.name, state.why, state.step, state.total, config["model.mode"], losses,
        rate if is_number(rate) else None, max(0.0, time.time() - state.touched), dict(lacks(run, config, state)),
    )  # fmt: skip


def last_record(path: Path) -> dict[str, Any]:
    """The last whole record of metrics.jsonl; empty where there is none."""
    if not path.is_file():
        return {}
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL))
        text = file.read().decode(errors="replace")
    return next(reversed([{}, *arrays.parse_lines(text, path, dict)]))


def lacks(run: Path, config: dict[str, Any], state: run_state.State) -> list[tuple[str, str]]:
    """(what is missing, the command that makes it), in the order of the work."""
    missing = []
    if state.name != "finished":
        command = "wait" if state.name == "running" else training_command(run, config)
        if not checkpoint.steps(run):
            missing.append(("checkpoint", command))
        missing.append(("training", command))
    stages = SAMPLING if config["model.mode"] == "none" else REPRESENTING
    if not (run / "weights.safetensors").is_file() and not (run / "metrics.jsonl").is_file():
        missing.append(("metrics", training_command(run, config)))
    for what, is_there, command in stages:
        if not is_there(run, state.step):
            missing.append((what, command.format(run=shlex.quote(str(run)))))
    return missing


def training_command(run: Path, config: dict[str, Any]) -> str:
    """What trains a run on: run.sh with its arguments where it made the run, else the command that began it."""
    get = config.get
    rate = f"{get('optimiser.learning_rate'):g}"
    widen = f"{get('encoder.widen'):g}"
    parts = [get("data.name"), widen, get("data.augmentation"), get("model.mode"), str(get("training.mixup")), rate]
    if run.name != "_".join([*map(str, parts), str(get("seed"))]):
        command = f"python diffusion_model/main.py --mode train ... --workdir {shlex.quote(str(run))}"
        return f"the command that began {run}, `{command}`"
    dataset, _, augmentation, mode, mixup, _ = parts
    arguments = shlex.join(map(str, (dataset, augmentation, mode, mixup, widen, get("seed"))))
    return f"bash scripts/run.sh {arguments}{changed(config)}"


def changed(config: dict[str, Any]) -> str:
    """The options behind run.sh's arguments: what differs from the project's preset, the fields of those arguments left out."""
    try:
        preset = experiment.flatten(experiment.load_config(f"configs/drl.py:{config['data.name']}"))
    except experiment.UsageError:  # a set of the user's own
        preset = {}
    preset["optimiser.learning_rate"] = 2e-4  # run.sh's
    fields = [name for name in preset if name not in ARGUMENTS and config.get(name, preset[name]) != preset[name]]
    values = {name: config[name] if isinstance(config[name], str) else json.dumps(config[name]) for name in fields}
    return "".join(" " + shlex.quote(f"--config.{name}={value}") for name, value in values.items())


def has_trajectories(run: Path, step: int) -> bool:
    """Whether both splits are encoded at every time asked for, by this step's encoder."""
    for split in data.SPLITS:
        path = run / "trajectories" / "encoder" / split / "meta.json"
        if not path.is_file():
            return False
        meta = arrays.read_json(path)
        if meta["step"] != step or any(f"{time:.8f}" not in meta["stored"] for time in meta["requested"]):
            return False
    return True


def has(pattern: str) -> Callable[[Path, int], bool]:
    """The question whether files of this pattern lie in a run."""
    return lambda run, step: any(run.glob(pattern))


def table(rows: Sequence[Row]) -> str:
    """The runs as aligned columns; the last says what comes next."""
    cells = [("run", "step", "state", "losses", "images/s", "age", "lacks")]
    for row in rows:
        state = f"{row.state} ({row.why})" if row.state in ("failed", "broken") else row.state
        losses = " ".join(f"{name} {value:.4g}" for name, value in row.losses.items())
        rate = "" if row.rate is None else f"{row.rate:.0f}"
        step = f"{row.step:,}/{row.total:,}" if row.total else ""
        cells.append((row.name, step, state, losses, rate, span(row.age), next_step(row)))
    widths = [min(max(len(line[column]) for line in cells), 60) for column in range(len(cells[0]))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in cells
    )


def next_step(row: Row) -> str:
    """What is missing, and the first command of it."""
    if not row.lacks:
        return "nothing"
    command = next(iter(row.lacks.values()))
    return f"{', '.join(row.lacks)}: {command}"


def span(seconds: float | None) -> str:
    """A duration in its largest unit."""
    if seconds is None:
        return ""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


# what a run can lack, whether it is there, the command that makes it; in the order of the work
REPRESENTING = [
    ("trajectories", has_trajectories, "python diffusion_model/representations.py {run}"),
    ("classify", has("classify/**/*.json"), "python downstream_classification/classify.py {run}/trajectories/encoder"),
    (
        "mutual_information",
        has("mutual_information/summary_*.json"),
        "python qualitative_analysis/estimate_mi.py {run}/trajectories/encoder",
    ),
    ("attention", has("attention/profile.json"), "python qualitative_analysis/profile_attention.py {run}"),
]
SAMPLING = [
    ("sweep", has("sweeps/*/*"), "bash scripts/run_experiments_with_skips.sh {run} gaussian_params"),
    ("skips", has("sweeps/*/summary.json"), "python linear_structure/process_experiments_with_skips.py {run}"),
    ("scores", has("scores/summary.json"), "bash scripts/run_plot_scores.sh {run} gaussian_params"),
]  # fmt: skip


if __name__ == "__main__":
    experiment.launch(main)
