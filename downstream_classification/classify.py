"""Classify the labels of a data set from stored representations: one classifier a time, and heads that mix all times.

    python downstream_classification/classify.py runs/drl-synthetic16/trajectories/encoder
    python downstream_classification/classify.py runs/edm-cifar10/trajectories/block-* --heads linear gru --best-store
    python downstream_classification/classify.py RUN/trajectories/encoder --granularity 1 2 5 7 10 17 25 37 50
    python downstream_classification/classify.py RUN/trajectories/encoder --labels 100 500 1000
    python downstream_classification/classify.py RUN/trajectories/encoder --joint --heads transformer

STORE is RUN/trajectories/SOURCE, as representations.py writes it (encoder, untrained, block-NAME, pixels, pca; each holds
train/ and test/). For every attribute, a head of one time (linear, mlp, transformer-one) is fitted at each time of the
granularities, and a head that mixes once on all times of each; a store of a single time gets the heads of one time alone.
All learning rates, seeds and times of a head are fitted together. --joint fits several attributes at once: by binary
cross-entropy where all of them are there or not, else by the sum of their cross-entropies. With --best-store the first of
--heads is fitted on every store and the others only on the one where it validates best, for each run and attribute: a
network has many blocks. There transformer-one, a control of capacity, is fitted at the best time alone.

Part of the train split is held out, every class in proportion; its accuracy alone picks the epoch of each fit and the
learning rate: that of the best mean over the seeds, when tabulate.py reads the cells. --labels n leaves n labelled images
in all, of which the same part is held out; the subsets of a seed are nested. The test split is seen once, at the end.

Heads that mix cost several times as much; --mixing-learning-rates, --mixing-epochs and --mixing-seeds set their own.
--hide, --keep and --hide-cls fit heads that mix anew without some of what they see.

The features of every source are standardised by the mean and deviation of the images trained on, unless
--no-standardise is given: an untrained encoder's or raw pixels' features differ in scale from a trained encoder's, and
with equal learning rates a comparison would measure that scale. The published protocol does not standardise.

Written: RUN/classify/source=S/attribute=A/head=H/times=T/seed=K.json, T being a time or `all10` for all times of
granularity 10, with fields labels, joint, hidden, kept and cls in the path where they are asked for: validation and test
accuracy of every learning rate with its hits on the test images, and those of the rate that this seed alone would choose.
RUN/splits/CHECKSUM/: the rows trained on and held out, by the checksum that the cells name. And
RUN/attention/source=S/attribute=A/seed=K/: the attention of the transformer over the times for each test image, at
granularity 10 or, where that is not asked for, the largest. Running the command again fills what is missing. Cells of an
earlier version are read by tabulate.py as they are; to make them anew, remove RUN/classify.
"""

import argparse
import dataclasses
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from diffusion_model import experiment, results, trajectories
from diffusion_model.experiment import Above, AtLeast
from downstream_classification import accuracies, filing, fitting, plans
from downstream_classification.mixing import HEADS
from downstream_classification.plans import Group, Hiding
from downstream_classification.stores import Store, Target

WIDEST = 16_384  # hidden units of a head
RATES = [1e-3, 7.5e-4, 5e-4, 2.5e-4, 1e-4, 5e-5]  # From Points to Functions, section 4
Planned = list[tuple[Store, list[Group]]]
Line = tuple[str, str, Any, int]  # attribute, method, times, number of labels (0: all)


def parser() -> experiment.Parser:
    """The command line."""
    options = experiment.Parser(__doc__, prog="classify.py")
    options.add_argument("stores", type=Path, nargs="+", metavar="STORE", help="RUN/trajectories/SOURCE")
    options.add_argument("--heads", nargs="+", choices=HEADS, default=["mlp", "gru", "transformer"], help="heads to fit")  # fmt: skip
    options.add_argument("--attributes", nargs="+", metavar="A", help="label columns (default: all of the store)")
    options.add_argument("--joint", action="store_true", help="fit the attributes at once (default: one by one)")
    options.add_argument("--best-store", action="store_true", help="fit all heads but the first where that validates best")  # fmt: skip
    options.add_argument(
        "--labels",
        nargs="+",
        type=AtLeast(2),
        metavar="N",
        help="labelled images, those held out included (default: all)",
    )
    options.add_argument(
        "--granularity",
        nargs="+",
        type=AtLeast(1, most=trajectories.FINEST),
        default=[10],
        metavar="K",
        help="times i/k for i = 0..k; of 1: t = 0.5",
    )
    options.add_argument("--times", nargs="+", type=float, metavar="T", help="for heads of one time (default: all i/k)")  # fmt: skip
    options.add_argument("--hide", nargs="+", type=float, metavar="T", help="times hidden from heads that mix")
    options.add_argument("--keep", type=float, metavar="T", help="the only time that heads which mix may see")
    options.add_argument("--hide-cls", action="store_true", help="hide the CLS token's own key from the transformer")
    options.add_argument("--learning-rates", nargs="+", type=Above(0.0), default=RATES, metavar="LR", help="candidates")
    options.add_argument("--epochs", type=AtLeast(1, most=100_000), default=100, help="epochs of every fit")
    options.add_argument("--mixing-learning-rates", nargs="+", type=Above(0.0), metavar="LR", help="of heads that mix")  # fmt: skip
    options.add_argument("--mixing-epochs", type=AtLeast(1, most=100_000), metavar="N", help="of those that mix")  # fmt: skip
    options.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="K", help="of split, weights and order")  # fmt: skip
    options.add_argument("--mixing-seeds", nargs="+", type=int, metavar="K", help="of heads that mix (default: as the others)")  # fmt: skip
    options.add_argument("--validation-fraction", type=float, default=0.1, help="part of the train split held out")
    options.add_argument("--batch", type=AtLeast(1), default=256, help="images a step")
    options.add_argument("--dropout", type=float, default=0.25, help="of every head but linear ones")
    options.add_argument("--mlp-width", type=AtLeast(1, most=WIDEST), default=512, help="hidden units of mlp heads")
    options.add_argument("--gru-width", type=AtLeast(1, most=WIDEST), default=256, help="width of the gru's state")
    options.add_argument(
        "--transformer-width", type=AtLeast(1, most=WIDEST), default=256, help="width of the transformer's tokens"
    )
    options.add_argument(
        "--transformer-feedforward",
        type=AtLeast(1, most=WIDEST),
        default=512,
        help="hidden units of its feed-forward part",
    )
    options.add_argument(
        "--standardise",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="features (on unless --no-standardise)",
    )
    options.add_argument(
        "--precision",
        choices=fitting.PRECISIONS,
        default="auto",
        help="of products; auto: bfloat16 where the processor has it",
    )
    options.add_argument("--memory", type=AtLeast(1), metavar="MIB", help="of the fits that run together (default: chosen)")  # fmt: skip
    options.add_device()
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Fit what is missing of every store; 1 if a fit failed."""
    args = parser().parse_args(argv)
    check(args)
    device = experiment.choose_device(args.device)
    planned = [(store, list(plan(args, store))) for store in map(Store, args.stores)]
    if not args.best_store:
        return fit_stores(args, planned, device)
    first = [(store, [group for group in groups if group.head == args.heads[0]]) for store, groups in planned]
    others = [(store, [group for group in groups if group.head != args.heads[0]]) for store, groups in planned]
    return fit_stores(args, first, device) | fit_stores(args, where_best(first, others), device)


def fit_stores(args: argparse.Namespace, planned: Planned, device: torch.device) -> int:
    """Fit what is missing of the groups of each store, and print what there is; 1 if a fit failed."""
    status = 0
    for store, groups in planned:
        pending = [part for group in groups if (part := filing.missing(args, store, group)).seeds]
        cells = sum(1 for group in groups for seed in group.seeds for _ in group.cells(seed))
        print(f"classify {store.source}: {len(groups)} groups of fits for {cells} cells, {len(pending)} groups to do")
        if pending:
            rounds = fit_all(args, store, pending, device)
            epochs = sum(filing.schedule(args, group.head)[1] for group in pending)
            for _ in experiment.progress(rounds, f"classify {store.source}", "epochs", epochs):
                pass
        status |= report(store, groups)
    return status


def where_best(first: Planned, others: Planned) -> Planned:
    """Of the other groups, those on the store of a run where the first head validates best at some time, for each target.

    Controls of capacity (transformer-one) are fitted at that time alone.
    """
    chosen: dict[tuple[Path, str, int], tuple[float, Path, float]] = {}
    for store, groups in first:
        for (attribute, _, time, labels), cells in cells_of(store, groups)[0].items():
            target, here = (store.run, attribute, labels), (accuracies.choose(cells)[0], store.folder, time)
            chosen[target] = max(chosen.get(target, here), here, key=lambda found: found[0])
    kept = []
    for store, groups in others:
        ours = []
        for group in groups:
            target = store.run, group.target.attributes[0], group.labels or 0
            _, folder, time = chosen.get(target, (0.0, None, 0.0))
            if HEADS[group.head].control:
                group = dataclasses.replace(group, times=tuple(there for there in group.times if there == time))
            if folder == store.folder and group.times:
                ours.append(group)
        if ours:
            kept.append((store, ours))
    return kept


def check(args: argparse.Namespace) -> None:
    """Refuse values out of range, and options that exclude each other."""
    if not 0 < args.validation_fraction < 1:
        raise experiment.UsageError(f"--validation-fraction {args.validation_fraction:g}: expected between 0 and 1")
    if not 0 <= args.dropout < 1:
        raise experiment.UsageError(f"--dropout {args.dropout:g}: expected at least 0 and below 1")
    if args.transformer_width % 4:
        raise experiment.UsageError(f"--transformer-width {args.transformer_width}: expected a multiple of its 4 heads")
    if args.hide and args.keep is not None:
        raise experiment.UsageError("--hide and --keep exclude each other: --keep hides every other time")
    if args.best_store and (args.joint or HEADS[args.heads[0]].mixes):
        why = "is no head of one time" if HEADS[args.heads[0]].mixes else "fitted with --joint chooses for no attribute"
        raise experiment.UsageError(f"--best-store: the first of --heads chooses the store, and {args.heads[0]} {why}")
    for name in ("seeds", "mixing_seeds", "granularity", "labels"):
        values = getattr(args, name)
        setattr(args, name, list(dict.fromkeys(values)) if values else values)


def plan(args: argparse.Namespace, store: Store) -> Iterator[Group]:
    """Every group of fits asked for of a store; a time that is not stored is a ValueError that lists those that are."""
    hiding = Hiding(tuple(sorted(set(args.hide or ()))), args.keep, args.hide_cls)
    timeless = len(store.train.times) == 1
    heads = [
        head for head in args.heads if plans.means_something(head, hiding) and not (timeless and HEADS[head].mixes)
    ]
    left_out = ", ".join(head for head in args.heads if head not in heads)
    if left_out:
        why = "has one time only: nothing to mix" if timeless else "what is hidden changes nothing for them"
        print(
            f"{store.source} {why}, {left_out} left out" if timeless else f"{store.source}: {left_out} left out, {why}"
        )
    single = args.times or (store.train.times if timeless else trajectories.union(args.granularity))
    single = [store.train.nearest(time) for time in single]
    for target, labels, head in itertools.product(store.targets(args.attributes, args.joint), args.labels or [None], heads):  # fmt: skip
        check_labels(args, target, labels)
        rates, _ = filing.schedule(args, head)
        if HEADS[head].mixes:
            seeds = args.mixing_seeds or args.seeds
            yield from plans.mixing_groups(store, head, target, args.granularity, labels, hiding, seeds)
        else:
            yield from plans.single_groups(store, head, target, single, labels, args.seeds, len(rates))


def check_labels(args: argparse.Namespace, target: Target, labels: int | None) -> None:
    """Refuse numbers of labels that the train split does not have, or that leave a class or a part without images."""
    if labels is None:
        return
    if labels > len(target.train):
        raise experiment.UsageError(
            f"--labels {labels}: the store has {len(target.train)} labelled images to train with"
        )
    if labels < max(target.classes):
        name = target.attributes[target.classes.index(max(target.classes))]
        raise experiment.UsageError(f"--labels {labels}: fewer than the {max(target.classes)} classes of {name!r}")
    if not 0 < round(labels * args.validation_fraction) < labels:
        raise experiment.UsageError(
            f"--labels {labels}: a validation fraction of {args.validation_fraction:g} holds out "
            f"{round(labels * args.validation_fraction)} of them; give more labels or another --validation-fraction"
        )


def fit_all(args: argparse.Namespace, store: Store, groups: Sequence[Group], device: torch.device) -> Iterator[None]:
    """Fit each group and write its cells; yields once an epoch. Representations are read anew where the times change."""
    held: tuple[float, ...] | None = None
    z_train = z_test = torch.empty(0)
    for group in groups:
        if group.times != held:
            z_train = z_test = torch.empty(0)  # let go of the last times before the next are read
            z_train, z_test = (
                torch.from_numpy(split.select(group.times)).to(device) for split in (store.train, store.test)
            )
            held = group.times
        rates, epochs = filing.schedule(args, group.head)
        fits = fitting.Fits(
            group.head, z_train, group.target.train, group.target.criterion(), rates, group.seeds, args.batch,
            args.validation_fraction, args.standardise, filing.sizes(args, group.head), device, count=group.labels,
            hidden=group.hiding.mask(group.times), hide_cls=group.hiding.cls, precision=args.precision,
            memory=args.memory and args.memory << 20,
        )  # fmt: skip
        for _ in range(epochs):
            fits.epoch()
            yield
        for seed, outcomes in zip(group.seeds, fits.outcomes(z_test, group.target.test), strict=True):
            filing.write(args, store, group, seed, outcomes)


def cells_of(store: Store, groups: Sequence[Group]) -> tuple[dict[Line, list[results.Cell]], list[results.Cell]]:
    """The cells of these groups, by what they have in common besides the seed; and those whose fit failed."""
    found: dict[Line, list[results.Cell]] = {}
    failed = []
    for group in groups:
        for seed in group.seeds:
            for _, _, key in group.cells(seed):
                cell = results.read_cell(results.cell_path(store.run / "classify", **key))
                if cell.failed:
                    failed.append(cell)
                else:
                    line = (key["attribute"], accuracies.method_of(key), key["times"], key.get("labels", 0))
                    found.setdefault(line, []).append(cell)
    return found, failed


def report(store: Store, groups: Sequence[Group]) -> int:
    """Print the accuracies by attribute, head and times; 1 if a cell failed."""
    found, failed = cells_of(store, groups)
    print("attribute          head         times    labels  validation  test   chance")
    order = sorted(found, key=lambda line: (*line[:2], str(line[2]), line[3]))
    for attribute, method, times, labels in order:
        cells = found[attribute, method, times, labels]
        validation, hits = accuracies.choose(cells)
        shown = f"{times:g}" if isinstance(times, float) else times
        chance = cells[0].protocol["chance"]
        print(
            f"{attribute:<18} {method:<12} {shown:<8} {labels or 'all':>6} {validation:>10.3f} {hits.mean():>6.3f} {chance:>7.3f}"
        )
    for cell in failed:
        print(f"error: {cell.path}: {cell.value['error']}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    experiment.launch(main)
