"""Data sets as uint8 array folders, memory-mapped: the one place that knows the pixel range and the meaning of the labels.

A prepared set is `ROOT/NAME/{train,test}/`, each a folder of arrays (kind "images"): `images.npy` uint8 [N, C, H, W],
`labels.npy` int64 [N, A] and `meta.json` with the attributes (label column -> number of classes), source, licence and a
SHA-256 over the bytes of images and labels. ROOT is the folder given, else `$DATA`, else `data`.

Synthetic: one of 5 shapes in one cell of a 4 x 4 grid, one of 9 saturated foreground hues on one of 9 muted backgrounds
of another hue: 4 * 4 * 5 * 9 * 8 = 5,760 images. The backgrounds stay within 24 of the middle grey, for saturated ones
would hold nearly all the variance, and a model would learn nothing else within minutes.
MNIST and Fashion-MNIST keep their 28 x 28 pixels: a padded frame would be explained by any mean.

Legend: N images, C channels, H x W pixels, A label columns.
"""

import colorsys
import fcntl
import gzip
import hashlib
import itertools
import os
import re
import shutil
import socket
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffusion_model import arrays
from diffusion_model.experiment import nearest, progress, seed_of

KIND = "images"
SPLITS = ("train", "test")
BLOCK = 1024  # images read and written at once
TRAIN_FRACTION = 0.8  # of a user's images that come without a split
COMMAND = "python diffusion_model/prepare_data.py"


# ---------------------------------------------------------------------------------------------------------------------
# Reading a prepared set


@dataclass(frozen=True)
class Split:
    """One split of a prepared set: images uint8 [N, C, H, W] (memory-mapped), labels int64 [N, A], attributes {column: classes}."""

    name: str
    split: str
    images: np.ndarray
    labels: np.ndarray
    attributes: dict[str, int]
    hash: str
    meta: dict[str, Any]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        return tuple(self.images.shape[1:])

    def label(self, attribute: str) -> np.ndarray:
        """Labels [N] of one attribute; ValueError with the names that exist."""
        if attribute not in self.attributes:
            raise ValueError(f"{self.name} has no attribute {attribute!r}; {nearest(attribute, self.attributes)}")
        return self.labels[:, list(self.attributes).index(attribute)]


def root(given: Path | str | None = None) -> Path:
    """The folder of the data sets: the one given, else `$DATA`, else `data`."""
    return Path(given or os.environ.get("DATA") or "data")


_root = root  # the functions below have an argument of that name


def canonical(name: str) -> str:
    """A data set's name on disk: built-in sets by any spelling (FashionMNIST, fashion-mnist), other names in lower case."""
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    for known in DATASETS:
        if plain == known.replace("_", ""):
            return known
    if plain in LATER:
        raise ValueError(f"data set {name!r} is known but not supported yet; accepted: {', '.join(DATASETS)}")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise ValueError(f"data set name {name!r}: expected letters, digits, '.', '_' and '-'")
    return name.lower()


def open_split(name: str, split: str, root: Path | str | None = None) -> Split:
    """The `train` or `test` split of a data set; prepared first where that needs no download and no choice."""
    name, folder = canonical(name), _root(root)
    if split not in SPLITS:
        raise ValueError(f"split {split!r}: {nearest(split, SPLITS)}")
    if not _is_prepared(folder / name):
        if name not in DATASETS:
            raise FileNotFoundError(
                f"no data set {name!r} in {folder} ({nearest(name, [*DATASETS, *_prepared(folder)])}): "
                f"for your own images run `{COMMAND} {name} --source FILE.npz`"
            )
        prepare(name, folder, download=False)
    held, meta = arrays.read_folder(folder / name / split, KIND, f"run `{COMMAND} {name}` again")
    labels = np.array(held["labels"])
    check(held["images"], labels, meta["attributes"], str(folder / name / split))
    return Split(name, split, held["images"], labels, meta["attributes"], meta["hash"], meta)


def check(images: np.ndarray, labels: np.ndarray, attributes: dict[str, int], what: str) -> None:
    """Refuse images and labels of a wrong shape, dtype or range, each with one sentence that begins with `what`."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3) or not images.size:
        raise ValueError(
            f"{what}: images are {images.dtype} {list(images.shape)}, expected uint8 [N, C, H, W] with 1 or 3 channels"
        )
    if labels.dtype.kind not in "iu" or labels.shape != (len(images), len(attributes)):
        raise ValueError(
            f"{what}: labels are {labels.dtype} {list(labels.shape)}, "
            f"expected integers [{len(images)}, {len(attributes)}] for {len(images)} images"
        )
    for column, (attribute, classes) in enumerate(attributes.items()):
        low, high = int(labels[:, column].min()), int(labels[:, column].max())
        if low < 0 or high >= classes:
            raise ValueError(f"{what}: labels of {attribute!r} run from {low} to {high}, expected 0 to {classes - 1}")


def _is_prepared(folder: Path) -> bool:
    return all(arrays.is_finished(folder / split) for split in SPLITS)


def _prepared(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.glob("*") if _is_prepared(entry))


# ---------------------------------------------------------------------------------------------------------------------
# Model space


@dataclass(frozen=True)
class Scaling:
    """The affine map of one run from uint8 pixels to model space, a channel: model = pixel * scale + shift."""

    scale: tuple[float, ...]
    shift: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.scale) != len(self.shift) or not all(value > 0 for value in self.scale):
            raise ValueError(
                f"scale {self.scale} and shift {self.shift}: expected one positive scale and shift a channel"
            )

    def to_model(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels uint8 [B, C, H, W] as float32 in model space."""
        if pixels.dtype != torch.uint8:
            raise ValueError(f"pixels are {pixels.dtype}, expected torch.uint8")
        scale, shift = self._as(pixels, torch.float32)
        return pixels.to(torch.float32) * scale + shift

    def to_pixels(self, x: torch.Tensor) -> torch.Tensor:
        """Model space [B, C, H, W] as uint8 pixels, rounded and clamped."""
        scale, shift = self._as(x, x.dtype)
        return ((x - shift) / scale).round().clamp(0, 255).to(torch.uint8)

    def as_dict(self) -> dict[str, list[float]]:
        """As JSON holds it."""
        return {"scale": list(self.scale), "shift": list(self.shift)}

    @classmethod
    def from_dict(cls, content: dict[str, list[float]]) -> "Scaling":
        """The inverse of `as_dict`."""
        return cls(tuple(content["scale"]), tuple(content["shift"]))

    def _as(self, images: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        if images.ndim != 4 or images.shape[1] != len(self.scale):
            raise ValueError(f"images have shape {list(images.shape)}, expected [B, {len(self.scale)}, H, W]")
        shape = (1, -1, 1, 1)
        options = {"dtype": dtype, "device": images.device}
        return torch.tensor(self.scale, **options).view(shape), torch.tensor(self.shift, **options).view(shape)


def scaling(kind: str, split: Split) -> Scaling:
    """`unit`: [0, 255] to [-1, 1]; `standardised`: mean 0 and standard deviation 1 a channel over this (training) split."""
    channels = split.images.shape[1]
    if kind == "unit":
        return Scaling((1 / 127.5,) * channels, (-1.0,) * channels)
    if kind != "standardised":
        raise ValueError(f"scaling {kind!r}: {nearest(kind, ('unit', 'standardised'))}")
    counts = np.zeros((channels, 256), np.int64)
    for start in range(0, len(split), BLOCK):
        block = split.images[start : start + BLOCK]
        for channel in range(channels):
            counts[channel] += np.bincount(block[:, channel].ravel(), minlength=256)
    share = counts / counts.sum(axis=1, keepdims=True)
    values = np.arange(256.0)
    mean = share @ values
    deviation = np.sqrt((share * (values - mean[:, None]) ** 2).sum(axis=1))
    if not (deviation > 0).all():
        raise ValueError(f"a channel of {split.name} is constant, so it cannot be standardised: take scaling 'unit'")
    return Scaling(tuple((1 / deviation).tolist()), tuple((-mean / deviation).tolist()))


# ---------------------------------------------------------------------------------------------------------------------
# Preparing a set


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
    class_names: dict[str, tuple[str, ...]] = field(default_factory=dict)


def prepare(name: str, root: Path | str, source: Path | str | None = None, download: bool = True) -> Path:
    """Write `ROOT/NAME/{train,test}` once and return `ROOT/NAME`; what is prepared already is left as it is.

    source: a folder of IDX files (MNIST, Fashion-MNIST), a folder that holds CIFAR-10, or a `.npy`/`.npz` of your own.
    """
    name, root = canonical(name), Path(root)
    folder = root / name
    with _lock(root / f".{name}.lock"):
        if _is_prepared(folder):
            _refuse_other_source(folder, source)
            return folder
        if name in DATASETS:
            found = _locate(name, root, source, download)
            kind = DATASETS[name]
            splits, attributes = kind.load(found), kind.attributes
            extra = {"origin": kind.origin, "licence": kind.licence, "class_names": kind.class_names}
            _check_counts(name, kind, splits)
        else:
            if source is None:
                raise FileNotFoundError(
                    f"{name!r} is no built-in data set ({nearest(name, DATASETS)}): "
                    f"for your own images run `{COMMAND} {name} --source FILE.npz`"
                )
            found = Path(source)
            splits, attributes, how = load_own(found)
            extra = {"origin": "given by the user", "licence": "unknown", "class_names": {}, "splitting": how}
        _check_space(name, root, splits)
        for split, raw in splits.items():
            _write_split(folder / split, f"{name}/{split}", raw, attributes, dataset=name, split=split,
                         source=str(found) if found else "made by the project", **extra)  # fmt: skip
    return folder


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Let one process at a time prepare a set: the others wait and then find it prepared."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _refuse_other_source(folder: Path, source: Path | str | None) -> None:
    written = arrays.read_meta(folder / "train", KIND, "")["source"]
    if source is not None and str(source) != written:
        raise ValueError(f"{folder} was prepared from {written}: remove it to prepare it from {source}")


def _locate(name: str, root: Path, source: Path | str | None, download: bool) -> Path | None:
    """The files to prepare a built-in set from: those given, those on this machine, or a download."""
    kind = DATASETS[name]
    if kind.find is None:
        if source is not None:
            raise ValueError(f"{name} is made by the project and takes no --source: give your own images another name")
        return None
    if source is not None:
        source = Path(source)
        if not source.is_dir():
            raise FileNotFoundError(f"--source {source} is no folder: {kind.place.format(root=root)}")
        return source
    found = kind.find(root)
    if found is not None:
        return found
    if not download:
        raise FileNotFoundError(
            f"{name} is not prepared in {root}: run `{COMMAND} {name}`, which downloads it; without a network, "
            f"{kind.place.format(root=root)}"
        )
    try:
        with _timeout(30):
            return kind.download(root / "downloads")
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise FileNotFoundError(
            f"{name} could not be downloaded ({type(error).__name__}: {reason}): {kind.place.format(root=root)} "
            f"and run `{COMMAND} {name}`"
        ) from None


@contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _check_counts(name: str, kind: Dataset, splits: dict[str, Raw]) -> None:
    for split, expected in zip(SPLITS, kind.counts, strict=True):
        if len(splits[split].labels) != expected:
            raise ValueError(f"{name}/{split} has {len(splits[split].labels)} images, expected {expected}")
        shape = splits[split].read(np.arange(1)).shape[1:]
        if shape != kind.shape:
            raise ValueError(f"{name}/{split} has images of shape {list(shape)}, expected {list(kind.shape)}")


def _check_space(name: str, root: Path, splits: dict[str, Raw]) -> None:
    """Say what will be written, and stop where the disk does not hold it."""
    need = sum(len(raw.labels) * raw.read(np.arange(1)).size + 8 * raw.labels.size for raw in splits.values())
    free = shutil.disk_usage(root).free
    counts = ", ".join(f"{len(raw.labels):,} {split}" for split, raw in splits.items())
    print(f"preparing {name} in {root / name}: {counts} images, {need / 1e6:.1f} MB on disk", file=sys.stderr)
    if need > free:
        raise ValueError(f"{name} needs {need / 1e6:.1f} MB in {root}, where {free / 1e6:.1f} MB are free")


def _write_split(folder: Path, what: str, raw: Raw, attributes: dict[str, int], **meta: Any) -> None:
    """Stream one split to disk, checking and hashing on the way."""
    (folder / "meta.json").unlink(missing_ok=True)
    count = len(raw.labels)
    labels = np.ascontiguousarray(raw.labels, dtype=np.int64)
    check(raw.read(np.arange(1)), labels[:1], attributes, what)
    shape = (count, *raw.read(np.arange(1)).shape[1:])
    digest = hashlib.sha256()

    def write(path: Path) -> None:
        target = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
        starts = range(0, count, BLOCK)
        for start in progress(starts, f"preparing {what}", f"blocks of {BLOCK}"):
            block = np.ascontiguousarray(raw.read(np.arange(start, min(start + BLOCK, count))))
            check(block, labels[start : start + BLOCK], attributes, what)
            target[start : start + BLOCK] = block
            digest.update(block)
        target.flush()

    arrays.write_atomically(folder / "images.npy", write)
    arrays.write_array(folder / "labels.npy", labels)
    digest.update(labels)
    arrays.seal_folder(folder, KIND, ["images", "labels"], attributes=attributes, count=count, shape=list(shape[1:]),
                       hash=digest.hexdigest(), **meta)  # fmt: skip


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
    class_names: tuple[str, ...],
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
        class_names={attribute: class_names},
    )


# ---------------------------------------------------------------------------------------------------------------------
# CIFAR-10: the binary version, records of one label and 3,072 pixels; the Python version only through torchvision,
# which compares checksums before it unpickles

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
    labels = np.zeros((len(images), 0), np.int64) if labels is None else labels.reshape(len(labels), -1)
    if labels.dtype.kind not in "iu" or len(labels) != len(images):
        raise ValueError(
            f"{what}: labels are {labels.dtype} {list(labels.shape)}, expected integers for {len(images)} images"
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
        "https://github.com/zalandoresearch/fashion-mnist", "MIT", FASHION),
    "mnist": idx_dataset(
        "mnist", "MNIST", ("/usr/share/datasets/mnist",), "digit",
        "http://yann.lecun.com/exdb/mnist", "CC BY-SA 3.0", tuple("0123456789")),
    "cifar10": Dataset(
        load=load_cifar10, shape=(3, 32, 32), attributes={"class": 10}, counts=(50_000, 10_000),
        origin="https://www.cs.toronto.edu/~kriz/cifar.html", licence="none stated; cite Krizhevsky 2009",
        find=find_cifar10, download=download_cifar10, place=CIFAR10_PLACE, class_names={"class": CIFAR10}),
}  # fmt: skip
LATER = ("cifar100", "miniimgnet", "miniimagenet", "cmnist", "coloredmnist", "celeba")  # known, not yet supported
