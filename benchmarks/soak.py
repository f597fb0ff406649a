"""Kill preparation, training and encoding at random instants, again and again: is the result that of no kill, bit for bit?

Each phase runs once undisturbed in WORKDIR/reference. In WORKDIR/killed the same commands are sent SIGKILL, children
included, a random time after they have begun to write, and run again, until the phase has had its share of the kills;
a command that reaches its end before its kill is compared and starts from nothing. At last it may finish, and every
file is compared: data, run, checkpoints, trajectories and moments byte for byte, metrics.jsonl but for its times.
Exit status 1 names the first file that differs. The same command again goes on where it was interrupted.

  python benchmarks/soak.py WORKDIR
  python benchmarks/soak.py WORKDIR --kills 18 --seed 1
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffusion_model import arrays, experiment
from diffusion_model.experiment import AtLeast

IGNORED = ("env.json", "log.txt", "state.json")  # they tell when, where and how often
TIMES = ("images_per_second", "memory_mb", "seconds_left")  # fields of metrics.jsonl that no two runs share
STATES = ("before the first result", "inside a write", "between two writes")
POLL = 0.02  # seconds between two looks at the files
DATA = "soak"  # name of the data set
KIND = "soak"


class Phase(NamedTuple):
    """A command, and below a side's folder: what it makes, where its work is seen, what is there after its first result."""

    name: str
    command: tuple[str, ...]  # with {side}, {pictures} and {steps}
    makes: tuple[str, ...]  # removed to start over
    compared: str
    watched: str
    kept: tuple[str, ...]  # patterns


PHASES = (
    Phase(
        "preparation",
        ("diffusion_model/prepare_data.py", DATA, "--source={pictures}", "--size=16", "--workers=2", "--data={side}/data"),
        ("data",), "data", f"data/{DATA}", (f"data/{DATA}/*/.images.npy.done", f"data/{DATA}/train/images.npy"),
    ),
    Phase(
        "training",
        ("diffusion_model/main.py", "--mode=train", "--config=configs/drl.py:smoke", "--workdir={side}/run",
         "--data={side}/data", "--device=cpu", f"--config.data.name={DATA}", "--config.model.dropout=0.1",
         "--config.data.augmentation=laplace_weak", "--config.training.mixup=True",
         "--config.training.batch=16", "--config.training.images={images}", "--config.logging.every=16",
         "--config.logging.checkpoint_every=32"),
        ("run",), "run", "run", ("run/checkpoints/[0-9]*/meta.json",),
    ),
    Phase(
        "encoding",
        ("diffusion_model/representations.py", "{side}/run", "--data={side}/data", "--device=cpu",
         "--granularities", "10", "--sources", "encoder", "untrained", "pixels", "--limit=500", "--batch=100"),
        ("run/trajectories", "run/moments"), "run", "run", ("run/trajectories/*/*/z_*.npy",),
    ),
)  # fmt: skip


def make_parser() -> experiment.Parser:
    """The command line."""
    parser = experiment.Parser(__doc__, prog="soak.py")
    parser.add_argument("workdir", metavar="WORKDIR", type=Path, help="a new folder, or that of a soak to go on with")
    parser.add_argument("--kills", type=AtLeast(1), default=200, help="in all, a third for each phase")
    parser.add_argument("--seed", type=int, default=0, help="of the pictures and the instants")
    parser.add_argument("--share", type=float, default=0.6, help="longest work until a kill, as a share of the whole")
    parser.add_argument("--pictures", type=AtLeast(100), default=5000, help="number of PNG files to prepare")
    parser.add_argument("--steps", type=AtLeast(1), default=120, help="of the training")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    args = make_parser().parse_args(argv)
    if not 0 < args.share <= 1:
        raise experiment.UsageError(f"--share {args.share}: expected above 0 and at most 1")
    soak = Soak(args)
    for phase, kills in zip(PHASES, shares(args.kills, len(PHASES)), strict=True):
        soak.reference(phase)  # not before the phase in front is compared: encoding writes into the run
        soak.torment(phase, kills)
    print("\n".join(soak.summary(phase) for phase in PHASES))
    return 0


def shares(total: int, parts: int) -> list[int]:
    """`total` cut into whole parts that differ by one at most."""
    return [total // parts + (index < total % parts) for index in range(parts)]


class Soak:
    """The two sides and what has happened so far, kept in WORKDIR/soak.json."""

    def __init__(self, args: Any) -> None:
        self.folder, self.path = args.workdir.resolve(), args.workdir.resolve() / "soak.json"
        self.settings = {name: getattr(args, name) for name in ("kills", "seed", "share", "pictures", "steps")}
        if self.path.is_file():
            self.record = arrays.read_json(self.path)
            arrays.check_meta(self.record, self.path, KIND)
            if self.record["settings"] != self.settings:
                raise ValueError(
                    f"{args.workdir} holds a soak with {self.record['settings']}, not {self.settings}: give another WORKDIR"
                )
            return
        if self.folder.is_dir() and any(self.folder.iterdir()):
            raise ValueError(f"{args.workdir} is not empty and holds no soak: give a new folder")
        phases = {phase.name: {"seconds": None, "killed": [], "rounds": 0, "files": None} for phase in PHASES}
        self.record = {"format": arrays.FORMAT, "kind": KIND, "settings": self.settings, "phases": phases}
        self.save()

    def save(self) -> None:
        """Keep what has happened."""
        arrays.write_json(self.path, self.record)

    def reference(self, phase: Phase) -> None:
        """Run a phase undisturbed and note how long it worked."""
        entry = self.record["phases"][phase.name]
        if entry["seconds"] is None:
            if phase is PHASES[0]:
                paint(self.folder / "pictures", self.settings["pictures"], self.settings["seed"])
            side = self.folder / "reference"
            clear(side, phase)
            entry["seconds"] = self.session(phase, side, None)
            self.save()
            print(f"{phase.name}: the reference worked {entry['seconds']:.1f} s", file=sys.stderr, flush=True)

    def torment(self, phase: Phase, kills: int) -> None:
        """Kill a phase `kills` times, let it finish, compare."""
        entry, side = self.record["phases"][phase.name], self.folder / "killed"
        while entry["files"] is None:
            number = len(entry["killed"])
            before = temporaries(side)
            if self.session(phase, side, self.delay(phase, number) if number < kills else None) is None:
                entry["killed"].append(state(side, phase, before))
                self.save()
                print(f"{phase.name}: kill {number + 1} of {kills}, {entry['killed'][-1]}", file=sys.stderr, flush=True)
                continue
            count = self.compare(phase, number)
            if number < kills:
                entry["rounds"] += 1
                clear(side, phase)
            else:
                entry["files"] = count
            self.save()

    def delay(self, phase: Phase, number: int) -> float:
        """Seconds of work until kill `number`, uniform up to --share of the reference's work."""
        longest = self.settings["share"] * self.record["phases"][phase.name]["seconds"]
        return random.Random(f"{self.settings['seed']} {phase.name} {number}").uniform(0, longest)

    def session(self, phase: Phase, side: Path, delay: float | None) -> float | None:
        """Run a phase's command; None where it was killed, else the seconds that it worked."""
        words = {"side": side, "pictures": self.folder / "pictures", "images": 16 * self.settings["steps"]}
        command = [sys.executable, *(part.format(**words) for part in phase.command)]
        side.mkdir(parents=True, exist_ok=True)
        return run(command, side / phase.watched, delay, self.folder / f"{phase.name}.log")

    def compare(self, phase: Phase, kills: int) -> int:
        """Number of files that both sides have; ValueError with the first that differs."""
        reference, killed = (self.folder / side / phase.compared for side in ("reference", "killed"))
        found = difference(reference, killed)
        if found:
            raise ValueError(f"{phase.name} after {kills} kills: {found}, compared with {reference}")
        return len(files(reference))

    def summary(self, phase: Phase) -> str:
        """One line of a finished phase."""
        entry = self.record["phases"][phase.name]
        counts = ", ".join(f"{entry['killed'].count(name)} {name}" for name in STATES)
        return (
            f"{phase.name}: {len(entry['killed'])} kills ({counts}), {entry['rounds'] + 1} times from the start to the "
            f"end, {entry['files']} files, all as without a kill"
        )


def run(command: Sequence[str], watched: Path, delay: float | None, log: Path) -> float | None:
    """Run `command`; `delay` seconds after the first change below `watched`, kill it and its children.

    Returns None where it was killed, else the seconds from the first change to the end. A command that fails by itself
    is a ValueError.
    """
    before = stamps(watched)
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, cwd=experiment.ROOT, stdout=output, stderr=output, stdin=subprocess.DEVNULL, start_new_session=True
        )
    try:
        while process.poll() is None and stamps(watched) == before:
            time.sleep(POLL)
        begun = time.monotonic()
        process.wait(delay)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.returncode:
        raise ValueError(f"`{' '.join(command)}` ended with status {process.returncode}: read the end of {log}")
    return time.monotonic() - begun


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """Time of change and size of everything below a folder; what goes away meanwhile is left out."""
    found = {}
    for path in folder.rglob("*"):
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        found[str(path)] = status.st_mtime_ns, status.st_size
    return found


def temporaries(folder: Path) -> set[Path]:
    """What interrupted writes have left behind."""
    return set(folder.rglob("*.tmp"))


def state(side: Path, phase: Phase, before: set[Path]) -> str:
    """In which of STATES a kill landed, from the files it left; `before` are the temporary ones of earlier kills."""
    if temporaries(side) - before:
        return STATES[1]
    kept = (path for pattern in phase.kept for path in side.glob(pattern) if path.stat().st_size)
    return STATES[2] if any(kept) else STATES[0]


def clear(side: Path, phase: Phase) -> None:
    """Remove what a phase has made."""
    for name in phase.makes:
        if (side / name).exists():
            shutil.rmtree(side / name)


def files(folder: Path) -> list[str]:
    """Names of the files to compare: no temporary ones, none that tell when and where."""
    names = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file())
    hidden = (".tmp", ".lock")
    return [
        str(name) for name in names
        if name.name not in IGNORED and not any(part.startswith(".") and part.endswith(hidden) for part in name.parts)
    ]  # fmt: skip


def difference(reference: Path, other: Path) -> str | None:
    """A sentence on the first file that one folder lacks or that differs; None where there is none."""
    expected, found = files(reference), files(other)
    for name in sorted({*expected, *found}):
        if name not in found:
            return f"{other / name} is missing"
        if name not in expected:
            return f"{other / name} is too much"
        if content(reference / name) != content(other / name):
            return f"{other / name} differs"
    return None


def content(path: Path) -> Any:
    """Bytes of a file; of metrics.jsonl the records without their times."""
    if path.name != "metrics.jsonl":
        return path.read_bytes()
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: value for name, value in record.items() if name not in TIMES} for record in records]


def paint(folder: Path, count: int, seed: int) -> None:
    """Write `count` PNG files of 96 x 96 in four classes: coarse random patterns."""
    from PIL import Image

    source = np.random.default_rng(seed)
    for kind in range(4):
        (folder / f"class_{kind}").mkdir(parents=True, exist_ok=True)
    for index in experiment.progress(range(count), "painting pictures", "pictures"):
        coarse = source.integers(0, 256, (3 + index % 4, 3 + index % 4, 3), np.uint8)
        picture = Image.fromarray(coarse).resize((96, 96), Image.Resampling.BICUBIC)
        picture.save(folder / f"class_{index % 4}" / f"{index:05d}.png")


if __name__ == "__main__":
    experiment.launch(main)
