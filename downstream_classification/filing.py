"""What a group of fits leaves on disk: cells with the protocol that decided them, the split, the attention.

A cell that is there was made under the protocol that is asked for now, or it is a ValueError; so a command that is run
again fits what is missing and nothing else. `args` are the options of classify.py.
"""

import argparse
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_model import arrays, locks, results
from downstream_classification import fitting
from downstream_classification.mixing import HEADS
from downstream_classification.plans import Group
from downstream_classification.stores import Store

ATTENDING = "transformer"  # the head whose attention is stored
ATTENDED = 10  # the granularity whose attention is stored
SELECTION = "epoch by each fit's validation accuracy; learning rate by its mean over the seeds"


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


def rows(args: argparse.Namespace, group: Group, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the train split that a seed trains on and validates with."""
    return fitting.rows(group.target.train, args.validation_fraction, group.labels, seed)


def checksum(parts: Sequence[np.ndarray]) -> str:
    """Of the rows trained on and held out."""
    value = 0
    for part in parts:
        value = zlib.crc32(np.ascontiguousarray(part, dtype=np.int64).tobytes(), zlib.crc32(b"|", value))
    return f"{value:08x}"


def protocol(
    args: argparse.Namespace, store: Store, group: Group, view: int, attribute: str, split: str
) -> dict[str, Any]:  # fmt: skip
    """Everything that decides a cell besides its key."""
    train, test, classes = group.target.column(attribute)
    rates, epochs = schedule(args, group.head)
    seen = list(group.times) if group.view else [group.times[view]]
    return {
        "sizes": sizes(args, group.head),
        "learning_rates": rates,
        "epochs": epochs,
        "batch": args.batch,
        "optimiser": f"Adam, weight decay {fitting.WEIGHT_DECAY:g}, gradient norm clipped to {HEADS[group.head].clip}",
        "loss": type(group.target.criterion()).__name__,
        "standardise": args.standardise,
        "validation_fraction": args.validation_fraction,
        "split": split,
        "selection": SELECTION,
        "train_images": len(train),
        "test_images": len(test),
        "dimension": store.train.dimension,
        "times": seen,
        "classes": classes,
        "chance": 1 / classes,
        "majority": float((test == np.bincount(train).argmax()).mean()),
        "test_labels": f"{zlib.crc32(test.tobytes()):08x}",
        "store": store.fingerprint(seen),
    }


def attends(args: argparse.Namespace, group: Group) -> bool:
    """Whether the attention of a group is stored."""
    granularity = ATTENDED if ATTENDED in args.granularity else max(args.granularity)
    plain = group.head == ATTENDING and group.labels is None and group.target.joint is None
    return plain and group.view == f"all{granularity}"


def attention_folder(store: Store, group: Group, seed: int) -> Path:
    """Where the attention of a group's seed goes; that over other times than all10 is named by them."""
    times = {} if group.view == f"all{ATTENDED}" else {"times": group.view}
    named = {
        "source": group.source,
        "attribute": group.target.attributes[0],
        **times,
        **group.hiding.key(),
        "seed": seed,
    }
    return results.folder_beside(results.cell_path(store.run / "attention", **named))


def missing(args: argparse.Namespace, store: Store, group: Group) -> Group:
    """The group with the seeds that lack a cell, or the attention that belongs to it; another protocol's cell is a ValueError."""
    return group.of_seeds([seed for seed in group.seeds if not is_done(args, store, group, seed)])


def is_done(args: argparse.Namespace, store: Store, group: Group, seed: int) -> bool:
    """Whether every cell of a seed is there."""
    split = checksum(rows(args, group, seed))
    for view, place, key in group.cells(seed):
        decided = protocol(args, store, group, view, group.target.attributes[place], split)
        if results.finished(store.run / "classify", key, decided) is None:
            return False
    if not attends(args, group):
        return True
    folder, key = attention_folder(store, group, seed), group.key(group.target.attributes[0], group.view, seed)
    return arrays.is_finished(folder) and arrays.read_meta(folder, "attention", "")["cell"] == key


def write(
    args: argparse.Namespace, store: Store, group: Group, seed: int, outcomes: Sequence[fitting.Outcome | None]
) -> None:
    """Write the cells of one seed, after the split and the attention that belong to them.

    Cells that another command has written meanwhile stay; those of another protocol are a ValueError, before anything is
    written.
    """
    parts = rows(args, group, seed)
    split = checksum(parts)
    with locks.briefly(store.run / "classify"):
        cells = [
            (view, place, key, protocol(args, store, group, view, group.target.attributes[place], split))
            for view, place, key in group.cells(seed)
        ]
        missing = [entry for entry in cells if results.finished(store.run / "classify", *entry[2:]) is None]
        folder = store.run / "splits" / split
        if not arrays.is_finished(folder):
            held = dict(zip(("training", "validation"), parts, strict=True))
            arrays.write_folder(folder, "split", held, seed=seed, fraction=args.validation_fraction, labels=group.labels,
                                attributes=list(group.target.attributes), images=len(group.target.train))  # fmt: skip
        if attends(args, group) and outcomes[0] is not None:
            write_attention(args, store, group, seed, split, outcomes[0])
    for view, place, key, decided in missing:
        results.write_cell(
            store.run / "classify", key, value(outcomes[view], place if group.target.joint else None), decided
        )


def value(outcome: fitting.Outcome | None, place: int | None) -> dict[str, Any]:
    """What a cell holds: of every learning rate, and of the one that this seed alone would choose.

    place: of the attribute in a joint fit, whose validation accuracy is that of all its attributes.
    """
    if outcome is None:
        return {"error": "every learning rate diverged: pass smaller --learning-rates"}

    def hits(of: np.ndarray) -> np.ndarray:
        return of if place is None else of[:, place]

    trials = {
        f"{rate:g}": {
            "validation": validation,
            "epoch": epoch,
            "test": float(hits(outcome.hits_by_rate[rate]).mean()),
            "correct": np.packbits(hits(outcome.hits_by_rate[rate])).tobytes().hex(),
        }
        for rate, (validation, epoch) in outcome.trials.items()
        if rate in outcome.hits_by_rate
    }
    own = trials[f"{outcome.learning_rate:g}"]
    return {**own, "learning_rate": outcome.learning_rate, "count": len(outcome.hits), "trials": trials}


def write_attention(
    args: argparse.Namespace, store: Store, group: Group, seed: int, split: str, outcome: fitting.Outcome
) -> None:
    """Write the attention of one seed's transformer, with the learning rate that this seed alone would choose."""
    attribute = group.target.attributes[0]
    _, labels, classes = group.target.column(attribute)
    arrays.write_folder(
        attention_folder(store, group, seed), "attention", {"attention": outcome.attention, "labels": labels},
        times=list(group.times), attribute=attribute, classes=classes, head=group.head,
        cell=group.key(attribute, group.view, seed), test=outcome.test, learning_rate=outcome.learning_rate,
        protocol=protocol(args, store, group, 0, attribute, split),
    )  # fmt: skip
