"""Images of your own in one file: an .npz of images and labels, or an .npy of images with the labels beside it.

Legend: N images, C channels, H x W pixels, A label columns.
"""

import sys
from pathlib import Path

import numpy as np

from diffusion_model import arrays
from diffusion_model.raw import SPLITS, Loaded, Raw, fixed_order

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
    classes = [max(int(raw.labels[:, column].max()) for raw in splits.values()) + 1 for column in range(len(names))]
    return Loaded(splits, how, attributes=dict(zip(names, classes, strict=True)))


def _pairs(path: Path, held: dict[str, np.ndarray]) -> tuple[dict[str, tuple], str]:
    """Images, labels and chosen rows of each split, and how they were split."""
    if {"train_images", "test_images"} <= held.keys():
        return {
            split: (held[f"{split}_images"], held.get(f"{split}_labels"), None) for split in SPLITS
        }, "as in the source"
    if "images" not in held:
        raise ValueError(f"{path} has the keys {sorted(held)}, expected {KEYS}")
    count = len(held["images"])
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
        return arrays.read_archive(path, KEYS)
    beside = path.with_name(f"{path.stem}_labels.npy")
    remedy = "give a file of a plain array"
    held = {"images": arrays.read_array(path, remedy=remedy)}
    if beside.is_file():
        held["labels"] = arrays.read_array(beside, remedy=remedy)
    return held


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
            f"{what}: labels are {labels.dtype} {list(given.shape)}, expected integers [N] or [N, A] for {len(images)} images"
        )
    if labels.size and labels.min() < 0:
        raise ValueError(f"{what}: labels run from {labels.min()}, expected 0 to the number of classes less 1")
    if labels.size and labels.max() >= CLASSES_UP_TO:
        raise ValueError(f"{what}: labels run up to {labels.max()}, expected class numbers below {CLASSES_UP_TO:,}")
    rows = fixed_order(len(images), "order") if rows is None else rows

    def read(chosen: np.ndarray) -> np.ndarray:
        block = images[rows[chosen]]
        if images.ndim == 3:
            return block[:, None]
        return block.transpose(0, 3, 1, 2) if last else block

    return Raw(read, labels[rows].astype(np.int64))
