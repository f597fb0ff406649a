"""The mean and covariance of a data set's pixels, as the Gaussians whose scores are known in closed form.

DATASET is a prepared data set in any spelling, KIND says what to keep (gaussian: mean, eigenvectors and eigenvalues of
the covariance; isotropic: mean and one variance; mixture: several Gaussians, see clusters.py), DIR is the folder to write.
Statistics are kept for uint8 pixels, so that one folder serves every run on the data. What is there already for the same
options is kept; anything else is refused. A killed command goes on where it was when it is given again. Ranks share the
images; sums are exact, so the statistics are those of one rank, except that a covariance that does not fit in --memory is
decomposed at --rank from streams over the images, in float32.

  python linear_structure/get_parameters.py CIFAR10 gaussian gaussian_params
  python linear_structure/get_parameters.py CIFAR10 gaussian class_params --class-conditional class --rank 500
  python linear_structure/get_parameters.py CIFAR10 mixture mixture_params --components 10 --rank 100
  torchrun --nproc_per_node=8 linear_structure/get_parameters.py my-photos-256 gaussian photo_params --rank 1024
  python linear_structure/get_parameters.py synthetic16 gaussian gaussian_params --moments runs/drl-synthetic16/moments
  python linear_structure/get_parameters.py CIFAR10 gaussian gaussian_params --moments stats.npz

A .npz holds the mean `mu` and the covariance `sigma` of pixels, as pytorch-fid and EDM lay out theirs; --npz writes one.
"""

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffusion_model import arrays, data, locks, moments, ranks
from diffusion_model.experiment import AtLeast, Parser, UsageError, launch
from linear_structure import clusters, decompose, low_rank
from linear_structure.gaussian import CUT_OFF, UNIT, Gaussian
from linear_structure.mixture import CLASSES, KIND, ClassConditional, Mixture

KINDS = ("gaussian", "isotropic", "mixture")
WRITTEN = ("mu.", "U.", "lambdas.", "variance.", "weights.", "rest.", "rank.", "basis.")  # what a killed writer leaves
UNFINISHED = ".unfinished"  # below DIR: the state of a fit
NEAR = 0.5  # of 255: how far the mean in a .npz may lie from that of the images


def make_parser() -> Parser:
    """The command line."""
    parser = Parser(__doc__, prog="get_parameters.py")
    parser.add_argument("dataset", metavar="DATASET", help="data set")
    parser.add_argument("kind", metavar="KIND", choices=KINDS, help="gaussian, isotropic or mixture")
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
    parser.add_argument(
        "--class-conditional", metavar="ATTRIBUTE", help="one Gaussian for each class of this attribute"
    )
    parser.add_argument(
        "--components",
        type=AtLeast(1),
        help="Gaussians of a mixture, each with 1e-5 added to its variances (images on [-1, 1])",
    )
    parser.add_argument("--method", default="kmeans", choices=clusters.METHODS, help="how a mixture is fitted")
    parser.add_argument("--seed", type=int, default=0, help="of a mixture's first centres")
    parser.add_argument(
        "--memory", type=AtLeast(0.0), default=8.0, help="GiB; a covariance that takes more is found at --rank alone"
    )
    parser.add_argument(
        "--moments", type=Path, help="take these moments of the images (RUN/moments or a .npz) and add up no image"
    )
    parser.add_argument("--npz", type=Path, help="write mean and covariance here too, as mu and sigma")
    parser.add_data()
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    args = make_parser().parse_args(argv)
    check_options(args)
    with ranks.session(torch.device("cpu")):
        return make_statistics(args)


def check_options(args: Any) -> None:
    """Refuse options that contradict each other (UsageError)."""
    if (args.kind == "mixture") != (args.components is not None):
        raise UsageError("--components N and KIND mixture go together: give both or neither")
    for name in ("method", "seed"):
        if args.kind != "mixture" and getattr(args, name) != make_parser().get_default(name):
            raise UsageError(f"--{name} goes with KIND mixture, not with {args.kind}")
    several = args.kind == "mixture" or args.class_conditional is not None
    for name in ("moments", "npz"):
        if several and getattr(args, name):
            raise UsageError(
                f"--{name} is of one mean and covariance: leave it out, or --class-conditional and mixture"
            )
    if args.kind != "gaussian" and args.class_conditional is not None:
        raise UsageError(f"--class-conditional {args.class_conditional} needs KIND gaussian, not {args.kind}")
    if args.kind == "isotropic" and (args.rank is not None or args.spread):
        raise UsageError("--rank and --spread: isotropic statistics keep no directions, leave them out")
    if args.kind == "mixture" and args.spread:
        raise UsageError("--spread: a mixture of --rank always spreads what is left out: leave it out")


def make_statistics(args: Any) -> int:
    """Statistics by all ranks, written by the first."""
    held = split = None
    if args.moments is not None and args.moments.suffix != ".npz":
        held = read_moments(args.moments, data.canonical(args.dataset), args.split)
        described = held.meta
    else:
        split = data.open_split(args.dataset, args.split, data.root(args.data))
        described = {"dataset": split.name, "split": split.split, "data_hash": split.hash, "shape": list(split.shape)}
    wanted = options(args, described)
    if there_already(args, wanted):
        return 0
    with locks.shared(args.folder, "written", wait=True):
        if not there_already(args, wanted):  # another command may have made them meanwhile
            write_statistics(args, wanted, held, split)
    return 0


def there_already(args: Any, wanted: dict[str, Any]) -> bool:
    """Whether these statistics are finished, which is said. All ranks call it."""
    if not ranks.from_first(is_there(args.folder, wanted)):
        return False
    if args.npz and not args.npz.is_file():
        raise ValueError(f"{args.folder} holds these statistics already; --npz {args.npz} needs a new folder beside it")
    ranks.say(f"skipped: {args.folder} holds these statistics already")
    return True


def write_statistics(args: Any, wanted: dict[str, Any], held: moments.Moments | None, split: data.Split | None) -> None:
    """Make and write what the options ask for, by all ranks."""
    start = time.monotonic()
    if args.moments is not None and held is None:
        held = of_npz(args.moments, split)
    chooses = {"isotropic": isotropic, "gaussian": gaussian, "mixture": mixture}
    make = of_classes if args.class_conditional is not None else chooses[args.kind]
    make(args, wanted, held, split, start)


def options(args: Any, described: dict[str, Any]) -> dict[str, Any]:
    """What meta.json says of the images and of the options that the statistics depend on."""
    wanted = {name: described[name] for name in ("dataset", "split", "data_hash", "shape")}
    wanted |= {"statistics": args.kind, "cut_off": args.cut_off, "rank": args.rank, "spread": args.spread}
    if args.class_conditional is not None:
        wanted |= {"attribute": args.class_conditional}
    if args.kind == "mixture":
        wanted |= {"components": args.components, "method": args.method, "seed": args.seed}
    return wanted


def gaussian(args: Any, wanted: dict, held: moments.Moments | None, split: data.Split | None, start: float) -> None:
    """One Gaussian of all images."""
    found, count = one(args, wanted, held, split, args.folder / UNFINISHED)
    finish(args, found, wanted | {"count": count}, start)


def one(
    args: Any,
    wanted: dict,
    held: moments.Moments | None,
    split: data.Split | None,
    folder: Path,
    chosen: np.ndarray | None = None,
) -> tuple[Gaussian, int]:
    """The Gaussian of these moments, or of the images of a split (rows `chosen`), and their number."""
    dimension, given, cut_off = int(np.prod(wanted["shape"])), args.memory, args.cut_off * UNIT
    need = decompose.bytes_in_full(dimension) / 2**30
    if held is None and not args.npz:
        count = len(split) if chosen is None else len(chosen)
        if count < dimension and low_rank.bytes_of_rows(count, dimension) <= given * 2**30:
            return low_rank.by_rows(split.images, args.rank, cut_off, args.spread, chosen, folder, wanted), count
    if held is None and need > given:
        if args.rank is None or args.npz:
            raise UsageError(
                f"the covariance of {dimension:,} pixels takes {need:.3g} GiB, --memory is {given:g}: "
                + ("leave out --npz" if args.npz else "give --rank R to keep the R leading directions")
            )
        found = low_rank.randomised(split.images, args.rank, cut_off, args.spread, chosen, folder, wanted)
        return found, len(split) if chosen is None else len(chosen)
    if held is None:
        held = moments.of_images(split, None, chosen, folder / "moments")
    if held.count < 2:
        raise ValueError(f"a covariance needs at least 2 images, there are {held.count}")
    if args.npz and ranks.first():
        refuse_other_npz(args.npz, held)
        moments.write_npz(args.npz, held)
    return Gaussian.fit(held, args.rank, cut_off, args.spread, spend=True), held.count


def refuse_other_npz(path: Path, held: moments.Moments) -> None:
    """Refuse to write --npz over a file of anything else (ValueError)."""
    if path.is_file():
        there = moments.read_npz(path)
        if (there.meta, there.count) != (held.meta, held.count):
            raise ValueError(f"--npz {path} is there and is of other images: remove it or give another name")


def isotropic(args: Any, wanted: dict, held: moments.Moments | None, split: data.Split | None, start: float) -> None:
    """Mean and one variance: no covariance is needed."""
    if args.npz:
        raise UsageError("--npz: isotropic statistics have no covariance to write; take KIND gaussian")
    if held is not None:
        mean, variance, count = held.mean, held.variance, held.count
    else:
        folder = args.folder / UNFINISHED
        mean, variance = decompose.marginals(split.images, None, folder, wanted)
        count = len(split)
    none = mean.new_zeros(0)
    found = Gaussian(mean, mean.new_zeros(len(mean), 0), none, float(variance.mean()), variance)
    finish(args, found, wanted | {"count": count}, start)


def of_classes(args: Any, wanted: dict, held: None, split: data.Split, start: float) -> None:
    """One Gaussian for each class of an attribute; a finished class is kept while the others are made."""
    labels = split.label(args.class_conditional)
    classes = split.attributes[args.class_conditional]
    counts = np.bincount(labels, minlength=classes)
    few = [f"{label} ({count})" for label, count in enumerate(counts.tolist()) if count < 2]
    if few:
        raise ValueError(
            f"{split.name}/{split.split} has fewer than 2 images of these classes of {args.class_conditional} "
            f"(images): {', '.join(few)}; a Gaussian needs 2, so take another attribute or split"
        )

    def component(label: int) -> Gaussian:
        rows = np.flatnonzero(labels == label)
        kept = args.folder / UNFINISHED / f"class-{label}"
        return clusters.once(kept, wanted, lambda parts: one(args, wanted, None, split, parts, rows)[0])

    components = [component(label) for label in range(classes)]
    if ranks.first():
        form = ClassConditional(Mixture(torch.from_numpy(counts / counts.sum()), components))
        form.save(args.folder, **wanted, values="uint8 pixels", count=len(split))
        shutil.rmtree(args.folder / UNFINISHED, ignore_errors=True)
        found = [component.rank for component in components]
        print(
            f"{args.folder}: one gaussian for each of {classes} classes of {args.class_conditional} of "
            f"{len(split):,} {split.name}/{split.split} images, ranks {min(found)} to {max(found)} of {components[0].dimension}, "
            f"{time.monotonic() - start:.1f} s"
        )


def mixture(args: Any, wanted: dict, held: None, split: data.Split, start: float) -> None:
    """A mixture, by all ranks."""
    need = decompose.bytes_in_full(int(np.prod(split.shape))) / 2**30
    if need > args.memory:
        raise ValueError(f"a mixture of {list(split.shape)} images takes {need:.3g} GiB, --memory is {args.memory:g}")
    kept = args.folder / UNFINISHED
    found = clusters.fit(split.images, args.components, args.rank, args.seed, args.method, folder=kept, key=wanted)
    if not ranks.first():
        return
    shares = ", ".join(f"{share:.1%}" for share in sorted(found.weights.tolist(), reverse=True)[:5])
    found.save(args.folder, **wanted, values="uint8 pixels")
    shutil.rmtree(kept, ignore_errors=True)
    print(
        f"{args.folder}: mixture of {len(found)} gaussians of {len(split):,} {split.name}/{split.split} images, weights from "
        f"{shares}, {time.monotonic() - start:.1f} s"
    )


def finish(args: Any, found: Gaussian, wanted: dict[str, Any], start: float) -> None:
    """Write a Gaussian, remove what led to it, and say what it is."""
    if not ranks.first():
        return
    found.save(args.folder, **wanted, values="uint8 pixels")
    shutil.rmtree(args.folder / UNFINISHED, ignore_errors=True)
    trace, count = float(found.variance.sum()), wanted["count"]
    kept = f"standard deviation {found.rest**0.5 / UNIT**0.5:.4f} on [-1, 1]"
    if args.kind == "gaussian":
        share = found.lambdas.sum() / trace if trace else 1.0
        kept = f"rank {found.rank} of {found.dimension}, {float(share):.2%} of the variance"
        left = max(0.0, trace - float(found.lambdas.sum())) / UNIT
        kept += f" ({left:.3g} of {trace / UNIT:.3g} left out, on [-1, 1])"
        first = ", ".join(f"{float(value) / trace:.1%}" for value in found.lambdas[:3])
        none = ": no direction is above --cut-off" if trace else ": the images do not differ"
        kept += f", first directions {first}" if first else none
    print(
        f"{args.folder}: {args.kind} of {count:,} {wanted['dataset']}/{wanted['split']} images, {kept}, "
        f"{time.monotonic() - start:.1f} s"
    )
    if args.kind == "gaussian" and count <= found.dimension:
        print(
            f"{count:,} images have at most {count - 1:,} directions of {found.dimension:,}: the covariance is singular"
        )
    elif args.kind == "gaussian" and args.rank is None and found.rank < found.dimension:
        print(f"the covariance is singular: {found.dimension - found.rank} directions have no variance above --cut-off")


def read_moments(folder: Path, name: str, split: str) -> moments.Moments:
    """Moments of the images of this data set and split, from RUN/moments or the folder inside it."""
    folder = folder / "images" if (folder / "images").is_dir() else folder
    held = moments.Moments.load(folder, "run `python diffusion_model/representations.py RUN` first")
    found = {field: held.meta.get(field) for field in ("dataset", "split", "values")}
    wanted = {"dataset": name, "split": split, "values": "uint8"}
    if found != wanted or not {"data_hash", "shape"} <= held.meta.keys():
        raise ValueError(f"--moments {folder} holds {found}, expected {wanted}: leave it out to read the images")
    return held


def of_npz(path: Path, split: data.Split) -> moments.Moments:
    """Moments of pixels from a file of mu and sigma, which must have the mean of the images. All ranks call it."""
    held = moments.read_npz(path).moments(len(split))
    dimension = int(np.prod(split.shape))
    if held.dimension != dimension:
        raise ValueError(
            f"--moments {path} has {held.dimension} dimensions, the images of {split.name} {list(split.shape)} have "
            f"{dimension}: it is of other images, or of features"
        )
    mean, variance = decompose.marginals(split.images)
    apart = float((held.mean - mean).abs().max())
    ratio = float(held.variance.sum() / variance.sum().clamp(min=1e-12))
    moved = float((held.variance - variance).abs().max() / variance.max().clamp(min=1e-12))
    if apart > NEAR or not 0.99 < ratio < 1.01 or moved > 0.05:
        raise ValueError(
            f"--moments {path} has a mean up to {apart:.3g} of 255 from that of {split.name}/{split.split} and {ratio:.3g} "
            f"times its variance, off by up to {moved:.3g} of the largest in a pixel: it is of other images, or not of pixels from 0 to 255"
        )
    return held


def is_there(folder: Path, wanted: dict) -> bool:
    """Whether these very statistics lie in `folder`; something else there is a ValueError that says what."""
    if not arrays.is_finished(folder):
        if folder.is_dir() and any(not entry.name.startswith((".", *WRITTEN)) for entry in folder.iterdir()):
            raise ValueError(f"{folder} holds other files, none of them statistics: give an empty or new folder")
        return False
    kind = CLASSES if "attribute" in wanted else KIND if "components" in wanted else "gaussian"
    meta = arrays.read_meta(folder, kind, "give another folder")
    changed = [
        f"{name}: {meta.get(name)!r} there, {value!r} now" for name, value in wanted.items() if meta.get(name) != value
    ]
    if changed:
        raise ValueError(f"{folder} holds other statistics ({', '.join(changed)}): remove it or give another folder")
    arrays.read_folder(folder, kind, "remove it")
    return True


if __name__ == "__main__":
    launch(main)
