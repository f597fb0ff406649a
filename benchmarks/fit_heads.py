"""Time of one epoch of one fit, among all fits of the protocol, beside the original's scripts in the same run.

The protocol of From Points to Functions: 45,000 images to train on, 5,000 to validate, 10,000 to test, 11 times of 128
features, 10 classes, batches of 256, Adam; the grids are

  mlp          6 learning rates x 3 seeds x 11 times
  gru          6 learning rates x 5 seeds
  transformer  6 learning rates x 5 seeds

Ours is an epoch of the whole grid divided by its fits, with its share of the one test at the end of 100 epochs; the
original's is an epoch of one fit, whose script tests after every epoch. Features are random, with a class in each. Rounds
alternate between the two; CPU time is told too, as wall time means little on a machine that others use. Both sides are given
the same weights (parity.py), and how far their logits are apart is told.

    python benchmarks/fit_heads.py --original DIR                # full size: a quarter of an hour on 2 CPU threads
    python benchmarks/fit_heads.py --original DIR --scale 0.1    # a tenth of the images
"""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import parity
import torch
from original_heads import make
from torch.autograd import DeviceType

from diffusion_model import arrays, experiment
from diffusion_model.experiment import AtLeast
from downstream_classification import fitting
from downstream_classification.classify import RATES

SPLITS = {"train": 45_000, "val": 5_000, "test": 10_000}
TIMES, DIMENSION, CLASSES, EPOCHS = 11, 128, 10, 100
SEEDS = {"mlp": 3, "gru": 5, "transformer": 5}
KINDS = {  # kind of work: what the names of its operators hold, first fit; the rest is sums, products and copies
    "optimiser": ("adam",),
    "matrix products": ("mm", "gemm"),
    "random numbers": ("random",),
    "normalisation": ("norm", "softmax"),
    "activations": ("sigmoid", "tanh", "relu", "threshold"),
    "gathering": ("index", "cat"),
}


def make_parser() -> experiment.Parser:
    """The command line."""
    parser = experiment.Parser(__doc__, prog="fit_heads.py")
    parser.add_argument("--original", type=Path, help="root of a checkout of traj_drl (default: without it)")
    parser.add_argument("--heads", nargs="+", default=list(SEEDS), choices=SEEDS)
    parser.add_argument("--scale", type=float, default=1.0, help="part of the images")
    parser.add_argument("--rates", type=AtLeast(1), default=len(RATES), help="learning rates of the grid")
    parser.add_argument("--seeds", type=AtLeast(1), help="of the grid (default: the protocol's)")
    parser.add_argument("--times", type=AtLeast(1), default=TIMES, help="of which the mlp sees one a fit")
    parser.add_argument("--precision", choices=fitting.PRECISIONS, default="auto", help="of our products")
    parser.add_argument("--memory", type=AtLeast(1), metavar="MIB", help="of the fits that run together")
    parser.add_argument("--rounds", type=AtLeast(1), default=3, help="rounds of timing")
    parser.add_argument("--threads", type=AtLeast(1), default=2, help="of a CPU")
    parser.add_argument("--profile", action="store_true", help="the share of each kind of work in our epoch")
    parser.add_argument("--out", type=Path, help="JSON with all that was measured (default: none is written)")
    parser.add_device()
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    args = make_parser().parse_args(argv)
    if not 0.01 <= args.scale <= 1:
        raise experiment.UsageError(f"--scale {args.scale:g}: expected 0.01 to 1")
    torch.set_num_threads(args.threads)
    device = experiment.choose_device(args.device)
    images = features(args.scale, args.times)
    measured = {head: compare(head, args, images, device) for head in args.heads}
    if args.out:
        settings = {name: str(value) for name, value in vars(args).items()}
        arrays.write_json(args.out, {"environment": experiment.environment(), "settings": settings, "heads": measured})
    return 0


def features(scale: float, times: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Features [N, T, D] and labels [N] of each split, scaled in number."""
    random, images = torch.Generator().manual_seed(0), {}
    for split, count in SPLITS.items():
        count = round(count * scale)
        labels = torch.randint(CLASSES, (count,), generator=random)
        z = torch.randn(count, times, DIMENSION, generator=random)
        z[:, :, :CLASSES] += torch.eye(CLASSES)[labels][:, None]
        images[split] = (z, labels)
    return images


def compare(head: str, args: Any, images: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Seconds of an epoch of a fit, wall and CPU, ours and the original's by rounds; told as they come."""
    fits = grid(head, args, images, device)
    count = fits.best_accuracy.size
    ways: dict[str, Callable[[], None]] = {"ours": fits.epoch}
    if args.original:
        parts = {name: (z[:, 0] if head == "mlp" else z, labels.float()) for name, (z, labels) in images.items()}
        ways = {"original": make(args.original, head, parts, CLASSES, device), **ways}
    for way in ways.values():
        way()  # what is done once
    test = seconds(lambda: fits.outcomes(*images["test"]), device)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(args.rounds):
        for name, way in ways.items():
            found[name].append(seconds(way, device))
    found["ours"] = [tuple((np.array(epoch) + np.array(test) / EPOCHS) / count) for epoch in found["ours"]]
    print(f"{head}: {count} fits in {len(fits.chunks)} chunks, {fits.precision}, load {os.getloadavg()[0]:.1f}")
    for name, rounds in found.items():
        wall, busy = np.median(rounds, axis=0)
        print(f"  {name:9} {wall:8.3f} s an epoch and fit, {busy:8.3f} s of CPU")
    if args.original:
        theirs, mine = parity.original_head(args.original, head), parity.our_head(head)
        apart = [f"{name.partition(': ')[2]} {parity.difference(mine[name], theirs[name]):.0e}" for name in theirs]
        print(
            f"  the same function: with the same weights and dropout logits differ by {', '.join(apart)} of the largest"
        )
        wall, busy = (np.array(found["original"]) / np.array(found["ours"])).T
        print(
            f"  ours is {np.median(wall):.2f} times as fast ({wall.min():.2f} to {wall.max():.2f}); CPU {np.median(busy):.2f}"
        )
    if args.profile:
        print("  " + ", ".join(f"{kind} {share:.0%}" for kind, share in profile(fits).items()))
    return {"fits": count, "precision": str(fits.precision), "seconds": found}


def grid(head: str, args: Any, images: dict[str, Any], device: torch.device) -> fitting.Fits:
    """All fits of a head."""
    z, labels = (torch.cat(parts) for parts in zip(images["train"], images["val"], strict=True))
    fraction = len(images["val"][1]) / len(labels)
    return fitting.Fits(
        head, z, labels.numpy(), fitting.CrossEntropy(CLASSES), RATES[: args.rates], range(args.seeds or SEEDS[head]),
        validation_fraction=fraction, device=device, precision=args.precision,
        memory=args.memory and args.memory << 20,
    )  # fmt: skip


def seconds(work: Callable[[], Any], device: torch.device) -> tuple[float, float]:
    """Wall and CPU seconds of some work."""
    started, busy = time.perf_counter(), time.process_time()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started, time.process_time() - busy


def profile(fits: fitting.Fits) -> dict[str, float]:
    """Share of each kind of work in the operators' own time of an epoch, largest first."""
    with torch.profiler.profile() as seen:
        fits.epoch()
    entries = seen.key_averages()
    kernels = [entry for entry in entries if entry.device_type == DeviceType.CUDA]
    times: dict[str, float] = {}
    for entry in kernels or entries:
        own = entry.self_device_time_total if kernels else entry.self_cpu_time_total
        kind = next((kind for kind, names in KINDS.items() if any(name in entry.key.lower() for name in names)), "rest")
        times[kind] = times.get(kind, 0.0) + own
    return {kind: times[kind] / sum(times.values()) for kind in sorted(times, key=times.get, reverse=True)}


if __name__ == "__main__":
    experiment.launch(main)
