"""Data sets as uint8 array folders, memory-mapped: the one place that knows the pixel range and the meaning of the labels.

A prepared set is `ROOT/NAME/{train,test}/`, each a folder of arrays (kind "images"): `images.npy` uint8 [N, C, H, W],
`labels.npy` int64 [N, A] and `meta.json` with the attributes (label column -> number of classes), source, licence and a
SHA-256 over the bytes of images and labels. ROOT is the folder given, else `$DATA`, else `data`.

Legend: N images, C channels, H x W pixels, A label columns.
"""

import contextlib
import dataclasses
import hashlib
import os
import re
import shutil
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffusion_model import arrays, blocks, locks
from diffusion_model.blocks import BLOCK
from diffusion_model.experiment import UsageError, generator, nearest
from diffusion_model.own_arrays import load_own, mark_of_own
from diffusion_model.pictures import load_classes, mark_of_classes
from diffusion_model.raw import SPLITS, Dataset, Loaded, Raw
from diffusion_model.sources import ALIASES, DATASETS

KIND = "images"
COMMAND = "python diffusion_model/prepare_data.py"
LARGEST = 1024  # side that images are resized to: beyond, a mistyped number takes all memory
META = {
    "attributes": {...: int}, "hash": str, "class_names?": {...: [str]},
    "arrays": {"images": {"shape": [int]}, "labels": {"shape": [int]}}, "also_in_train?": int,
    "source?": str, "source_mark?": (str, None), "shape?": [int],
}  # fmt: skip
TEMPORARY = (".*.npy*.tmp", ".meta.json*.tmp")  # what a writer that was killed leaves in a split
RESUMED = (".images.npy.part", ".images.npy.done")  # what the next run goes on with


# ---------------------------------------------------------------------------------------------------------------------
# Reading a prepared set


class Chosen:
    """The images `rows` [N] of a memory-mapped array [M, C, H, W], read where they are asked for."""

    def __init__(self, images: np.ndarray, rows: np.ndarray) -> None:
        self.images, self.rows, self.shape = images, rows, (len(rows), *images.shape[1:])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> np.ndarray:
        return self.images[self.rows[index]]


@dataclass(frozen=True)
class Split:
    """One split of a prepared set: images uint8 [N, C, H, W] (memory-mapped), labels int64 [N, A], attributes {column: classes}.

    rows: of the whole split, where these are some of its images.
    """

    name: str
    split: str
    images: np.ndarray
    labels: np.ndarray
    attributes: dict[str, int]
    hash: str
    meta: dict[str, Any]
    rows: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.images)

    def sample(self, count: int | None) -> "Split":
        """`count` of the images, drawn by a fixed seed: the first of one random order, whatever the count; None or more: all.

        A set may be sorted by class, so that its first images are no sample of it.
        """
        if count is None or count >= len(self):
            return self
        rows = torch.randperm(len(self), generator=generator("sample", self.split)).numpy()[:count]
        return dataclasses.replace(self, images=Chosen(self.images, rows), labels=self.labels[rows], rows=rows)

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
    """The folder of the data sets: the one given, else `$DATA`, else `data`; a mistyped one is not made."""
    asked = given or os.environ.get("DATA")
    folder = Path(asked or "data")
    option = "--data" if given else "$DATA" if asked else "the default --data"
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{option} {folder} is a file: expected the folder of the data sets")
    if asked and not folder.parent.is_dir():
        raise FileNotFoundError(
            f"{option} {folder}: there is no folder {folder.parent} to hold it: make it, or mend the path"
        )
    return folder


_root = root  # the functions below have an argument of that name


def canonical(name: str) -> str:
    """A data set's name on disk: built-in sets by any spelling (FashionMNIST, fashion-mnist), other names in lower case."""
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    for known in DATASETS:
        if plain == known.replace("_", ""):
            return known
    if plain in ALIASES:
        return ALIASES[plain]
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise UsageError(f"data set name {name!r}: expected letters, digits, '.', '_' and '-'")
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
                f"for your own images run `{COMMAND} {name} --source PATH`"
            )
        prepare(name, folder, download=False)
    again = f"remove {folder / name} and run `{COMMAND} {name}` again"
    parts = {part: _read(folder / name / part, part == split, again) for part in SPLITS}
    _check_pair(folder / name, parts, again)
    images, labels, meta = parts[split]
    return Split(name, split, images, labels, meta["attributes"], meta["hash"], meta)


def _read(folder: Path, whole: bool, again: str) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Images, labels and meta of one prepared split, checked; against their checksums if `whole`."""
    meta = arrays.read_meta(folder, KIND, again)
    arrays.expect(meta, folder / "meta.json", META, again)
    if whole:
        held, _ = arrays.read_folder(folder, KIND, again)
    else:
        held = {array: arrays.read_array(folder / f"{array}.npy") for array in meta["arrays"]}
    labels = np.array(held["labels"])
    check(held["images"], labels, meta["attributes"], str(folder))
    return held["images"], labels, meta


def _check_pair(folder: Path, parts: dict[str, tuple[np.ndarray, np.ndarray, dict]], again: str) -> None:
    """Refuse two prepared splits that do not belong together, such as those of a folder made by hand."""
    train, test = (meta for _, _, meta in parts.values())
    for field in ("attributes", "class_names"):
        if list(train.get(field, {}).items()) != list(test.get(field, {}).items()):
            raise ValueError(f"{folder}: train and test differ in their {field}: {again}")
    check_shapes(str(folder), {split: images.shape[1:] for split, (images, _, _) in parts.items()}, again)
    named = train.get("class_names", {}) | (DATASETS[folder.name].attributes if folder.name in DATASETS else {})
    for column, (attribute, classes) in enumerate(train["attributes"].items()):
        if attribute in named:  # a class that is named may be without an image
            continue
        values = np.unique(np.concatenate([labels[:, column] for _, labels, _ in parts.values()]))
        if len(values) != classes:
            raise ValueError(
                f"{folder}: {attribute!r} has {classes} classes, and images of {len(values)}, with labels from {values[0]} "
                f"to {values[-1]}: number them from 0 without gaps, or name them all in class_names of both meta.json"
            )


def check_shapes(what: str, shapes: Mapping[str, Sequence[int]], remedy: str) -> None:
    """Refuse splits whose images (C, H, W) differ in shape, with one sentence that begins with `what`."""
    train, test = ("x".join(map(str, shapes[split])) for split in SPLITS)
    if train != test:
        raise ValueError(f"{what}: images of train are {train}, those of test {test}, expected one shape: {remedy}")


def open_split_of(record: dict[str, Any], split: str, root: Path | str | None = None) -> Split:
    """A split of the set that a run was trained on (`record` as checkpoint.read_run gives it); other images are a ValueError."""
    name, trained = record["data"]["name"], record["data"]["hash"]
    found = open_split(name, "train", root).hash
    if found != trained:
        raise ValueError(
            f"{name} in {_root(root)} holds other images than the run was trained on (SHA-256 {found[:12]}, then "
            f"{trained[:12]}): prepare those again, or give their folder with --data"
        )
    return open_split(name, split, root)


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


def is_prepared(name: str, root: Path | str | None = None) -> bool:
    """Whether both splits of a data set lie in `root`."""
    return _is_prepared(_root(root) / canonical(name))


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

    def to_unit(self, x: torch.Tensor) -> torch.Tensor:
        """Model space [B, C, H, W] as pixels in [0, 1], neither rounded nor clamped."""
        scale, shift = self._as(x, x.dtype)
        return (x - shift) / (255 * scale)

    def from_unit(self, share: torch.Tensor) -> torch.Tensor:
        """The inverse of `to_unit`."""
        scale, shift = self._as(share, share.dtype)
        return 255 * share * scale + shift

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


def scaling(kind: str, split: Split, statistics: tuple[np.ndarray, np.ndarray] | None = None) -> Scaling:
    """`unit`: [0, 255] to [-1, 1]; `standardised`: mean 0 and standard deviation 1 a channel over this (training) split.

    statistics: what `channel_statistics(split)` gives, where it is known already.
    """
    channels = split.images.shape[1]
    if kind == "unit":
        return Scaling((1 / 127.5,) * channels, (-1.0,) * channels)
    if kind != "standardised":
        raise ValueError(f"scaling {kind!r}: {nearest(kind, ('unit', 'standardised'))}")
    mean, deviation = statistics or channel_statistics(split)
    if not (deviation > 0).all():
        raise ValueError(f"a channel of {split.name} is constant, so it cannot be standardised: take scaling 'unit'")
    return Scaling(tuple((1 / deviation).tolist()), tuple((-mean / deviation).tolist()))


def channel_statistics(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel's pixels over a split, float64 [C] each, in uint8 units; exact."""
    channels = split.images.shape[1]
    counts = np.zeros((channels, 256), np.int64)
    for start in range(0, len(split), BLOCK):
        block = split.images[start : start + BLOCK]
        for channel in range(channels):
            counts[channel] += np.bincount(block[:, channel].ravel(), minlength=256)
    share = counts / counts.sum(axis=1, keepdims=True)
    values = np.arange(256.0)
    mean = share @ values
    return mean, np.sqrt((share * (values - mean[:, None]) ** 2).sum(axis=1))


def resident(split: Split, device: torch.device | str) -> torch.Tensor | None:
    """The images uint8 [N, C, H, W] on a CUDA device where they take less than a third of its free memory, else None.

    On the CPU always None: the memory map of the file is as good.
    """
    device = torch.device(device)
    if device.type != "cuda" or 3 * split.images.nbytes >= torch.cuda.mem_get_info(device)[0]:
        return None
    images = torch.empty(split.images.shape, dtype=torch.uint8, device=device)
    for start in range(0, len(split), BLOCK):  # never a second copy of the set in the host's memory
        images[start : start + BLOCK] = torch.from_numpy(np.array(split.images[start : start + BLOCK]))
    return images


# ---------------------------------------------------------------------------------------------------------------------
# Preparing a set


def prepare(
    name: str, root: Path | str, source: Path | str | None = None, download: bool = True,
    workers: int | None = None, size: int | None = None,
) -> Path:  # fmt: skip
    """Write `ROOT/NAME/{train,test}` once and return `ROOT/NAME`; what is prepared already is left as it is.

    source: the folder of a built-in set's files, or images of your own: a `.npy`, a `.npz`, or a folder with one a class.
    workers: processes that decode images (default: the cores); the result has the same bytes for any number.
    size: side in pixels to which a folder of your own is resized and cropped.
    """
    name, root = canonical(name), Path(root)
    folder = root / name
    if name in DATASETS and size is not None:
        raise UsageError(
            f"--size {size}: {name} has the size {DATASETS[name].shape[1]}; give your own images another name"
        )
    if size is not None and size > LARGEST:
        raise UsageError(f"--size {size}: expected at most {LARGEST}")
    if name not in DATASETS and source is None and not _is_prepared(folder):
        raise FileNotFoundError(
            f"{name!r} is no built-in data set ({nearest(name, DATASETS)}): "
            f"for your own images run `{COMMAND} {name} --source PATH`"
        )
    if _is_prepared(folder):  # asked without the lock: a folder that cannot be written is as good
        _refuse_other_source(folder, source, size)
        if _left(folder, *TEMPORARY, *RESUMED):
            with contextlib.suppress(OSError), locks.held(root, "prepared", wait=True, name=f".{name}.lock"):
                _clear(folder, *TEMPORARY, *RESUMED)
        return folder
    with locks.held(root, "prepared", wait=True, name=f".{name}.lock"):
        if _is_prepared(folder):  # by the process that was waited for
            _refuse_other_source(folder, source, size)
        else:
            _clear(folder, *TEMPORARY)
            found, loaded, about = _load(name, root, source, download, size)
            _say_classes(name, loaded, about)
            _check_space(name, root, loaded.splits)
            about |= {"dataset": name, "splitting": loaded.splitting, "source": "made by the project"}
            about |= {"source": str(found.resolve()), "source_mark": _mark(name, found)} if found else {}
            for split, raw in loaded.splits.items():
                _write_split(folder / split, f"{name}/{split}", raw, workers or blocks.cores(), split=split, **about)
            _clear(folder, *RESUMED)
    return folder


def _left(folder: Path, *patterns: str) -> list[Path]:
    """Files of our own temporary names in the splits of a set."""
    return [path for split in SPLITS for pattern in patterns for path in (folder / split).glob(pattern)]


def _clear(folder: Path, *patterns: str) -> None:
    """Remove what a writer that was killed has left; the lock, which is held, keeps living ones away."""
    for path in _left(folder, *patterns):
        path.unlink(missing_ok=True)


def _load(
    name: str, root: Path, source: Path | str | None, download: bool, size: int | None
) -> tuple[Path | None, Loaded, dict[str, Any]]:
    """Where the images are, both splits of them, and what their meta.json will say of the set."""
    if name not in DATASETS:
        found = Path(source)
        if size is not None and not found.is_dir():
            raise UsageError(f"--size {size}: only a folder of images is resized, and {found} is none")
        loaded = load_classes(found, size) if found.is_dir() else load_own(found)
        _refuse_empty(name, loaded)
        shapes = {split: raw.read(np.arange(1)).shape[1:] for split, raw in loaded.splits.items()}
        check_shapes(str(found), shapes, "resize the images of one of them")
        about = {"origin": "given by the user", "licence": "unknown"}
        return found, loaded, about | {"attributes": loaded.attributes, "class_names": loaded.class_names}
    kind = DATASETS[name]
    found = _locate(name, root, source, download)
    loaded = kind.load(found)
    _refuse_empty(name, loaded)
    _check_counts(name, kind, loaded)
    about = {"origin": kind.origin, "licence": kind.licence, "attributes": kind.attributes}
    return found, loaded, about | {"class_names": kind.class_names | loaded.class_names}


def _refuse_other_source(folder: Path, source: Path | str | None, size: int | None) -> None:
    meta = arrays.read_meta(folder / "train", KIND, "")
    arrays.expect(meta, folder / "train" / "meta.json", META, f"remove {folder} and prepare it again")
    if source is not None and Path(source).resolve() != Path(meta["source"]).resolve():
        raise ValueError(f"{folder} was prepared from {meta['source']}: remove it to prepare it from {source}")
    mark = meta.get("source_mark")
    if source is not None and mark is not None and Path(source).exists() and mark != _mark(folder.name, Path(source)):
        raise ValueError(
            f"{folder} was prepared from {source} when that held other files: remove it to prepare it anew"
        )
    if size is not None and meta["shape"][1:] != [size, size]:
        written = "x".join(map(str, meta["shape"][1:]))
        raise ValueError(f"{folder} was prepared at {written}: remove it to prepare it at {size}x{size}")


def _mark(name: str, source: Path) -> str | None:
    """What tells whether images of one's own are still those of a source: a file's bytes, a folder's names and sizes."""
    if name in DATASETS:
        return None
    return mark_of_classes(source) if source.is_dir() else mark_of_own(source)


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
    if kind.download is None:
        raise FileNotFoundError(
            f"{name} is not prepared in {root} and cannot be downloaded freely: {kind.place.format(root=root)}, "
            f"and run `{COMMAND} {name}`"
        )
    if not download:
        raise FileNotFoundError(
            f"{name} is not prepared in {root}: run `{COMMAND} {name}`, which downloads it; without a network, "
            f"{kind.place.format(root=root)}"
        )
    print(f"downloading {name} to {root / 'downloads'} ({kind.megabytes} MB)", file=sys.stderr)
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


def _refuse_empty(name: str, loaded: Loaded) -> None:
    for split, raw in loaded.splits.items():
        if not len(raw.labels):
            raise ValueError(f"{name}/{split} has no images")


def _say_classes(name: str, loaded: Loaded, about: dict[str, Any]) -> None:
    """Say which classes only one of the splits has, and where there is nothing to tell apart."""
    for column, (attribute, classes) in enumerate(about["attributes"].items()):
        if classes == 1:
            print(f"{name}: {attribute!r} has one class, so that nothing can be told apart by it", file=sys.stderr)
        called = dict(enumerate(about["class_names"].get(attribute, ())))
        train, test = (set(loaded.splits[split].labels[:, column].tolist()) for split in SPLITS)
        for lacking, alone in (("train", sorted(test - train)), ("test", sorted(train - test))):
            if alone:
                some = ", ".join(str(called.get(label, label)) for label in alone[:3]) + ", ..." * (len(alone) > 3)
                what = f"{len(alone)} of {classes} classes of {attribute!r} have no {lacking} images"
                print(f"{name}: {what}: {some}", file=sys.stderr)


def _check_counts(name: str, kind: Dataset, loaded: Loaded) -> None:
    for split, expected in zip(SPLITS, kind.counts, strict=True):
        raw = loaded.splits[split]
        if loaded.published and len(raw.labels) != expected:
            raise ValueError(f"{name}/{split} has {len(raw.labels)} images, expected {expected}")
        shape = raw.read(np.arange(1)).shape[1:]
        if shape != kind.shape:
            raise ValueError(f"{name}/{split} has images of shape {list(shape)}, expected {list(kind.shape)}")


def _check_space(name: str, root: Path, splits: dict[str, Raw]) -> None:
    """Say what will be written, and stop where the disk does not hold it."""
    need = sum(len(raw.labels) * raw.read(np.arange(1)).size + 8 * raw.labels.size for raw in splits.values())
    begun = [blocks.part(root / name / split / "images.npy") for split in splits]
    free = shutil.disk_usage(root).free + sum(512 * path.stat().st_blocks for path in begun if path.is_file())
    counts = ", ".join(f"{len(raw.labels):,} {split}" for split, raw in splits.items())
    print(f"preparing {name} in {root / name}: {counts} images, {need / 1e6:.1f} MB on disk", file=sys.stderr)
    if need > free:
        raise ValueError(f"{name} needs {need / 1e6:.1f} MB in {root}, where {free / 1e6:.1f} MB are free")


def _write_split(folder: Path, what: str, raw: Raw, workers: int, *, attributes: dict[str, int], **meta: Any) -> None:
    """Write one split, checking every block, and seal it with its hash; one that was sealed from the same files stays.

    `train` comes before `test`, which records how many of its images it shares with it.
    """
    train = folder.parent / SPLITS[0]
    beside = None if folder == train else arrays.read_meta(train, KIND, "")["hash"]
    labels = np.ascontiguousarray(raw.labels, dtype=np.int64)
    key = _split_key(raw, labels, beside)
    if key and arrays.is_finished(folder) and arrays.read_meta(folder, KIND, "").get("key") == key:
        return
    (folder / "meta.json").unlink(missing_ok=True)
    check(raw.read(np.arange(1)), labels[:1], attributes, what)
    shape = (len(labels), *raw.read(np.arange(1)).shape[1:])

    def check_block(rows: np.ndarray, block: np.ndarray) -> None:
        check(block, labels[rows], attributes, what)

    images = folder / "images.npy"
    blocks.write(images, raw, shape, workers, what, check_block)
    arrays.write_array(folder / "labels.npy", labels)
    if beside is not None:
        meta["also_in_train"] = _shared(train / "images.npy", images)
    arrays.seal_folder(folder, KIND, ["images", "labels"], attributes=attributes, count=len(labels), shape=list(shape[1:]),
                       hash=_hash(images, labels), key=key, **meta)  # fmt: skip


def _split_key(raw: Raw, labels: np.ndarray, beside: str | None) -> str | None:
    """What a decoded split is a function of: its files, its labels and the hash of the split before it."""
    if raw.key is None:
        return None
    return hashlib.sha256(f"{raw.key(np.arange(len(labels)))}{beside}".encode() + labels.tobytes()).hexdigest()


def _shared(train: Path, test: Path) -> int:
    """How many images of `test` are, pixel for pixel, also in `train`."""
    known, found = (
        [hashlib.blake2b(image, digest_size=16).digest() for image in np.load(path, mmap_mode="r", allow_pickle=False)]
        for path in (train, test)
    )
    known = set(known)
    return sum(image in known for image in found)


def _hash(path: Path, labels: np.ndarray) -> str:
    """SHA-256 over the bytes of the images and then of the labels."""
    digest, images = hashlib.sha256(), np.load(path, mmap_mode="r", allow_pickle=False)
    for start in range(0, len(images), BLOCK):
        digest.update(images[start : start + BLOCK])
    digest.update(labels)
    return digest.hexdigest()
