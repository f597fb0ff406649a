"""Which noise times does the mixing classifier attend to, attribute by attribute?

RUN holds attention/source=S/attribute=A/seed=K/, as classify.py writes it: the attention of the classification token over
the times, for every test image and head. A line is the mean over images, heads and seeds; its band spans the seeds; the
dashed line is uniform attention, 1/T. A second figure shows the mean over the images of each class.

Attention says where the classifier looks, not what it would lose without that time: hiding a time is another experiment.

Written: RUN/attention/profile.png and profile_classes.png, each with its numbers as CSV, and profile.json.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffusion_model import arrays, experiment, figures, results

REMEDY = "run `python downstream_classification/classify.py RUN/trajectories/SOURCE --heads transformer` first"
REMOVE = f"remove it and {REMEDY.removesuffix(' first')}"
ARRAYS = {"attention": "numbers [N, H, T]", "labels": "integers [N]"}
STORED = {"times": [float], "attribute": str, "classes": int, "head": str}  # of meta.json
KIND = "attention"


def parser() -> experiment.Parser:
    """The command line."""
    options = experiment.Parser(__doc__, prog="profile_attention.py")
    options.add_argument("run", type=Path, metavar="RUN", help="run folder whose attention is read")
    options.add_argument(
        "--source", type=experiment.file_name, default="encoder", help="store that the classifiers read"
    )
    options.add_argument("--attributes", nargs="+", metavar="A", help="label columns (default: all that are there)")
    return options


@dataclass(frozen=True)
class Profile:
    """Attention over the times of one attribute: per_seed [S, T], by_class [K, T] (NaN where a class has no image)."""

    attribute: str
    times: list[float]
    seeds: list[int]
    images: int
    per_seed: np.ndarray
    by_class: np.ndarray
    test: list[float]  # test accuracy of each seed's classifier, where the writer says it

    @property
    def mean(self) -> np.ndarray:
        """Mean over the seeds [T]."""
        return self.per_seed.mean(0)


def main(argv: Sequence[str] | None = None) -> int:
    """Read, draw and write."""
    args = parser().parse_args(argv)
    profiles = [read_profile(folder) for folder in attribute_folders(args)]
    shared = {tuple(profile.times) for profile in profiles}
    if len(shared) > 1:
        lists = "; ".join(f"{profile.attribute}: {len(profile.times)} times" for profile in profiles)
        raise ValueError(
            f"the attributes were classified at different times ({lists}): pass --attributes or classify again"
        )
    root = args.run / "attention"
    draw_attributes(profiles, root / "profile.png")
    draw_classes(profiles, root / "profile_classes.png")
    command = ["python", "qualitative_analysis/profile_attention.py", *(sys.argv[1:] if argv is None else argv)]
    arrays.write_json(root / "profile.json", {"kind": "attention summary", "source": args.source, "command": shlex.join(command),
                                              "attributes": {profile.attribute: summary(profile) for profile in profiles}})  # fmt: skip
    for profile in profiles:
        peak = int(profile.mean.argmax())
        print(
            f"{profile.attribute:<18} most attended time {profile.times[peak]:g} ({profile.mean[peak]:.3f}; "
            f"uniform {1 / len(profile.times):.3f}), {len(profile.seeds)} seeds"
        )
    return 0


def attribute_folders(args: argparse.Namespace) -> list[Path]:
    """Folders attribute=A of this source, in the order asked for."""
    root = args.run / "attention" / f"source={args.source}"
    there = {results.text_of(folder.name): folder for folder in sorted(root.glob("attribute=*"))}
    if not there:
        others = sorted(results.text_of(folder.parent.name) for folder in root.parent.glob("source=*/attribute=*"))
        remedy = f"pass --source with one of {', '.join(dict.fromkeys(others))}" if others else REMEDY
        raise FileNotFoundError(f"no attention in {root}: {remedy}")
    for name in args.attributes or []:
        if name not in there:
            raise ValueError(f"no attention for attribute {name!r} in {root}; there is: {', '.join(there)}")
    return [of_times(there[name]) for name in args.attributes or there]


def of_times(folder: Path) -> Path:
    """Where the seeds of an attribute lie: in its folder those over all10, else below it those over most times."""
    return folder if numbered(folder, "seed=") else max(numbered(folder, "times=all"), default=(0, folder))[1]


def numbered(folder: Path, prefix: str) -> list[tuple[int, Path]]:
    """What a folder holds under a prefix and a number, by number; other names are none of ours."""
    names = ((path.name.removeprefix(prefix), path) for path in folder.glob(f"{prefix}*"))
    return sorted((int(number), path) for number, path in names if number.isdecimal())


def read_profile(folder: Path) -> Profile:
    """Every finished seed of one attribute; what the seeds must share and does not agree is a ValueError."""
    seeds, means, classes, tests, first = [], [], [], [], None
    for seed, path in numbered(folder, "seed="):
        held, meta = arrays.read_folder(path, KIND, REMOVE, ARRAYS)
        attention, labels = check(held, meta, path)
        first = first or meta
        for name in ("times", "attribute", "classes", "head"):
            if meta[name] != first[name]:
                raise ValueError(
                    f"{path} has {name} {meta[name]!r}, the seeds before it {first[name]!r}: classify again"
                )
        over_heads = attention.mean(1)  # [N, T]
        seeds.append(seed)
        means.append(over_heads.mean(0))
        classes.append(class_means(over_heads, labels, meta["classes"]))
        tests += [meta["test"]] if "test" in meta else []
    if first is None:
        raise FileNotFoundError(f"no attention in {folder}: {REMEDY}")
    return Profile(first["attribute"], first["times"], seeds, len(labels), np.stack(means), np.mean(classes, axis=0), tests)  # fmt: skip


def check(held: dict[str, np.ndarray], meta: dict, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Attention [N, H, T] in float64 and labels [N]; shares that are no shares are a ValueError."""
    arrays.expect(meta, path / "meta.json", STORED, REMOVE)
    attention, labels = np.asarray(held["attention"], np.float64), np.asarray(held["labels"])
    if attention.shape[2] != len(meta["times"]):
        raise ValueError(f"{path}: attention has shape {attention.shape}, expected [N, H, {len(meta['times'])}]")
    if not np.isfinite(attention).all() or attention.min() < 0 or attention.sum(2).max() > 1 + 1e-3:
        raise ValueError(f"{path}: attention over the times must be shares of 1, found other values: classify again")
    if labels.min() < 0 or labels.max() >= meta["classes"]:
        raise ValueError(
            f"{path}: labels run from {labels.min()} to {labels.max()}, expected 0 to {meta['classes'] - 1}"
        )
    return attention, labels


def class_means(attention: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Mean attention [K, T] of the images of each class, NaN for a class without images."""
    counts = np.bincount(labels, minlength=classes)
    sums = np.stack([np.bincount(labels, weights=column, minlength=classes) for column in attention.T], axis=1)
    return np.divide(sums, counts[:, None], out=np.full_like(sums, np.nan), where=counts[:, None] > 0)


def summary(profile: Profile) -> dict:
    """What profile.json says of one attribute."""
    return {
        "times": profile.times,
        "mean": profile.mean.tolist(),
        "low": profile.per_seed.min(0).tolist(),
        "high": profile.per_seed.max(0).tolist(),
        "seeds": profile.seeds,
        "images": profile.images,
        "most_attended": profile.times[int(profile.mean.argmax())],
        "uniform": 1 / len(profile.times),
        "kept_by_classification_token": max(0.0, 1 - float(profile.mean.sum())),
        "test_accuracy": profile.test,
    }


def draw_attributes(profiles: Sequence[Profile], path: Path) -> None:
    """Attention over time, one line an attribute."""
    figure, axes = figures.panels(width=6.0, height=3.6)
    axis = axes[0, 0]
    for index, profile in enumerate(profiles):
        colour = figures.COLOURS[index % len(figures.COLOURS)]
        axis.plot(profile.times, profile.mean, marker="o", color=colour, label=figures.legend_name(profile.attribute))
        figures.band(axis, profile.times, profile.per_seed.min(0), profile.per_seed.max(0), colour)
    axis.axhline(1 / len(profiles[0].times), color="black", linestyle="--", linewidth=1, label="uniform")
    axis.set_xlabel("time t")
    axis.set_ylabel("attention of the classification token")
    axis.set_ylim(bottom=0)
    axis.legend(loc="best", ncols=1 if len(profiles) < 4 else 2)
    table: dict[str, list] = {name: [] for name in ("attribute", "time", "mean", "low", "high", "seeds")}
    for profile in profiles:
        for index, time in enumerate(profile.times):
            column = profile.per_seed[:, index]
            row = (profile.attribute, time, column.mean(), column.min(), column.max(), len(column))
            for name, entry in zip(table, row, strict=True):
                table[name].append(entry)
    figures.save(figure, path, table)


def draw_classes(profiles: Sequence[Profile], path: Path) -> None:
    """Attention over time by class, one map an attribute, all on one colour scale."""
    columns = min(2, len(profiles))
    rows = -(-len(profiles) // columns)
    figure, axes = figures.panels(rows, columns, height=3.2)
    largest = max(float(np.nanmax(profile.by_class)) for profile in profiles)
    image = None
    for axis in axes.flat[len(profiles) :]:
        axis.set_visible(False)
    for axis, profile in zip(axes.flat, profiles, strict=False):
        image = axis.imshow(profile.by_class, aspect="auto", cmap="viridis", vmin=0, vmax=largest, origin="lower")
        axis.grid(False)
        shown = range(0, len(profile.times), max(1, -(-len(profile.times) // 11)))
        axis.set_xticks(shown, [f"{profile.times[index]:g}" for index in shown])
        axis.set_yticks(range(0, len(profile.by_class), max(1, len(profile.by_class) // 10)))
        axis.set_title(profile.attribute)
        axis.set_xlabel("time t")
        axis.set_ylabel("class")
    figure.colorbar(image, ax=axes, label=f"attention (uniform {1 / len(profiles[0].times):.3f})", shrink=0.8)
    table: dict[str, list] = {name: [] for name in ("attribute", "class", "time", "mean")}
    for profile in profiles:
        for (label, index), value in np.ndenumerate(profile.by_class):
            for name, entry in zip(table, (profile.attribute, label, profile.times[index], value), strict=True):
                table[name].append(entry)
    figures.save(figure, path, table)


if __name__ == "__main__":
    experiment.launch(main)
