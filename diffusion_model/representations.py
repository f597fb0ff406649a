"""Encode images at every time of the paper's grids: run -> trajectories of representations, and Gaussian moments.

    python diffusion_model/representations.py runs/drl-synthetic16 --granularities 10 --sources encoder untrained pixels
    torchrun --nproc_per_node=8 diffusion_model/representations.py runs/drl-cifar10

writes RUN/trajectories/SOURCE/SPLIT/ (one file a time over the union of the grids asked for) and RUN/moments/ (count, mean
and covariance of the training images and of z at each time). Sources: the trained encoder (its live weights, posterior
mean, clean images), the same network untrained as a control, and the raw pixels (one time, 0). The same command again
goes on with the times that are missing, on any number of ranks. Ranks share the times, and write what one would.
"""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffusion_model import arrays, checkpoint, data, experiment, moments, ranks, trajectories
from diffusion_model.experiment import AtLeast
from diffusion_model.score_model import ScoreModel

SOURCES = ("encoder", "untrained", "pixels")


def make_parser() -> experiment.Parser:
    """The command line."""
    parser = experiment.Parser(__doc__, prog="representations.py")
    parser.add_argument("run", type=Path, help="a run with an encoder")
    parser.add_argument(
        "--granularities", type=int, nargs="+", default=[2, 5, 7, 10, 17, 25, 37, 50], help="times i/k for i = 0..k"
    )
    parser.add_argument("--sources", nargs="+", default=["encoder"], choices=SOURCES, help="what to encode with")
    parser.add_argument("--splits", nargs="+", default=list(data.SPLITS), choices=data.SPLITS, help="which images")
    parser.add_argument("--limit", type=AtLeast(1), help="only the first so many images of each split (default: all)")
    parser.add_argument("--batch", type=AtLeast(1), default=500, help="images at once")
    parser.add_argument("--step", type=int, help="checkpoint (default: the newest)")
    parser.add_data()
    parser.add_device()
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    args = make_parser().parse_args(argv)
    try:
        times = trajectories.union(args.granularities)
    except ValueError as error:
        raise experiment.UsageError(f"--granularities: {error}") from None
    with ranks.session(experiment.choose_device(args.device)) as device:
        encode_run(args, times, device)
    return 0


def encode_run(args: Any, times: list[float], device: torch.device) -> None:
    """Every split and source of a run."""
    record = checkpoint.read_run(args.run)
    model = checkpoint.load_score_model(args.run, args.step, device=device)
    if model.encoder is None:
        raise ValueError(
            f"{args.run} has model.mode none and no encoder: train one with --config configs/drl.py:PRESET"
        )
    for split_name in args.splits:
        split = data.open_split_of(record, split_name, args.data)
        split = dataclasses.replace(split, images=split.images[: args.limit], labels=split.labels[: args.limit])
        for source in args.sources:
            encode_split(args, model, record, split, source, times)


def encode_split(
    args: Any, model: ScoreModel, record: dict[str, Any], split: data.Split, source: str, times: list[float]
) -> None:
    """One source and split: every pending time, and for the training split the moments."""
    times = [0.0] if source == "pixels" else times
    dimension = int(np.prod(split.shape)) if source == "pixels" else model.encoder.dimension
    folder = args.run / "trajectories" / source / split.split
    provenance = {
        "source": source, "dataset": split.name, "split": split.split, "data_hash": split.hash,
        "mode": model.mode, "widen": model.config["encoder"]["widen"],
        "step": {"encoder": model.step, "untrained": 0, "pixels": None}[source], "class_names": split.meta.get("class_names"),
    }  # fmt: skip
    writer = trajectories.Writer(folder, times, split.labels, split.attributes, dimension, **provenance)
    pending = ranks.from_first(writer.pending)
    if pending:
        size = len(pending) * len(split) * dimension * 4 / 1e6
        described = f"{len(split):,} images, {dimension} features: {size:.1f} MB"
        if ranks.first():
            print(f"{folder}: {len(pending)} of {len(times)} times, {described}", file=sys.stderr)
        encode_times(encoder_of(model, record, source), model, split, writer, pending, args.batch)
    else:
        ranks.say(f"{folder}: nothing to do, {len(times)} times are stored")
    if split.split == "train" and source == "encoder":
        whole = data.open_split(split.name, "train", args.data)
        write_moments(args.run / "moments", whole, trajectories.Trajectories(folder))


def encode_times(
    encode: Callable[[torch.Tensor, float], torch.Tensor],
    model: ScoreModel,
    split: data.Split,
    writer: trajectories.Writer,
    pending: list[float],
    batch: int,
) -> None:
    """Encode the pending times, one a rank at once: each rank writes its own, then the first records those of all."""
    for group in experiment.progress(ranks.rounds(pending), f"encoding {writer.folder}", "times a rank"):
        written = {}
        for time in ranks.deal(group):
            written = writer.put(time, encode_images(encode, model, split, time, batch))
        writer.record(ranks.collect(written))
    ranks.barrier()  # what follows reads the store that the first rank has recorded


def encoder_of(model: ScoreModel, record: dict[str, Any], source: str) -> Callable[[torch.Tensor, float], torch.Tensor]:
    """(x0 [B, C, H, W] in model space, t) -> features [B, D]."""
    if source == "pixels":
        return lambda x0, time: x0.flatten(1)
    if source == "untrained":
        torch.manual_seed(experiment.seed_of(record["config"]["seed"], "weights"))
        device = next(model.parameters()).device
        model = checkpoint.build(record).requires_grad_(False).to(device)
        calibrate(model, record)
        model.eval()
    return lambda x0, time: model.encode(x0, time).mean


def encode_images(
    encode: Callable[[torch.Tensor, float], torch.Tensor], model: ScoreModel, split: data.Split, time: float, batch: int
) -> np.ndarray:
    """Features [N, D] of a whole split at one time."""
    device, pieces = next(model.parameters()).device, []
    with torch.inference_mode():
        for start in range(0, len(split), batch):
            pixels = torch.from_numpy(np.array(split.images[start : start + batch])).to(device)
            pieces.append(encode(model.scaling.to_model(pixels), time).float().cpu().numpy())
    return np.concatenate(pieces)


def calibrate(model: ScoreModel, record: dict[str, Any], images: int = 512) -> None:
    """Give an untrained encoder the batch-norm statistics of white noise at random times, so that it is no straw man.

    At initialisation the running statistics (0, 1) are those of no data at all; a cumulative average over a few batches
    puts every layer in its working range without any training.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # cumulative
    generator = experiment.generator(record["config"]["seed"], "calibrate")
    device = next(model.parameters()).device
    model.train()
    for _ in range(4):
        noise = torch.randn(images // 4, *model.shape, generator=generator) * model.std
        model.encode(noise.to(device), torch.rand(images // 4, generator=generator).to(device))


def write_moments(folder: Path, split: data.Split, store: trajectories.Trajectories) -> None:
    """RUN/moments/images and RUN/moments/z_TIME: sums of the training images (uint8) and of z at each time.

    Ranks share the batches of the images and the times of z.
    """
    if ranks.from_first(not arrays.is_finished(folder / "images")):
        images = moments.of_images(split)
        if ranks.first():
            images.save(folder / "images")
    described = {"dataset": split.name, "data_hash": split.hash, "split": split.split, "values": "z"}
    targets = {time: folder / f"z_{time:.8f}" for time in store.times}
    missing = ranks.from_first([time for time in store.times if not arrays.is_finished(targets[time])])
    for time in ranks.deal(missing):
        held = moments.Moments(store.dimension, **described, time=time)
        held.update(np.asarray(store.at(time))).save(targets[time])


if __name__ == "__main__":
    experiment.launch(main)
