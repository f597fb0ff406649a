"""Classify the labels of a data set from stored representations: one classifier a time, and heads that mix all times.

STORE is RUN/trajectories/SOURCE, as representations.py writes it (SOURCE: encoder, untrained or pixels; each holds train/
and test/). For every attribute and seed, a head of one time (linear, mlp) is fitted at each time of the granularity, and
a head that mixes (transformer) once on all of them; a store of a single time gets the heads of one time alone. Part of
the train split is held out; its accuracy alone picks the learning rate and the epoch, for each seed by itself; the test
split is seen once.

Heads that mix cost several times as much; --mixing-learning-rates, --mixing-epochs and --mixing-seeds set their own.

The features of every source are standardised by the mean and deviation of the images trained on, unless
--no-standardise is given: an untrained encoder's or raw pixels' features differ in scale from a trained encoder's, and
with equal learning rates a comparison would measure that scale. The published protocol does not standardise.

Written: RUN/classify/source=S/attribute=A/head=H/times=T/seed=K.json, T being a time or `all10` for all times of
granularity 10; and RUN/attention/source=S/attribute=A/seed=K/, the attention of the mixing head over the times for each
test image, of the granularity that was fitted last. Running the command again fills what is missing.
"""

import argparse
import itertools
import json
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffusion_model import arrays, experiment, results, trajectories
from diffusion_model.experiment import AtLeast
from downstream_classification import fitting
from downstream_classification.mixing import HEADS

RATES = [1e-3, 7.5e-4, 5e-4, 2.5e-4, 1e-4, 5e-5]  # From Points to Functions, section 4
ATTENDING = "transformer"  # the head whose attention is stored


def parser() -> experiment.Parser:
    """The command line."""
    options = experiment.Parser(__doc__, prog="classify.py")
    options.add_argument("store", type=Path, metavar="STORE", help="RUN/trajectories/SOURCE")
    options.add_argument("--heads", nargs="+", choices=HEADS, default=["mlp", "transformer"], help="heads to fit")
    options.add_argument("--attributes", nargs="+", metavar="A", help="label columns (default: all of the store)")
    options.add_argument("--granularity", type=AtLeast(1), default=10, help="k: the times i/k for i = 0..k")
    options.add_argument("--times", nargs="+", type=float, metavar="T", help="for heads of one time (default: all i/k)")  # fmt: skip
    options.add_argument("--learning-rates", nargs="+", type=float, default=RATES, metavar="LR", help="candidates")
    options.add_argument("--epochs", type=AtLeast(1), default=100, help="epochs of every fit")
    options.add_argument("--mixing-learning-rates", nargs="+", type=float, metavar="LR", help="of heads that mix")  # fmt: skip
    options.add_argument(
        "--mixing-epochs", type=AtLeast(1), metavar="N", help="of heads that mix (default: as the others)"
    )
    options.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="K", help="of split, weights and order")  # fmt: skip
    options.add_argument("--mixing-seeds", nargs="+", type=int, metavar="K", help="of heads that mix (default: as the others)")  # fmt: skip
    options.add_argument("--validation-fraction", type=float, default=0.1, help="part of the train split held out")
    options.add_argument("--batch", type=AtLeast(1), default=256, help="images a step")
    options.add_argument("--dropout", type=float, default=0.25, help="of every head but linear")
    options.add_argument("--mlp-width", type=AtLeast(1), default=512, help="hidden units of the mlp")
    options.add_argument("--gru-width", type=AtLeast(1), default=256, help="width of the gru's state")
    options.add_argument("--transformer-width", type=AtLeast(1), default=256, help="width of the transformer's tokens")
    options.add_argument(
        "--transformer-feedforward", type=AtLeast(1), default=512, help="hidden units of its feed-forward part"
    )
    options.add_argument(
        "--standardise",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="features (on unless --no-standardise)",
    )
    options.add_argument("--precision", choices=fitting.PRECISIONS, default="auto", help="auto: bfloat16 if the device has it")  # fmt: skip
    options.add_argument("--memory", type=AtLeast(1), metavar="MIB", help="of the fits that run together")
    options.add_device()
    return options


@dataclass(frozen=True)
class Group:
    """Fits that are tested together: a head, an attribute and a seed on some times; `cells` are their keys, one a view."""

    head: str
    attribute: str
    seed: int
    times: list[float]
    cells: list[dict[str, Any]]


class Store:
    """Both splits of RUN/trajectories/SOURCE, checked against each other."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder).absolute()
        if self.folder.parent.name != "trajectories":
            inside = sorted(entry.name for entry in (self.folder / "trajectories").glob("*/"))
            there = f"; its stores: {', '.join(inside)}" if inside else ""
            raise experiment.UsageError(f"{folder} is no store: expected RUN/trajectories/SOURCE{there}")
        self.source, self.run = self.folder.name, self.folder.parent.parent
        self.train = trajectories.Trajectories(self.folder / "train")
        self.test = trajectories.Trajectories(self.folder / "test")
        for what in ("attributes", "dimension", "times"):
            ours, theirs = getattr(self.train, what), getattr(self.test, what)
            if ours != theirs:
                raise ValueError(
                    f"{folder}: train and test differ in {what} ({ours} and {theirs}): {trajectories.REMEDY}"
                )

    def labels(self, attribute: str) -> tuple[np.ndarray, np.ndarray, int]:
        """Train and test labels of one attribute and its number of classes; what cannot be classified is a ValueError."""
        train, test = (np.array(split.label(attribute)) for split in (self.train, self.test))
        classes = self.train.attributes[attribute]
        for split, labels in (("train", train), ("test", test)):
            if len(labels) == 0:
                raise ValueError(f"{self.folder}/{split} holds no images: {trajectories.REMEDY}")
            if labels.min() < 0 or labels.max() >= classes:
                raise ValueError(
                    f"{self.folder}/{split}: labels of {attribute!r} run from {labels.min()} to {labels.max()}, expected "
                    f"0 to {classes - 1}: prepare the data set again"
                )
        if len(np.unique(train)) < 2:
            raise ValueError(f"{attribute!r} has one class only in {self.folder}/train: there is nothing to classify")
        if len(train) < classes:
            raise ValueError(
                f"{self.folder}/train holds {len(train)} images, fewer than the {classes} classes of {attribute!r}: "
                "use more images"
            )
        return train, test, classes

    def fingerprint(self, times: Sequence[float]) -> str:
        """Checksum of everything a fit at these times reads."""
        read = [
            [split.meta["labels"]["crc32"], *(split.meta["stored"][f"{time:.8f}"]["crc32"] for time in times)]
            for split in (self.train, self.test)
        ]
        return f"{zlib.crc32(json.dumps(read).encode()):08x}"


def main(argv: Sequence[str] | None = None) -> int:
    """Fit what is missing; 1 if a fit failed."""
    args = parser().parse_args(argv)
    check(args)
    store = Store(args.store)
    attributes = args.attributes or list(store.train.attributes)
    if not attributes:
        raise ValueError(f"{args.store} has no label columns: there is nothing to classify")
    for attribute in attributes:
        store.labels(attribute)
    device = experiment.choose_device(args.device)

    groups = plan(args, store, attributes)
    pending = [group for group in groups if not all(is_done(args, store, group, key) for key in group.cells)]
    cells = sum(len(group.cells) for group in groups)
    print(f"classify {store.source}: {len(groups)} groups of fits for {cells} cells, {len(pending)} groups to do")
    if pending:
        rounds = fit_all(args, store, pending, device)
        epochs = sum(schedule(args, group.head)[1] for group in pending)
        for _ in experiment.progress(rounds, f"classify {store.source}", "epochs", epochs):
            pass
    return report(store, groups)


def check(args: argparse.Namespace) -> None:
    """Refuse values out of range."""
    if not 0 < args.validation_fraction < 1:
        raise experiment.UsageError(f"--validation-fraction {args.validation_fraction:g}: expected between 0 and 1")
    if not 0 <= args.dropout < 1:
        raise experiment.UsageError(f"--dropout {args.dropout:g}: expected at least 0 and below 1")
    for name in ("learning_rates", "mixing_learning_rates"):
        if min(getattr(args, name) or [1]) <= 0:
            raise experiment.UsageError(f"--{name.replace('_', '-')} {min(getattr(args, name)):g}: expected above 0")
    if args.transformer_width % 4:
        raise experiment.UsageError(f"--transformer-width {args.transformer_width}: expected a multiple of its 4 heads")


def plan(args: argparse.Namespace, store: Store, attributes: Sequence[str]) -> list[Group]:
    """Every group of fits asked for; a time that is not stored is a ValueError that lists those that are."""
    if len(store.train.times) == 1:
        mixed, single = [], args.times or store.train.times
        left_out = [head for head in args.heads if HEADS[head].mixes]
        if left_out:
            print(f"{store.source} has one time only: nothing to mix, {', '.join(left_out)} left out")
    else:
        mixed = trajectories.grid(args.granularity)
        single = args.times or mixed
    mixed, single = ([store.train.nearest(time) for time in times] for times in (mixed, single))
    groups = []
    seeds = list(dict.fromkeys([*args.seeds, *(args.mixing_seeds or [])]))
    for seed, attribute, head in itertools.product(seeds, attributes, args.heads):
        if seed not in ((HEADS[head].mixes and args.mixing_seeds) or args.seeds):
            continue
        fixed = {"source": store.source, "attribute": attribute, "head": head}
        if not HEADS[head].mixes:
            cells = [{**fixed, "times": time, "seed": seed} for time in single]
            groups.append(Group(head, attribute, seed, single, cells))
        elif mixed:
            cells = [{**fixed, "times": f"all{args.granularity}", "seed": seed}]
            groups.append(Group(head, attribute, seed, mixed, cells))
    return groups


def sizes(args: argparse.Namespace, head: str) -> dict[str, Any]:
    """The head's own sizes and dropout among the options."""
    own = f"{HEADS[head].options}_"
    found = {name.removeprefix(own): value for name, value in vars(args).items() if name.startswith(own)}
    return {**found, "dropout": args.dropout} if found else {}


def schedule(args: argparse.Namespace, head: str) -> tuple[list[float], int]:
    """The learning rates and the number of epochs of this head."""
    rates, epochs = args.learning_rates, args.epochs
    if HEADS[head].mixes:
        rates, epochs = args.mixing_learning_rates or rates, args.mixing_epochs or epochs
    return list(rates), epochs


def protocol(args: argparse.Namespace, store: Store, key: dict[str, Any], times: Sequence[float]) -> dict[str, Any]:
    """Everything that decides a cell besides its key."""
    train, test, classes = store.labels(key["attribute"])
    rates, epochs = schedule(args, key["head"])
    seen = [key["times"]] if isinstance(key["times"], float) else times
    return {
        "sizes": sizes(args, key["head"]),
        "learning_rates": rates,
        "epochs": epochs,
        "batch": args.batch,
        "optimiser": f"Adam, weight decay {fitting.WEIGHT_DECAY:g}, gradient norm clipped to {HEADS[key['head']].clip}",
        "standardise": args.standardise,
        "validation_fraction": args.validation_fraction,
        "selection": "learning rate and epoch by this seed's validation accuracy",
        "train_images": len(train),
        "test_images": len(test),
        "dimension": store.train.dimension,
        "times": list(seen),
        "classes": classes,
        "chance": 1 / classes,
        "majority": float((test == np.bincount(train).argmax()).mean()),
        "test_labels": f"{zlib.crc32(test.tobytes()):08x}",
        "store": store.fingerprint(seen),
    }


def attention_folder(store: Store, key: dict[str, Any]) -> Path:
    """Where the attention of a mixing head goes."""
    named = {name: key[name] for name in ("source", "attribute", "seed")}
    return results.cell_path(store.run / "attention", **named).with_suffix("")


def is_done(args: argparse.Namespace, store: Store, group: Group, key: dict[str, Any]) -> bool:
    """Whether a cell, and the attention that belongs to it, are there; another protocol's cell is a ValueError."""
    cell = results.finished(store.run / "classify", key, protocol(args, store, key, group.times))
    if cell is None or group.head != ATTENDING:
        return cell is not None
    folder = attention_folder(store, key)
    return arrays.is_finished(folder) and arrays.read_meta(folder, "attention", "")["cell"] == key


def fit_all(args: argparse.Namespace, store: Store, groups: Sequence[Group], device: torch.device) -> Iterator[Group]:
    """Fit each group and write its missing cells; yields the group once an epoch.

    Groups that differ in their seed alone are fitted together, each as a whole: a cell filled in later is the one that a
    single run would have written, to rounding.
    """
    held = sorted({time for group in groups for time in group.times})
    z_train, z_test = (torch.from_numpy(split.select(held)).to(device) for split in (store.train, store.test))
    together: dict[tuple, list[Group]] = {}
    for group in groups:
        together.setdefault((group.head, group.attribute, *group.times), []).append(group)
    for (head, attribute, *times), members in together.items():
        columns = [held.index(time) for time in times]
        seen_train, seen_test = z_train, z_test
        if columns != list(range(len(held))):
            seen_train, seen_test = z_train[:, columns], z_test[:, columns]
        train, test, classes = store.labels(attribute)
        rates, epochs = schedule(args, head)
        fits = fitting.Fits(
            head, seen_train, train, fitting.CrossEntropy(classes), rates, [group.seed for group in members],
            args.batch, args.validation_fraction, args.standardise, sizes(args, head), device,
            precision=args.precision, memory=args.memory and args.memory << 20,
        )  # fmt: skip
        for _ in range(epochs):
            fits.epoch()
            yield from members  # an epoch of each
        for group, outcomes in zip(members, fits.outcomes(seen_test, test), strict=True):
            for key, outcome in zip(group.cells, outcomes, strict=True):
                if not is_done(args, store, group, key):
                    write(args, store, group, key, outcome, test)


def write(
    args: argparse.Namespace, store: Store, group: Group, key: dict[str, Any], outcome: fitting.Outcome | None,
    labels: np.ndarray,
) -> None:  # fmt: skip
    """Write one cell, after the attention that belongs to it."""
    decided = protocol(args, store, key, group.times)
    if outcome is None:
        value = {"error": "every learning rate diverged: pass smaller --learning-rates"}
    else:
        value = {
            "validation": outcome.validation,
            "test": outcome.test,
            "learning_rate": outcome.learning_rate,
            "epoch": outcome.epoch,
            "count": len(outcome.hits),
            "correct": np.packbits(outcome.hits).tobytes().hex(),
            "trials": {
                f"{rate:g}": {"validation": best, "epoch": epoch} for rate, (best, epoch) in outcome.trials.items()
            },
        }
        if group.head == ATTENDING:
            arrays.write_folder(
                attention_folder(store, key), "attention", {"attention": outcome.attention, "labels": labels},
                times=group.times, attribute=group.attribute, classes=decided["classes"], head=group.head, cell=key,
                test=outcome.test, protocol=decided,
            )  # fmt: skip
    results.write_cell(store.run / "classify", key, value, decided)


def report(store: Store, groups: Sequence[Group]) -> int:
    """Print the accuracies by attribute and head; 1 if a cell failed."""
    found: dict[tuple[str, str, Any], list[results.Cell]] = {}
    failed = []
    for key in (key for group in groups for key in group.cells):
        cell = results.read_cell(results.cell_path(store.run / "classify", **key))
        if cell.failed:
            failed.append(f"{cell.path}: {cell.value['error']}")
        else:
            found.setdefault((key["attribute"], key["head"], key["times"]), []).append(cell)
    print("attribute          head         times    validation  test   chance")
    for (attribute, head, times), cells in sorted(found.items(), key=lambda entry: (*entry[0][:2], str(entry[0][2]))):
        validation, test = (np.mean([cell.value[name] for cell in cells]) for name in ("validation", "test"))
        shown = f"{times:g}" if isinstance(times, float) else times
        chance = cells[0].protocol["chance"]
        print(f"{attribute:<18} {head:<12} {shown:<8} {validation:>10.3f} {test:>6.3f} {chance:>7.3f}")
    for sentence in failed:
        print(f"error: {sentence}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    experiment.launch(main)
