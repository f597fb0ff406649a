"""Images of your own in one file: an .npz of images and labels, or an .npy of images with the labels beside it.

Legend: N images, C channels, H x W pixels, A label columns.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from diffusion_model import arrays
from diffusion_model.raw import SPLITS, Loaded, Raw, fixed_order

WHOLE = ("images", "labels", "attributes")
SPLIT = ("train_images", "train_labels", "test_images", "test_labels", "attributes")
KEYS = "images and labels, or train_images, train_labels, test_images and test_labels"
TRAIN_FRACTION = 0.8  # of images that come without a split
CLASSES_UP_TO = 65_536  # of one label column; beyond, the column is a number or a key, no class


def load_own(path: Path) -> Loaded:
    """Both splits of FILE.npz (keys: see `KEYS`) or FILE.npy (labels in FILE_labels.npy), with their attributes.

    Images are uint8 [N, H, W], [N, H, W, C] or [N, C, H, W]; labels are integers [N] or [N, A], or absent. The names of the
    label columns may stand in the key `attributes`. Without a split, 80 % of the images train, chosen by a fixed seed. Files are
    often sorted by class: as of folders, each split gets a random order by a fixed seed, a function of its size alone.
    """
    held = _read_own(path)
    columns = held.pop("attributes", None)
    pairs, how = _pairs(path, held)
    splits = {split: _own_raw(f"{path} ({split})", *pair) for split, pair in pairs.items()}
    names = _column_names(path, splits, columns)
    if not names:
        print(f"{path} holds no labels: the set can be modelled and sampled but not classified", file=sys.stderr)
    splits, values = _number(path, splits, names)
    attributes = {name: len(found) for name, found in values.items()}
    named = {name: tuple(map(str, found)) for name, found in values.items() if found != [*range(len(found))]}
    return Loaded(splits, how, attributes=attributes, class_names=named)


def _number(path: Path, splits: dict[str, Raw], names: list[str]) -> tuple[dict[str, Raw], dict[str, list[int]]]:
    """Labels that count the values that occur in either split from 0, in their order; and the values of each column."""
    labels = {split: raw.labels.copy() for split, raw in splits.items()}
    values = {}
    for column, name in enumerate(names):
        found = np.unique(np.concatenate([held[:, column] for held in labels.values()]))
        values[name] = found.tolist()
        if values[name] != [*range(len(found))]:
            print(
                f"{path}: labels of {name!r} have {len(found)} values from {found[0]} to {found[-1]}, which become the "
                f"classes 0 to {len(found) - 1}; class_names in meta.json tells the value of each",
                file=sys.stderr,
            )
        for held in labels.values():
            held[:, column] = np.searchsorted(found, held[:, column])
    return {split: replace(raw, labels=labels[split]) for split, raw in splits.items()}, values


def mark_of_own(path: Path) -> str:
    """What tells whether a file, and labels beside it, are still the same: their CRC-32."""
    return " ".join(f"{arrays.file_checksum(held):08x}" for held in (path, _beside(path)) if held.is_file())


def _beside(path: Path) -> Path:
    """Where the labels of a .npy lie."""
    return path.with_name(f"{path.stem}_labels.npy")


def _pairs(path: Path, held: dict[str, np.ndarray]) -> tuple[dict[str, tuple], str]:
    """Images, labels and chosen rows of each split, and how they were split."""
    if {"train_images", "test_images"} <= held.keys():
        return {
            split: (held[f"{split}_images"], held.get(f"{split}_labels"), None) for split in SPLITS
        }, "as in the source"
    count = len(np.atleast_1d(held["images"]))
    order, cut = fixed_order(count, "split"), round(TRAIN_FRACTION * count)
    if not 0 < cut < count:
        raise ValueError(f"{path} holds {count} images, expected at least 3 to make a train and a test split")
    rows = {"train": order[:cut], "test": order[cut:]}
    pairs = {split: (held["images"], held.get("labels"), rows[split]) for split in SPLITS}
    return pairs, f"{TRAIN_FRACTION:.0%} train by a fixed seed"


def _column_names(path: Path, splits: dict[str, Raw], columns: np.ndarray | None) -> list[str]:
    """Names of the label columns: those given, else `label`, or `label0`, `label1` and so on."""
    widths = {raw.labels.shape[1] for raw in splits.values()}
    if len(widths) > 1:
        raise ValueError(f"{path}: train and test have {sorted(widths)} label columns, expected the same number")
    width = widths.pop()
    if columns is None:
        return ["label"] if width == 1 else [f"label{index}" for index in range(width)]
    names = [str(name) for name in np.atleast_1d(columns)]
    if len(names) != width or len(set(names)) != width:
        raise ValueError(f"{path}: attributes {names} name {len(names)} label columns, expected {width} distinct names")
    return names


def _read_own(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise FileNotFoundError(
            f"--source {path} is no file: expected a .npy or .npz with {KEYS}, or a folder of images in classes"
        )
    if path.suffix not in (".npy", ".npz"):
        raise ValueError(f"--source {path}: expected a .npy or .npz with {KEYS}")
    if path.suffix == ".npz":
        there = arrays.read_archive(path, KEYS)
    else:
        remedy = "give a file of a plain array"
        there = {"images": arrays.read_array(path, remedy=remedy)}
        if _beside(path).is_file():
            there["labels"] = arrays.read_array(_beside(path), remedy=remedy)
    wanted = SPLIT if {"train_images", "test_images"} <= there.keys() else WHOLE
    other = sorted(there.keys() - {*wanted})
    if not there.keys() & {"images", "train_images"} - {*other}:
        raise ValueError(f"{path} has the keys {sorted(there)}, expected {KEYS}")
    if other:
        print(f"{path}: {', '.join(other)} left out, expected {KEYS}", file=sys.stderr)
    return {name: array for name, array in there.items() if name in wanted}


def _own_raw(what: str, images: np.ndarray, labels: np.ndarray | None, rows: np.ndarray | None) -> Raw:
    """One split of a user's arrays in the project's layout: `rows` in their order, or all in a fixed random one."""
    if images.dtype != np.uint8:
        raise ValueError(f"{what}: images are {images.dtype}, expected uint8 in 0..255")
    first, last = images.ndim == 4 and images.shape[1] in (1, 3), images.ndim == 4 and images.shape[3] in (1, 3)
    if images.ndim != 3 and first == last:
        raise ValueError(
            f"{what}: images have shape {list(images.shape)}, expected [N, H, W], [N, H, W, C] or [N, C, H, W] with 1 or 3 channels"
        )
    given = np.zeros((len(images), 0), np.int64) if labels is None else np.atleast_1d(labels)
    labels = given.reshape(len(given), -1) if given.size else given.reshape(len(given), 0)
    if labels.dtype.kind not in "iu" or len(labels) != len(images) or given.ndim > 2:
        raise ValueError(
            f"{what}: labels are {labels.dtype} {list(given.shape)}, expected integers [N] or [N, A] for {len(images)} images: "
            "number the classes 0, 1, 2, ..."
        )
    if labels.size and labels.min() < 0:
        raise ValueError(
            f"{what}: labels run from {labels.min()}, expected 0 or more: number the classes from 0, and leave out images "
            "without a label"
        )
    if labels.size and labels.max() >= CLASSES_UP_TO:
        raise ValueError(f"{what}: labels run up to {labels.max()}, expected class numbers below {CLASSES_UP_TO:,}")
    rows = fixed_order(len(images), "order") if rows is None else rows

    def read(chosen: np.ndarray) -> np.ndarray:
        block = images[rows[chosen]]
        if images.ndim == 3:
            return block[:, None]
        return block.transpose(0, 3, 1, 2) if last else block

    return Raw(read, labels[rows].astype(np.int64))
