"""The mean and covariance of a data set's pixels, as the Gaussian whose score is known in closed form.

DATASET is a prepared data set in any spelling, KIND says what to keep (gaussian: mean, eigenvectors and eigenvalues of
the covariance; isotropic: mean and one variance), DIR is the folder to write. Statistics are kept for uint8 pixels, so
that one folder serves every run on the data. What is there already for the same options is kept; anything else is refused.
Ranks share the images, and as their sums are exact the statistics are those of one.

  python linear_structure/get_parameters.py CIFAR10 gaussian gaussian_params
  torchrun --nproc_per_node=8 linear_structure/get_parameters.py celeba gaussian gaussian_params
  python linear_structure/get_parameters.py synthetic16 gaussian gaussian_params --moments runs/drl-synthetic16/moments
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from diffusion_model import arrays, data, moments, ranks
from diffusion_model.experiment import AtLeast, Parser, launch
from linear_structure.gaussian import CUT_OFF, UNIT, Gaussian

KINDS = ("gaussian", "isotropic")


def make_parser() -> Parser:
    """The command line."""
    parser = Parser(__doc__, prog="get_parameters.py")
    parser.add_argument("dataset", metavar="DATASET", help="data set")
    parser.add_argument("kind", metavar="KIND", choices=KINDS, help="gaussian or isotropic")
    parser.add_argument("folder", metavar="DIR", type=Path, help="folder to write")
    parser.add_argument("--split", default="train", choices=data.SPLITS, help="which images")
    parser.add_argument(
        "--rank",
        type=AtLeast(1, "rank 0 is KIND isotropic"),
        help="keep this many directions at most (default: all above --cut-off)",
    )
    parser.add_argument(
        "--cut-off", type=AtLeast(0.0), default=CUT_OFF, help="drop directions of less variance, of images on [-1, 1]"
    )
    parser.add_argument(
        "--spread", action="store_true", help="give the variance left out evenly to the directions left out"
    )
    parser.add_argument("--moments", type=Path, help="take these moments of the images (RUN/moments) and read no image")
    parser.add_argument("--data", type=Path, help="folder of the data sets (default: $DATA, else data)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    args = make_parser().parse_args(argv)
    with ranks.session(torch.device("cpu")):
        return make_statistics(args)


def make_statistics(args: Any) -> int:
    """Moments by all ranks, the Gaussian by the first."""
    if args.moments is not None:
        held = read_moments(args.moments, data.canonical(args.dataset), args.split)
        described = held.meta
    else:
        held = None
        split = data.open_split(args.dataset, args.split, data.root(args.data))
        described = {"dataset": split.name, "split": split.split, "data_hash": split.hash, "shape": list(split.shape)}
    wanted = {name: described[name] for name in ("dataset", "split", "data_hash", "shape")}
    wanted |= {"statistics": args.kind, "cut_off": args.cut_off, "rank": args.rank, "spread": args.spread}
    if ranks.from_first(is_there(args.folder, wanted)):
        ranks.say(f"skipped: {args.folder} holds these statistics already")
        return 0
    start = time.monotonic()
    held = moments.of_images(split) if held is None else held
    if ranks.first():
        fit(args, wanted, held, start)
    return 0


def fit(args: Any, wanted: dict[str, Any], held: moments.Moments, start: float) -> None:
    """Fit the Gaussian, write it and say what it is."""
    rank = 0 if args.kind == "isotropic" else args.rank
    gaussian = Gaussian.fit(held, rank, args.cut_off * UNIT, args.spread or args.kind == "isotropic")
    gaussian.save(args.folder, **wanted, values="uint8 pixels", count=held.count)
    trace = float(gaussian.variance.sum())
    kept = f"rank {gaussian.rank} of {gaussian.dimension}, {float(gaussian.lambdas.sum()) / trace:.2%} of the variance"
    if args.kind == "isotropic":
        kept = f"standard deviation {gaussian.rest**0.5 / UNIT**0.5:.4f} on [-1, 1]"
    elif gaussian.rank > 2:
        share = gaussian.lambdas[:3] / trace
        kept += f", first directions {', '.join(f'{value:.1%}' for value in share.tolist())}"
    print(
        f"{args.folder}: {args.kind} of {held.count:,} {wanted['dataset']}/{wanted['split']} images, {kept}, "
        f"{time.monotonic() - start:.1f} s"
    )


def read_moments(folder: Path, name: str, split: str) -> moments.Moments:
    """Moments of the images of this data set and split, from RUN/moments or the folder inside it."""
    folder = folder / "images" if (folder / "images").is_dir() else folder
    held = moments.Moments.load(folder, "run `python diffusion_model/representations.py RUN` first")
    found = {field: held.meta.get(field) for field in ("dataset", "split", "values")}
    wanted = {"dataset": name, "split": split, "values": "uint8"}
    if found != wanted or not {"data_hash", "shape"} <= held.meta.keys():
        raise ValueError(f"--moments {folder} holds {found}, expected {wanted}: leave it out to read the images")
    return held


def is_there(folder: Path, wanted: dict) -> bool:
    """Whether these very statistics lie in `folder`; something else there is a ValueError that says what."""
    if not arrays.is_finished(folder):
        if folder.is_dir() and any(
            not entry.name.startswith((".", "mu.", "U.", "lambdas.", "variance.")) for entry in folder.iterdir()
        ):
            raise ValueError(f"{folder} holds other files, none of them statistics: give an empty or new folder")
        return False
    meta = arrays.read_meta(folder, "gaussian", "give another folder")
    changed = [
        f"{name}: {meta.get(name)!r} there, {value!r} now" for name, value in wanted.items() if meta.get(name) != value
    ]
    if changed:
        raise ValueError(f"{folder} holds other statistics ({', '.join(changed)}): remove it or give another folder")
    arrays.read_folder(folder, "gaussian", "remove it")
    return True


if __name__ == "__main__":
    launch(main)
