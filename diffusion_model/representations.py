"""Turn images into features at every time of the paper's grids: run -> trajectories of representations, and Gaussian moments.

    python diffusion_model/representations.py runs/drl-synthetic16 --granularities 10 --sources encoder untrained pixels pca
    python diffusion_model/representations.py runs/edm-cifar10 --sources blocks --times 0.2 0.3 0.4 --dtype float16
    torchrun --nproc_per_node=8 diffusion_model/representations.py runs/drl-cifar10

writes RUN/trajectories/SOURCE/SPLIT/ (one file a time over the union of the grids asked for) and RUN/moments/ (count, mean
and covariance of the training images and of z at each time). A time t labels the noise level 0.01 * 5000^t in units of the
data's standard deviation, for every source alike. Sources:

    encoder        the trained encoder's z(x0, t): its live weights, posterior mean, clean images
    untrained      the same network untrained, as a control
    block-NAME     a block of the score network for the noised image (--list-blocks tells the names); blocks: all of them
    pixels, pca    the clean images, or their --components principal ones: one time, 0

The noise of an image is the same at every time and in every run; --draws averages the activations of several. --limit draws
images by a fixed seed: row i of a store is the i-th of one random order of the split, whatever the limit (Split.sample). The
same command again goes on where it was killed, and adds times that are new, on any number of ranks. Ranks share the images,
and write what one would. `list_trajectories.py RUN` shows what is there.
"""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffusion_model import (
    arrays,
    checkpoint,
    data,
    encoding,
    experiment,
    locks,
    moments,
    ranks,
    readouts,
    trajectories,
)
from diffusion_model.experiment import AtLeast
from diffusion_model.readouts import Readout
from diffusion_model.score_model import ScoreModel
from diffusion_model.training import compilation_lacks, has_bfloat16
from diffusion_model.trajectories import Trajectories, Writer

SOURCES = ("encoder", "untrained", *readouts.TIMELESS)  # and the blocks
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def make_parser() -> experiment.Parser:
    """The command line."""
    parser = experiment.Parser(__doc__, prog="representations.py")
    parser.add_argument("run", type=Path, help="a run")
    parser.add_argument(
        "--granularities",
        type=AtLeast(1, most=trajectories.FINEST),
        nargs="+",
        default=[2, 5, 7, 10, 17, 25, 37, 50],
        help="times i/k for i = 0..k",
    )
    parser.add_argument("--times", type=float, nargs="+", metavar="T", help="these times, and no grids")
    parser.add_argument("--sources", nargs="+", default=["encoder"], metavar="SOURCE", help="what to encode with")
    parser.add_argument("--list-blocks", action="store_true", help="print the blocks of the score network, and end")
    parser.add_argument(
        "--draws", type=AtLeast(1, most=10_000), default=1, help="of noise, for blocks: activations are averaged"
    )
    parser.add_argument("--pooling", default="mean", choices=readouts.POOLING, help="over the pixels, for blocks")
    parser.add_argument("--components", type=AtLeast(1), default=64, help="for pca")
    parser.add_argument("--splits", nargs="+", default=list(data.SPLITS), choices=data.SPLITS, help="which images")
    parser.add_argument(
        "--limit", type=AtLeast(1), help="so many images of each split, drawn by a fixed seed (default: all)"
    )
    parser.add_argument("--dtype", default="float32", choices=trajectories.DTYPES, help="of the stored features")
    parser.add_argument(
        "--precision", default="auto", choices=("auto", *PRECISIONS), help="of the products: auto is bfloat16 on a GPU"
    )
    parser.add_argument("--compile", action="store_true", help="compile the encoder (minutes, once; for GPUs)")
    parser.add_argument(
        "--batch",
        type=AtLeast(1),
        default=512,
        help="images read, encoded and written together; features differ with it by rounding of the --precision",
    )
    parser.add_step()
    parser.add_process()
    parser.add_data()
    parser.add_device()
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    args = make_parser().parse_args(argv)
    args.times = asked_times(args)
    with ranks.session(experiment.choose_device(args.device)) as device:
        record = checkpoint.read_run(args.run)
        model = checkpoint.load_score_model(args.run, args.step, device=device, process=args.process)
        if args.list_blocks:
            ranks.say(block_table(model))
            return 0
        if device.type == "cpu":
            experiment.keep_memory()
        args.precision = precision_of(args.precision, device)
        groups = group_sources(args.sources, model)
        if args.compile and (lack := compilation_lacks(device)):
            raise ValueError(f"--compile needs {lack}: leave it out")
        with exact_products(), locks.shared(args.run / "trajectories", "encoded"):
            encode_run(args, model, record, groups)
    return 0


def asked_times(args: Any) -> list[float]:
    """The times of --times, or of the union of the grids."""
    if args.times is not None:
        wrong = [time for time in args.times if not 0 <= time <= 1]
        if wrong:
            raise experiment.UsageError(f"--times {wrong[0]:g}: expected a time from 0 to 1")
        return sorted({round(time, 8) for time in args.times})
    try:
        return trajectories.union(args.granularities)
    except ValueError as error:
        raise experiment.UsageError(f"--granularities: {error}") from None


def precision_of(name: str, device: torch.device) -> str:
    """What `auto` is: bfloat16 where a GPU multiplies in it, else float32."""
    if name != "auto":
        return name
    return "bfloat16" if device.type == "cuda" and has_bfloat16(device) else "float32"


@contextlib.contextmanager
def exact_products() -> Iterator[None]:
    """Convolutions in float32 where float32 is asked for: on a GPU they would be done in TF32."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=False, allow_tf32=False):
        yield


def block_table(model: ScoreModel) -> str:
    """The blocks of a score network in the order in which they are computed, with the shapes of their activations."""
    rows = [
        (readouts.source_of(name), "x".join(map(str, shape))) for name, shape in readouts.block_shapes(model).items()
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name.ljust(width)}  {shape}" for name, shape in rows)


def group_sources(asked: Sequence[str], model: ScoreModel) -> list[list[str]]:
    """Sources in groups that one pass computes together: the blocks are one, every other source is alone."""
    known = [readouts.source_of(name) for name in readouts.block_names(model)] if model.net is not None else []
    for source in asked:
        if source.startswith("block") and model.net is None:
            readouts.block_names(model)  # says why there are none
        if source not in (*SOURCES, "blocks", *known):
            near = experiment.nearest(source, (*SOURCES, "blocks", *known))
            raise experiment.UsageError(f"--sources: {source!r} is not known; {near}; --list-blocks tells the blocks")
        if source in ("encoder", "untrained") and model.encoder is None:
            raise ValueError(
                f"this run has model.mode none and no encoder, so no source {source!r}: take --sources block-NAME, pixels "
                "or pca, or train a run with --config configs/drl.py:PRESET"
            )
    blocks = [source for source in known if source in asked or "blocks" in asked]
    return [[source] for source in SOURCES if source in asked] + ([blocks] if blocks else [])


def encode_run(args: Any, model: ScoreModel, record: dict[str, Any], groups: list[list[str]]) -> None:
    """Every split and source of a run."""
    splits = {name: data.open_split_of(record, name, args.data) for name in args.splits}
    for sources in groups:
        readout, about = make_readout(args, model, record, sources)
        for split in splits.values():
            encode_split(args, model, readout, about, split.sample(args.limit))
        if sources == ["encoder"] and "train" in splits:
            write_moments(args.run / "moments", splits["train"], args.run / "trajectories" / "encoder" / "train")


def make_readout(
    args: Any, model: ScoreModel, record: dict[str, Any], sources: list[str]
) -> tuple[Readout, dict[str, Any]]:
    """The readout of some sources, and what their stores say of it beside their data."""
    source, precision = sources[0], PRECISIONS[args.precision]
    if source == "encoder":
        about = {"step": model.step, "weights": readouts.fingerprint(model.encoder)}
        readout: Readout = readouts.Codes(source, model, precision, args.compile)
    elif source == "untrained":
        fresh, weights = readouts.untrained(model, record)
        readout, about = readouts.Codes(source, fresh, precision, args.compile), {"step": 0, "weights": weights}
    elif source in readouts.TIMELESS:
        basis = None
        if source == "pca":
            train = data.open_split_of(record, "train", args.data)
            basis = readouts.principal_components(args.run / "moments", train, model.scaling, args.components)
        return readouts.Pixels(source, model, basis), {"step": None, "precision": "float32"}
    else:
        names = [name.removeprefix("block-") for name in sources]
        readout = readouts.Activations(names, model, precision, args.draws, args.pooling)
        weights = readouts.fingerprint(model.net, model.encoder)
        about = {"step": model.step, "weights": weights, "draws": args.draws, "pooling": args.pooling}
    return readout, about | {"precision": args.precision}


def encode_split(args: Any, model: ScoreModel, readout: Readout, about: dict[str, Any], split: data.Split) -> None:
    """The stores of one readout for one split: every pending time."""
    provenance = {
        "dataset": split.name, "split": split.split, "data_hash": split.hash, "rows": rows_of(split), "mode": model.mode,
        "widen": model.config["encoder"]["widen"], "class_names": split.meta.get("class_names"), **about,
    }  # fmt: skip
    times = [0.0] if readout.outputs.keys() <= set(readouts.TIMELESS) else args.times
    folder = args.run / "trajectories"
    writers = {
        source: Writer(folder / source / split.split, times, split.labels, split.attributes, dimension, args.dtype,
                       source=source, **provenance)
        for source, dimension in readout.outputs.items()
    }  # fmt: skip
    pending = ranks.from_first({source: len(writer.pending) for source, writer in writers.items()})
    for source, writer in writers.items():
        if not pending[source]:
            ranks.say(f"{writer.folder}: nothing to do, {len(writer.meta['stored'])} times are stored")
        elif ranks.first():
            size = pending[source] * len(split) * readout.outputs[source] * np.dtype(args.dtype).itemsize / 1e6
            described = f"{len(split):,} images, {readout.outputs[source]} features: {size:.1f} MB"
            print(f"{writer.folder}: {pending[source]} of {len(writer.times)} times, {described}", file=sys.stderr)  # fmt: skip
    writers = {source: writer for source, writer in writers.items() if pending[source]}
    if writers:
        encoding.encode(readout, split, writers, args.batch)


def rows_of(split: data.Split) -> str:
    """Which of the split's images a store holds, in which order."""
    if split.rows is None:
        return trajectories.EARLIER["rows"]
    return f"drawn by a fixed seed from {split.meta['count']:,}"


def write_moments(folder: Path, split: data.Split, store: Path) -> None:
    """RUN/moments/images and RUN/moments/z_TIME: sums of the training images (uint8) and of z at each time.

    Those of z name the checksum of the codes that they are of, and are made anew where the store has been.
    Ranks share the batches of the images and the times of z.
    """
    readouts.image_moments(folder, split)
    z = Trajectories(store)
    described = {"dataset": split.name, "data_hash": split.hash, "split": split.split, "values": "z"}
    targets = {time: folder / f"z_{time:.8f}" for time in z.times}
    codes = {time: z.meta["stored"][f"{time:.8f}"]["crc32"] for time in z.times}
    missing = ranks.from_first([time for time in z.times if not are_of(targets[time], z.count, codes[time])])
    for time in ranks.deal(missing):
        held = moments.Moments(z.dimension, **described, time=time, codes=codes[time])
        for _, rows in z.blocks(time):
            held.update(rows)
        held.save(targets[time])


def are_of(folder: Path, count: int, codes: int) -> bool:
    """Whether moments of z are there and of these codes; those of earlier versions tell their number alone."""
    if not arrays.is_finished(folder):
        return False
    meta = dict(arrays.read_meta(folder, "moments", f"remove {folder}"))
    return meta.get("count") == count and meta.get("codes", codes) == codes


if __name__ == "__main__":
    experiment.launch(main)
