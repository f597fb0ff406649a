"""Where images come from: one loader a data set, and the table DATASETS that lists them.

Synthetic: one of 5 shapes in one cell of a 4 x 4 grid, one of 9 saturated foreground hues on one of 9 muted backgrounds
of another hue: 4 * 4 * 5 * 9 * 8 = 5,760 images. The backgrounds stay within 24 of the middle grey, for saturated ones
would hold nearly all the variance, and a model would learn nothing else within minutes.
MNIST and Fashion-MNIST keep their 28 x 28 pixels: the dead pixels of a padded frame would inflate explained variance.
CIFAR-10 is read from its binary version, and from the Python version only through torchvision, which compares
checksums before it unpickles.

To add a set: write `load(source) -> {"train": Raw, "test": Raw}` and give it a line in DATASETS.

Legend: N images, B of them in a block, C channels, H x W pixels, A label columns.
"""

import colorsys
import gzip
import itertools
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from diffusion_model.experiment import seed_of

SPLITS = ("train", "test")
TRAIN_FRACTION = 0.8  # of a user's images that come without a split


@dataclass(frozen=True)
class Raw:
    """One split before it is written: `read(rows) -> uint8 [B, C, H, W]` for row numbers, and labels [N, A]."""

    read: Callable[[np.ndarray], np.ndarray]
    labels: np.ndarray


@dataclass(frozen=True)
class Dataset:
    """One built-in set: `load(source) -> {split: Raw}`; `find(root)` gives the source on this machine, `download(root)` fetches it."""

    load: Callable[[Path | None], dict[str, Raw]]
    shape: tuple[int, int, int]
    attributes: dict[str, int]
    counts: tuple[int, int]
    origin: str
    licence: str
    find: Callable[[Path], Path | None] | None = None
    download: Callable[[Path], Path] | None = None
    place: str = ""
    megabytes: int = 0  # of the download
    class_names: dict[str, tuple[str, ...]] = field(default_factory=dict)


# ---------------------------------------------------------------------------------------------------------------------
# Synthetic

GRID = 4
TRAIN_COUNT = 4000
SHAPES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    # masks over one cell with coordinates u, v in (-1, 1); each is distinct at 4 pixels a cell already
    "square": lambda u, v: np.ones(np.broadcast(u, v).shape, bool),
    "disc": lambda u, v: u**2 + v**2 <= 1,
    "cross": lambda u, v: abs(abs(u) - abs(v)) < 0.3,
    "triangle": lambda u, v: v >= u,
    "ring": lambda u, v: np.maximum(abs(u), abs(v)) > 0.5,
}
HUES = 9
COMBINATIONS = [
    (background, foreground, location, shape)
    for background, foreground, location, shape in itertools.product(
        range(HUES), range(HUES), range(GRID * GRID), range(len(SHAPES))
    )
    if background != foreground
]


def palette() -> tuple[np.ndarray, np.ndarray]:
    """Backgrounds (within 24 of 128) and foregrounds (saturated), uint8 [9, 3] each; one index is one hue in both."""
    hues = np.array([colorsys.hsv_to_rgb(index / HUES, 1, 1) for index in range(HUES)])
    return np.rint(128 + 24 * (2 * hues - 1)).astype(np.uint8), np.rint(255 * hues).astype(np.uint8)


def masks(cell: int) -> np.ndarray:
    """The five shapes as bool [5, cell, cell]."""
    v, u = np.meshgrid(*[(np.arange(cell) + 0.5) / cell * 2 - 1] * 2, indexing="ij")
    return np.stack([shape(u, v) for shape in SHAPES.values()])


def draw(labels: np.ndarray, side: int) -> np.ndarray:
    """Images uint8 [N, 3, side, side] of labels [N, 4] (background, foreground, location, shape)."""
    background, foreground, location, shape = labels.T
    backgrounds, foregrounds = palette()
    cell = side // GRID
    images = np.empty((len(labels), 3, side, side), np.uint8)
    images[:] = backgrounds[background][:, :, None, None]
    cells = images.reshape(len(labels), 3, GRID, cell, GRID, cell).transpose(
        0, 2, 4, 1, 3, 5
    )  # a view: [N, 4, 4, 3, c, c]
    rows = np.arange(len(labels)), location // GRID, location % GRID
    inside = masks(cell)[shape][:, None]
    cells[rows] = np.where(inside, foregrounds[foreground][:, :, None, None], backgrounds[background][:, :, None, None])
    return images


def synthetic(side: int) -> Dataset:
    """All 5,760 combinations in a fixed random order, the first 4,000 for training."""

    def load(source: Path | None) -> dict[str, Raw]:
        order = sorted(range(len(COMBINATIONS)), key=lambda index: seed_of("synthetic", index))
        labels = np.array(COMBINATIONS)[order]
        parts = {"train": labels[:TRAIN_COUNT], "test": labels[TRAIN_COUNT:]}
        return {split: Raw(lambda rows, part=part: draw(part[rows], side), part) for split, part in parts.items()}

    return Dataset(
        load=load,
        shape=(3, side, side),
        attributes={"background": HUES, "foreground": HUES, "location": GRID * GRID, "shape": len(SHAPES)},
        counts=(TRAIN_COUNT, len(COMBINATIONS) - TRAIN_COUNT),
        origin="made by the project",
        licence="Apache-2.0",
        class_names={"shape": tuple(SHAPES)},
    )


# ---------------------------------------------------------------------------------------------------------------------
# MNIST and Fashion-MNIST: IDX files, gzip or not

IDX_FILES = {"train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
             "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")}  # fmt: skip
IDX_UINT8 = 0x08


def idx_path(folder: Path, name: str) -> Path | None:
    """The file `name` in `folder`, with or without .gz, also spelled with a dot before idx."""
    names = (name, name.replace("-idx", ".idx"))
    return next((path for entry in names for path in (folder / entry, folder / f"{entry}.gz") if path.is_file()), None)


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """One IDX file of unsigned bytes; a file that is short, long, or of another kind is a ValueError."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is truncated or no gzip file ({error}): fetch it again") from None
    header = 4 + 4 * dimensions
    if len(content) < header or content[:4] != bytes([0, 0, IDX_UINT8, dimensions]):
        raise ValueError(f"{path} is no IDX file of unsigned bytes with {dimensions} dimensions: fetch it again")
    shape = struct.unpack(f">{dimensions}I", content[4:header])
    if len(content) - header != np.prod(shape):
        raise ValueError(
            f"{path} holds {len(content) - header} values, its header says {int(np.prod(shape))}: fetch it again"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def load_idx(folder: Path) -> dict[str, Raw]:
    """Both splits from a folder of the four IDX files."""
    splits = {}
    for split, names in IDX_FILES.items():
        paths = [idx_path(folder, name) for name in names]
        if None in paths:
            missing = names[paths.index(None)]
            raise FileNotFoundError(f"{folder} holds no {missing} (or {missing}.gz): four IDX files are expected there")
        images, labels = read_idx(paths[0], 3), read_idx(paths[1], 1)
        if len(images) != len(labels):
            raise ValueError(f"{paths[0]} holds {len(images)} images, {paths[1]} {len(labels)} labels")
        splits[split] = Raw(lambda rows, images=images: images[rows][:, None], labels[:, None].astype(np.int64))
    return splits


def idx_dataset(
    name: str, torch_name: str, system: tuple[str, ...], attribute: str, origin: str, licence: str,
    megabytes: int, class_names: tuple[str, ...],
) -> Dataset:  # fmt: skip
    """A set of the MNIST family: searched for beside the prepared folders, in torchvision's layout and in system folders."""

    def find(root: Path) -> Path | None:
        folders = [
            root / name,
            root / torch_name / "raw",
            root / "downloads" / torch_name / "raw",
            *(Path(entry) for entry in system),
        ]
        return next((folder for folder in folders if idx_path(folder, IDX_FILES["train"][0])), None)

    def download(target: Path) -> Path:
        import torchvision

        getattr(torchvision.datasets, torch_name)(str(target), download=True)
        return target / torch_name / "raw"

    files = ", ".join(f"{entry}.gz" for names in IDX_FILES.values() for entry in names)
    return Dataset(
        load=load_idx,
        shape=(1, 28, 28),
        attributes={attribute: 10},
        counts=(60_000, 10_000),
        origin=origin,
        licence=licence,
        find=find,
        download=download,
        place=f"place {files} in {{root}}/{name}",
        megabytes=megabytes,
        class_names={attribute: class_names},
    )


# ---------------------------------------------------------------------------------------------------------------------
# CIFAR-10: the binary version, records of one label and 3,072 pixels

CIFAR10_FILES = {"train": [f"data_batch_{index}.bin" for index in range(1, 6)], "test": ["test_batch.bin"]}
CIFAR10_RECORD = 1 + 3 * 32 * 32
CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
CIFAR10_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
CIFAR10_PLACE = (
    "place the folder cifar-10-batches-bin (from cifar-10-binary.tar.gz) or torchvision's cifar-10-batches-py in {root}"
)


def load_cifar10(folder: Path) -> dict[str, Raw]:
    """Both splits from `folder`, or from the folder of either published version inside it."""
    binary = next(
        (entry for entry in (folder, folder / "cifar-10-batches-bin") if (entry / "test_batch.bin").is_file()), None
    )
    if binary is not None:
        return {split: _load_cifar10_files(binary, names) for split, names in CIFAR10_FILES.items()}
    python = folder if folder.name == "cifar-10-batches-py" else folder / "cifar-10-batches-py"
    if not python.is_dir():
        raise FileNotFoundError(f"{folder} holds no CIFAR-10: {CIFAR10_PLACE.format(root=folder)}")
    import torchvision

    splits = {}
    for split in SPLITS:
        try:
            held = torchvision.datasets.CIFAR10(str(python.parent), train=split == "train", download=False)
        except RuntimeError:
            raise ValueError(
                f"{python} is incomplete or altered (torchvision's checksums differ): fetch it again, "
                f"or {CIFAR10_PLACE.format(root=python.parent)}"
            ) from None
        labels = np.array(held.targets, np.int64)[:, None]
        splits[split] = Raw(lambda rows, pixels=held.data: pixels[rows].transpose(0, 3, 1, 2), labels)
    return splits


def _load_cifar10_files(folder: Path, names: list[str]) -> Raw:
    records = []
    for name in names:
        path = folder / name
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: {CIFAR10_PLACE.format(root=folder.parent)}")
        content = np.fromfile(path, np.uint8)
        if not content.size or content.size % CIFAR10_RECORD:
            raise ValueError(
                f"{path} has {content.size} bytes, expected a multiple of {CIFAR10_RECORD} (label and pixels): fetch it again"
            )
        records.append(content.reshape(-1, CIFAR10_RECORD))
    held = np.concatenate(records)
    return Raw(lambda rows: held[rows, 1:].reshape(-1, 3, 32, 32), held[:, :1].astype(np.int64))


def find_cifar10(root: Path) -> Path | None:
    """Either published version in `root`, `root/cifar10` or the folder of downloads."""
    folders = (root, root / "cifar10", root / "downloads")
    published = ("cifar-10-batches-bin", "cifar-10-batches-py")
    return next((folder for folder in folders if any((folder / entry).is_dir() for entry in published)), None)


def download_cifar10(target: Path) -> Path:
    """Fetch the binary version with torchvision's downloader, which checks the MD5 sum."""
    from torchvision.datasets.utils import download_and_extract_archive

    download_and_extract_archive(CIFAR10_URL, str(target), md5=CIFAR10_MD5)
    return target


# ---------------------------------------------------------------------------------------------------------------------
# Images of your own: .npy or .npz

OWN_KEYS = "images and labels, or train_images, train_labels, test_images and test_labels"


def load_own(path: Path) -> tuple[dict[str, Raw], dict[str, int], str]:
    """Splits, attributes and how they were split, of FILE.npz (keys: see `OWN_KEYS`) or FILE.npy (labels in FILE_labels.npy).

    Images are uint8 [N, H, W], [N, H, W, C] or [N, C, H, W]; labels are integers [N] or [N, A], or absent. The names of the
    label columns may stand in the key `attributes`. Without a split, 80 % of the images train, chosen by a fixed seed.
    """
    held = _read_own(path)
    columns = held.pop("attributes", None)
    if "images" in held:
        count = len(held["images"])
        order = np.array(sorted(range(count), key=lambda index: seed_of("split", index)))
        cut = round(TRAIN_FRACTION * count)
        if not 0 < cut < count:
            raise ValueError(f"{path} holds {count} images, expected at least 3 to make a train and a test split")
        rows = {"train": np.sort(order[:cut]), "test": np.sort(order[cut:])}
        pairs = {split: (held["images"], held.get("labels"), rows[split]) for split in SPLITS}
        how = f"{TRAIN_FRACTION:.0%} train by a fixed seed"
    elif {"train_images", "test_images"} <= held.keys():
        pairs = {split: (held[f"{split}_images"], held.get(f"{split}_labels"), None) for split in SPLITS}
        how = "as in the source"
    else:
        raise ValueError(f"{path} has the keys {sorted(held)}, expected {OWN_KEYS}")
    splits = {split: _own_raw(f"{path} ({split})", *pair) for split, pair in pairs.items()}
    widths = {raw.labels.shape[1] for raw in splits.values()}
    if len(widths) > 1:
        raise ValueError(f"{path}: train and test have {sorted(widths)} label columns, expected the same number")
    width = widths.pop()
    names = [str(name) for name in columns] if columns is not None else ["label"] if width == 1 else [
        f"label{index}" for index in range(width)
    ]  # fmt: skip
    if len(names) != width or len(set(names)) != width:
        raise ValueError(f"{path}: attributes {names} name {len(names)} label columns, expected {width} distinct names")
    if width == 0:
        print(f"{path} holds no labels: the set can be modelled and sampled but not classified", file=sys.stderr)
    classes = [max(int(raw.labels[:, column].max()) for raw in splits.values()) + 1 for column in range(width)]
    return splits, dict(zip(names, classes, strict=True)), how


def _read_own(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise FileNotFoundError(f"--source {path} is no file: expected a .npy or .npz with {OWN_KEYS}")
    if path.suffix not in (".npy", ".npz"):
        raise ValueError(f"--source {path}: expected a .npy or .npz with {OWN_KEYS}")
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
        beside = path.with_name(f"{path.stem}_labels.npy")
        held = {"images": np.load(path, mmap_mode="r", allow_pickle=False)}
        if beside.is_file():
            held["labels"] = np.load(beside, allow_pickle=False)
        return held
    except (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is truncated, holds objects, or is no {path.suffix} file ({error})") from None


def _own_raw(what: str, images: np.ndarray, labels: np.ndarray | None, rows: np.ndarray | None) -> Raw:
    """One split of a user's arrays in the project's layout; `rows` picks some of them."""
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
    rows = np.arange(len(images)) if rows is None else rows

    def read(chosen: np.ndarray) -> np.ndarray:
        block = images[rows[chosen]]
        if images.ndim == 3:
            return block[:, None]
        return block.transpose(0, 3, 1, 2) if last else block

    return Raw(read, labels[rows].astype(np.int64))


# ---------------------------------------------------------------------------------------------------------------------

FASHION = ("T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

DATASETS = {
    "synthetic": synthetic(32),
    "synthetic16": synthetic(16),
    "fashion_mnist": idx_dataset(
        "fashion_mnist", "FashionMNIST", ("/usr/share/datasets/fashion-mnist",), "class",
        "https://github.com/zalandoresearch/fashion-mnist", "MIT", 31, FASHION),
    "mnist": idx_dataset(
        "mnist", "MNIST", ("/usr/share/datasets/mnist",), "digit",
        "http://yann.lecun.com/exdb/mnist", "CC BY-SA 3.0", 12, tuple("0123456789")),
    "cifar10": Dataset(
        load=load_cifar10, shape=(3, 32, 32), attributes={"class": 10}, counts=(50_000, 10_000),
        origin="https://www.cs.toronto.edu/~kriz/cifar.html", licence="none stated; cite Krizhevsky 2009",
        find=find_cifar10, download=download_cifar10, place=CIFAR10_PLACE, megabytes=170,
        class_names={"class": CIFAR10}),
}  # fmt: skip
LATER = ("cifar100", "miniimgnet", "miniimagenet", "cmnist", "coloredmnist", "celeba")  # known, not yet supported
