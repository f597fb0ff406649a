"""How far are generated images from real ones? Frechet and kernel distance of a file of images to a data set.

SAMPLES is a .npy of uint8 images [N, C, H, W], as `main.py --mode sample` writes them, and DATASET holds the real ones: the
reference is all of its split, computed once and kept beside the data, or a file (--reference) of mu and sigma as pytorch-fid
and EDM publish them, which gives no kernel distance. A number means something only beside others of the same protocol.

  python diffusion_model/measure_samples.py runs/edm-cifar10/samples/heun18.npy CIFAR10
  python linear_structure/compare_metrics.py runs/edm-cifar10/samples/distances runs/other/samples/distances

Writes a cell, distances/features=NAME/samples=FILE.json, beside SAMPLES (--out).
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffusion_model import arrays, data, experiment, features, fid, results
from diffusion_model.experiment import AtLeast


def make_parser() -> experiment.Parser:
    """The command line."""
    parser = experiment.Parser(__doc__, prog="measure_samples.py")
    parser.add_argument("samples", metavar="SAMPLES", type=Path, help="a .npy of uint8 images [N, C, H, W]")
    parser.add_argument("dataset", metavar="DATASET", help="data set of the real images")
    parser.add_argument("--split", default="train", choices=data.SPLITS, help="split of the real images")
    parser.add_argument("--n", type=AtLeast(2), help="samples, drawn by the seed (default: all)")
    parser.add_argument("--features", default="inception", choices=tuple(features.FEATURES), help="feature space")
    parser.add_argument("--weights", type=Path, help="file of pytorch-fid's Inception weights (default: downloaded)")
    parser.add_argument("--reference", type=Path, help="a .npz of mu and sigma, or a folder of a reference")
    parser.add_argument("--extractor", metavar="NAME", help="network of a --reference that does not say it")
    parser.add_argument(
        "--subset-size",
        type=AtLeast(2),
        help=f"images of a subset of the kernel distance (default: {fid.SIZE}, or a quarter of fewer than four times that)",
    )
    parser.add_argument("--subsets", type=AtLeast(1, most=100_000), default=100, help="subsets of the kernel distance")
    parser.add_argument("--floor", action="store_true", help="also measure n real images against n others")
    parser.add_argument("--seed", type=int, default=0, help="of the samples, the real images and the subsets drawn")
    parser.add_argument("--out", type=Path, help="folder of the cells (default: distances beside SAMPLES)")
    parser.add_data()
    parser.add_device()
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    args = make_parser().parse_args(argv)
    if args.extractor and not args.reference:
        raise experiment.UsageError("--extractor goes with --reference: the data set's own reference knows its network")
    root = data.root(args.data)
    split = data.open_split(args.dataset, args.split, root)
    images = read_images(args.samples, split, args.n, args.seed)
    train = split if args.split == "train" else data.open_split(args.dataset, "train", root)  # the classifier's own
    extractor = features.open_extractor(args.features, train, root, args.weights, experiment.choose_device(args.device))
    if args.reference:
        known = features.read_reference(args.reference, extractor, told=args.extractor)
    else:
        known = features.reference(extractor, split, root)
    size = None if known.kept is None else subset_size(args.subset_size, min(len(images), len(known.kept)))
    options = {"size": size, "subsets": args.subsets, "seed": args.seed}
    protocol = {
        "dataset": split.name, "split": split.split, "data_hash": split.hash, "shape": list(split.shape),
        "n": len(images), "features": extractor.name, "weights": extractor.fingerprint, "resizing": extractor.resizing,
        "distance": extractor.distance, "reference": named(args.reference, split),
    }  # fmt: skip
    if size is not None:
        protocol |= {"kernel_distance": extractor.kernel_distance, "subset_size": size, "subsets": args.subsets}
    if size is not None or args.n is not None:
        protocol["seed"] = args.seed
    folder, key = (
        args.out or args.samples.parent / "distances",
        {"features": extractor.name, "samples": args.samples.stem},
    )
    value: dict[str, Any] = {"file": features.mark(args.samples)}
    before = refuse_other(folder, key, protocol, value["file"])
    value |= features.measure(features.extract(extractor, images, "samples"), known, **options)
    if args.floor:
        value["floor"] = floor(extractor, split, known, len(images), options)
    elif "floor" in before:
        value["floor"] = before["floor"]
    path = results.write_cell(folder, key, value, protocol)
    print("\n".join([*sentences(value, protocol), str(path)]))
    return 0


def refuse_other(folder: Path, key: dict[str, Any], protocol: dict[str, Any], file: str) -> dict[str, Any]:
    """What is known of these very images, if anything; a result of other images or of another protocol is a ValueError.

    Protocols do not tell images apart, for distances are there to compare those of several files.
    """
    cell = results.finished(folder, key, protocol)
    if cell is not None and cell.value.get("file", file) != file:
        raise ValueError(
            f"{cell.path} is of other images of that name ({cell.value['file']} there, {file} now): remove it, or give "
            "another --out"
        )
    return cell.value if cell is not None else {}


def subset_size(wanted: int | None, there: int) -> int:
    """Images of a subset: those asked for, which must be there, or the usual number; of few images, a quarter of them.

    Subsets of all images would be one subset, and their deviation 0.
    """
    if wanted is None:
        return max(2, min(fid.SIZE, there // 4))
    if wanted > there:
        raise experiment.UsageError(f"--subset-size {wanted}: expected at most the {there} images there are")
    return wanted


def read_images(path: Path, split: data.Split, count: int | None, seed: int) -> np.ndarray:
    """The images of a file, or `count` drawn from them, for it may be sorted by class; another shape, or too few, is a sentence."""
    images = arrays.read_array(path) if path.is_file() else None
    if images is None:
        raise FileNotFoundError(f"{path}: no such file; `python diffusion_model/main.py --mode sample` writes one")
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != tuple(split.shape):
        raise ValueError(
            f"{path} holds {images.dtype} {list(images.shape)}, expected uint8 [N, {', '.join(map(str, split.shape))}] "
            f"as the images of {split.name}"
        )
    if len(images) < (count or 2):
        raise ValueError(f"{path} holds {len(images)} images, expected at least {count or 2}")
    if count is None or count == len(images):
        return images
    return images[torch.randperm(len(images), generator=experiment.generator("samples", seed)).numpy()[:count]]


def floor(
    extractor: features.Extractor, split: data.Split, known: features.Reference, n: int, options: dict[str, Any]
) -> dict[str, float] | None:
    """Real against real at the same n, from the reference's features where they suffice; None, said, without images."""
    if len(split) < 2 * n:
        print(
            f"no real-against-real floor: it needs {2 * n} real images, {split.name} has {len(split)}", file=sys.stderr
        )
        return None
    codes = known.kept
    if codes is None or len(codes) < 2 * n:
        order = torch.randperm(len(split), generator=experiment.generator("floor", options["seed"])).numpy()
        codes = features.extract(extractor, split.images, "real images", rows=order[: 2 * n])
    return features.real_against_real(codes, n, **options)


def named(reference: Path | None, split: data.Split) -> str:
    """The reference in the protocol."""
    return f"all {len(split)} {split.split} images" if reference is None else features.mark(reference)


def sentences(value: dict[str, Any], protocol: dict[str, Any]) -> list[str]:
    """The result in words."""
    lines = [f"{protocol['distance']} of {protocol['n']} images: {value['distance']:.6g}"]
    if "kernel_distance" in value:
        deviation = value.get("kernel_deviation")
        spread = f" (deviation {deviation:.3g} over {protocol['subsets']} subsets)" if deviation is not None else ""
        lines.append(f"{protocol['kernel_distance']}: {value['kernel_distance']:.6g}{spread}")
    else:
        lines.append("no kernel distance: the reference holds no features")
    if value.get("floor"):
        n, numbers = protocol["n"], ", ".join(f"{name} {number:.6g}" for name, number in value["floor"].items())
        lines.append(f"real against real, {n} against {n} others: {numbers}")
    return lines


if __name__ == "__main__":
    experiment.launch(main)
