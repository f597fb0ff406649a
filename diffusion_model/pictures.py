"""Images in files, one each: folders of classes, CelebA, mini-ImageNet. Decoded by Pillow, on several processes.

A picture becomes C x H x W in one of three ways: `exact` (its own size), `crop` (its shorter side is resized, the middle
square is kept) or `squash` (the whole picture is resized, as CelebA's 178 x 218 are in the original). Resizing is bilinear
over all the pixels that a new one covers. A palette, CMYK and YCbCr become RGB, and a picture is turned as its EXIF says.
What a grey or RGB picture of 8 bits a channel cannot hold is refused, never cut in silence: more bits, floats, further
samples a pixel, transparency, several frames or pages.

Folders are walked by one rule: hidden files and folders (.NAME) are skipped, links are followed, a folder that is reached
twice is refused, and files whose suffix is none of SUFFIXES are named.

Legend: N images, B of them in a block, C channels, H x W pixels.
"""

import hashlib
import json
import os
import sys
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_model.experiment import progress, seed_of
from diffusion_model.raw import SPLITS, Loaded, Raw

FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # Pillow's names; whatever else it can open is refused
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".pgm", ".ppm")
EIGHT_BITS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")  # Pillow's names
GREY = ("1", "L", "LA")
TURNED = (5, 6, 7, 8)  # values of EXIF's orientation that swap width and height
ORIENTATION, BITS, SAMPLES, SAMPLE_FORMAT = 0x0112, 258, 277, 339  # tags of EXIF and TIFF
UNSIGNED = 1  # of SAMPLE_FORMAT
TRAIN_FRACTION = 0.8  # of a class whose images come without a split
LAYOUT = "train/CLASS/ and test/CLASS/, or CLASS/, with image files"
PARTS = ("train", "training", "test", "testing", "val", "valid", "validation")  # no names of classes


# ---------------------------------------------------------------------------------------------------------------------
# One picture


def decode(path: Path | str, shape: tuple[int, int, int], way: str) -> np.ndarray:
    """One picture as uint8 [C, H, W]; what cannot be decoded is a ValueError that names the file."""
    from PIL import Image, ImageOps

    channels, height, width = shape
    picture = _use(path, lambda file: ImageOps.exif_transpose(file))
    if picture.has_transparency_data and picture.convert("RGBA").getextrema()[3][0] < 255:
        raise ValueError(f"{path} has transparent pixels: put it on a background first")
    picture = picture.convert("L" if channels == 1 else "RGB")
    if way == "exact" and picture.size != (width, height):
        found = f"{picture.size[0]} x {picture.size[1]}"
        raise ValueError(f"{path} has {found} pixels, expected {width} x {height}: give --size to resize all images")
    if picture.size != (width, height):
        picture = picture.resize(
            (width, height), Image.Resampling.BILINEAR, _square(picture) if way == "crop" else None
        )
    pixels = np.asarray(picture)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def _use(path: Path | str, use: Callable) -> Any:
    """use(file) of an image file that is opened and, as far as its header says, can be read whole; else a ValueError."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as file:
                fault = _fault(file)
                found = None if fault else use(file)
    except Exception as error:  # Pillow raises whatever the format's reader raises
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        raise ValueError(f"{path} cannot be decoded as an image ({reason}): expected {', '.join(FORMATS)}") from None
    if fault:
        raise ValueError(f"{path} {fault}")
    return found


def _fault(file: Any) -> str | None:
    """What Pillow would leave out or cut of an opened file, if anything."""
    frames, bits, kept = getattr(file, "n_frames", 1), _bits(file), len(file.getbands())
    tags = file.tag_v2 if file.format == "TIFF" else {}
    if frames > 1:
        return f"holds {frames} frames or pages, expected one: save each that you want as a file"
    if bits > 8:
        return f"has {bits} bits a channel, expected 8: scale it to 0..255 first"
    if tags.get(SAMPLES, 1) > kept:
        return f"has {tags[SAMPLES]} samples a pixel, of which {file.mode} keeps {kept}: save those that you want"
    if file.mode not in EIGHT_BITS or {*tags.get(SAMPLE_FORMAT, ())} - {UNSIGNED}:
        kind = file.mode if file.mode not in EIGHT_BITS else "signed integers"
        return f"has pixels of kind {kind}, expected 8 bits a channel: convert it first"
    return None


def _bits(file: Any) -> int:
    """Bits a channel in the file, which Pillow may cut to 8: its mode does not tell."""
    if file.format == "TIFF":
        return max(file.tag_v2.get(BITS, (1,)))
    layout = file.tile[0][3] if file.tile else ""  # PNG: the kind of its pixels; PPM: that, and the largest value
    if file.format == "PPM" and not isinstance(layout, str):
        return layout[1].bit_length()
    return 16 if isinstance(layout, str) and layout.endswith(";16B") else 8


def _square(picture: object) -> tuple[float, float, float, float]:
    """The middle square, as left, top, right, bottom."""
    side = min(picture.size)
    left, top = ((length - side) / 2 for length in picture.size)
    return left, top, left + side, top + side


def probe(path: Path | str) -> tuple[int, int, bool]:
    """Width, height and whether grey; of most files from the header alone."""
    from PIL import ImageOps

    def about(file: Any) -> tuple[int, int, bool]:
        width, height = file.size
        if file.getexif().get(ORIENTATION) in TURNED:
            # some versions of Pillow give a TIFF's size as it is turned, others as it is stored
            width, height = ImageOps.exif_transpose(file).size if file.format == "TIFF" else (height, width)
        return width, height, file.mode in GREY

    return _use(path, about)


@dataclass(frozen=True)
class Pictures:
    """N files and what to make of each."""

    paths: list[str]
    shape: tuple[int, int, int]
    way: str

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Pictures uint8 [B, C, H, W]."""
        return np.stack([decode(self.paths[row], self.shape, self.way) for row in rows])

    def key(self, rows: np.ndarray) -> str:
        """What the pixels of these rows are a function of: files with size and date, shape and way."""
        content = [list(self.shape), self.way]
        for row in rows:
            about = Path(self.paths[row]).stat()
            content.append([self.paths[row], about.st_size, about.st_mtime_ns])
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def raw(self, labels: np.ndarray) -> Raw:
        """As one split."""
        return Raw(self.read, labels, self.key)


# ---------------------------------------------------------------------------------------------------------------------
# A folder a class


def class_folders(folder: Path) -> list[Path]:
    """The folders in `folder`, in the order of their names (of their numbers, where all are numbers)."""
    found = [entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    numbers = all(entry.name.isdecimal() for entry in found)
    return sorted(found, key=lambda entry: (int(entry.name) if numbers else 0, entry.name))


@dataclass
class Walk:
    """One pass over a source: the folders seen, so that none is read twice, and the files that are no images."""

    seen: dict[tuple[int, int], Path] = field(default_factory=dict)
    others: list[Path] = field(default_factory=list)

    def files(self, folder: Path) -> Iterator[os.DirEntry]:
        """Everything below `folder` that is no folder and not hidden, by name; a folder met before is a ValueError."""
        about = folder.stat()
        before = self.seen.setdefault((about.st_dev, about.st_ino), folder)
        if before is not folder:
            raise ValueError(f"{folder} is a link to {before}, so that images would be read twice: remove it")
        with os.scandir(folder) as entries:
            there = sorted(entries, key=lambda entry: entry.name)
        for entry in there:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from self.files(Path(entry.path))
            else:
                yield entry

    def images(self, folder: Path) -> list[str]:
        """The image files below `folder`; a link to one that is gone is among them, for decoding to say so."""
        found = []
        for entry in self.files(folder):
            if entry.name.lower().endswith(SUFFIXES) and (entry.is_file() or entry.is_symlink()):
                found.append(entry.path)
            else:
                self.others.append(Path(entry.path))
        return found

    def classes(self, folder: Path) -> dict[str, list[str]]:
        """Image files by class, in `folder`; a class without any, and images of no class, are a ValueError."""
        beside = [entry for entry in sorted(folder.iterdir()) if not entry.is_dir() and not entry.name.startswith(".")]
        loose = [entry.name for entry in beside if entry.suffix.lower() in SUFFIXES]
        if loose:
            raise ValueError(
                f"{folder} holds {len(loose):,} images outside of the folders of classes, such as {loose[0]}: expected {LAYOUT}"
            )
        self.others += beside
        classes = {entry.name: self.images(entry) for entry in class_folders(folder)}
        empty = [name for name, files in classes.items() if not files]
        if empty:
            raise ValueError(f"{folder / empty[0]} holds no images ({', '.join(SUFFIXES)}): remove it or fill it")
        _refuse_alike(folder, list(classes))
        return classes

    def say(self, source: Path) -> None:
        """Name the files that are no images, on stderr."""
        if self.others:
            kinds = Counter(path.suffix.lower() or path.name for path in self.others)
            listed = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5))
            print(
                f"{source}: {len(self.others)} files are no images and are left out ({listed}; such as {self.others[0]})",
                file=sys.stderr,
            )


def spelling(name: str) -> str:
    """The name of a class without what the eye, or another file system, does not tell apart."""
    if name.isdecimal():
        return str(int(name))
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def _refuse_alike(folder: Path, names: list[str]) -> None:
    known: dict[str, str] = {}
    for name in names:
        other = known.setdefault(spelling(name), name)
        if other != name:
            raise ValueError(
                f"{folder} holds the classes {other!a} and {name!a}, which differ in case, spaces, zeros or spelling of "
                "accents alone: rename one, or put their images into one folder"
            )


def rows_of(classes: dict[str, list[str]], names: list[str]) -> tuple[list[str], np.ndarray]:
    """Files and labels [N, 1] in a fixed random order, so that the first n of them are a fair sample."""
    pairs = [(path, names.index(name)) for name, files in classes.items() for path in files]
    pairs.sort(key=lambda pair: seed_of("files", names[pair[1]], Path(pair[0]).name))
    return [path for path, _ in pairs], np.array([label for _, label in pairs], np.int64)[:, None]


def find_splits(source: Path, walk: Walk) -> tuple[dict[str, dict[str, list[str]]], str]:
    """Image files by split and class, and how they were split: as the folders say, or 80 % of each class."""
    if not source.is_dir():
        raise FileNotFoundError(f"--source {source} is no folder: expected {LAYOUT}")
    given = [split for split in SPLITS if (source / split).is_dir()]
    if len(given) == 1:
        raise ValueError(f"{source} holds {given[0]}/ alone: expected {LAYOUT}")
    if given:
        left = [entry.name for entry in class_folders(source) if entry.name not in SPLITS]
        how = "as in the source" + (f"; {', '.join(left)} left out" if left else "")
        walk.others += [path for path in sorted(source.glob("[!.]*")) if not path.is_dir()]
        found = {split: walk.classes(source / split) for split in SPLITS}
    else:
        _refuse_parts(source)
        found, how = _cut(walk.classes(source)), f"{TRAIN_FRACTION:.0%} of each class train by a fixed seed"
    for split, classes in found.items():
        if not any(classes.values()):
            single = not given and any(found["train"].values())
            why = "no class has two images, of which one could be for testing" if single else f"expected {LAYOUT}"
            raise ValueError(f"{source} holds no images for {split}: {why}")
    return found, how


def _refuse_parts(source: Path) -> None:
    """Folders that look like a split are no classes."""
    names = [entry.name for entry in class_folders(source)]
    if names and all(name.lower() in PARTS for name in names):
        raise ValueError(f"{source} holds {'/ and '.join(names)}/, which look like parts of a set: expected {LAYOUT}")


def _cut(classes: dict[str, list[str]]) -> dict[str, dict[str, list[str]]]:
    """Each class in two, by a seed that depends on class and file name alone."""
    found: dict[str, dict[str, list[str]]] = {split: {} for split in SPLITS}
    for name, files in classes.items():
        order = sorted(files, key=lambda path: seed_of("split", name, Path(path).name))
        cut = max(1, min(round(TRAIN_FRACTION * len(files)), len(files) - 1))
        found["train"][name], found["test"][name] = order[:cut], order[cut:]
    return found


def measure(source: Path, paths: list[str], size: int | None) -> tuple[int, int, int]:
    """The shape that all images have, or get with `size`: C is 1 where all are grey; sizes that differ are a ValueError."""
    probed = [probe(path) for path in progress(paths, f"reading the headers in {source}", "files")]
    channels = 1 if all(grey for _, _, grey in probed) else 3
    if size is not None:
        return channels, size, size
    sizes = Counter((width, height) for width, height, _ in probed)
    (width, height), _ = sizes.most_common(1)[0]
    if len(sizes) > 1:
        other = next(index for index, entry in enumerate(probed) if entry[:2] != (width, height))
        found = f"{probed[other][0]} x {probed[other][1]}"
        raise ValueError(
            f"{source} holds images of {len(sizes)} sizes ({width} x {height} most often, {paths[other]} {found}): "
            "give --size to resize all of them"
        )
    return channels, height, width


def load_classes(source: Path, size: int | None) -> Loaded:
    """Images of your own, a folder a class; with `size`, resized and cropped to size x size."""
    walk = Walk()
    found, how = find_splits(source, walk)
    walk.say(source)
    names = list(found["train"])
    strange = [name for name in found["test"] if name not in names]
    if strange:
        alike = [name for name in names if spelling(name) == spelling(strange[0])]
        than = f"does not, but {alike[0]!a}" if alike else "does not"
        raise ValueError(f"{source}/test holds the class {strange[0]!a}, which train/ {than}: expected {LAYOUT}")
    rows = {split: rows_of(classes, names) for split, classes in found.items()}
    shape = measure(source, [path for paths, _ in rows.values() for path in paths], size)
    way = "exact" if size is None else "crop"
    splits = {split: Pictures(paths, shape, way).raw(labels) for split, (paths, labels) in rows.items()}
    return Loaded(splits, how, attributes={"class": len(names)}, class_names={"class": tuple(names)})


def mark_of_classes(source: Path) -> str:
    """What tells whether a folder of classes still holds the same: the names and sizes of its images."""
    found, _ = find_splits(source, Walk())
    paths = [path for classes in found.values() for files in classes.values() for path in files]
    content = sorted([path.removeprefix(f"{source}/"), Path(path).stat().st_size] for path in paths)
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


# ---------------------------------------------------------------------------------------------------------------------
# mini-ImageNet

MINI_IMAGENET = (3, 84, 84)
MINI_PLACE = (
    "place train/CLASS/*.jpg and test/CLASS/*.jpg, the same 100 classes with 500 and 100 images each, "
    "in {root}/downloads/mini_imagenet, or name their folder with --source"
)


def load_mini_imagenet(source: Path) -> Loaded:
    """100 classes of 500 training and 100 test images; pictures of another size are cropped to 84 x 84."""
    expected = MINI_PLACE.format(root="data")
    if not all((source / split).is_dir() for split in SPLITS):
        raise FileNotFoundError(f"{source} holds no train/ and test/ with a folder a class: {expected}")
    walk = Walk()
    classes = {split: walk.classes(source / split) for split in SPLITS}
    walk.say(source)
    names = list(classes["train"])
    if not set(names) & set(classes["test"]):
        raise ValueError(
            f"{source} holds the few-shot split, {len(names)} classes for training and {len(classes['test'])} others for "
            f"testing, so that no test image is of a class that a classifier was shown: {expected}"
        )
    if set(names) != set(classes["test"]) or len(names) != 100:
        shared = len(set(names) & set(classes["test"]))
        raise ValueError(
            f"{source} holds {len(names)} classes in train/ and {len(classes['test'])} in test/, {shared} of them in both: "
            f"{expected}"
        )
    rows = {split: rows_of(classes[split], names) for split in SPLITS}
    splits = {split: Pictures(paths, MINI_IMAGENET, "crop").raw(labels) for split, (paths, labels) in rows.items()}
    return Loaded(splits, class_names={"class": tuple(names)})


def find_mini_imagenet(root: Path) -> Path | None:
    """The folder of train/CLASS and test/CLASS among the downloads."""
    folders = (root / "downloads" / name for name in ("mini_imagenet", "miniimagenet", "mini_imgnet"))
    return next((folder for folder in folders if (folder / "train").is_dir()), None)


# ---------------------------------------------------------------------------------------------------------------------
# CelebA

CELEBA = (3, 64, 64)
CELEBA_PLACE = (
    "place the folder img_align_celeba with list_attr_celeba and list_eval_partition (.txt or .csv) in {root}/celeba, "
    "or name their folder with --source"
)
CELEBA_PARTS = {"train": 0, "test": 2}  # 1, the validation part, is left out
CELEBA_ATTRIBUTES = (
    "5_o_Clock_Shadow", "Arched_Eyebrows", "Attractive", "Bags_Under_Eyes", "Bald", "Bangs", "Big_Lips", "Big_Nose",
    "Black_Hair", "Blond_Hair", "Blurry", "Brown_Hair", "Bushy_Eyebrows", "Chubby", "Double_Chin", "Eyeglasses",
    "Goatee", "Gray_Hair", "Heavy_Makeup", "High_Cheekbones", "Male", "Mouth_Slightly_Open", "Mustache",
    "Narrow_Eyes", "No_Beard", "Oval_Face", "Pale_Skin", "Pointy_Nose", "Receding_Hairline", "Rosy_Cheeks",
    "Sideburns", "Smiling", "Straight_Hair", "Wavy_Hair", "Wearing_Earrings", "Wearing_Hat", "Wearing_Lipstick",
    "Wearing_Necklace", "Wearing_Necktie", "Young",
)  # fmt: skip


def celeba_table(folder: Path, name: str) -> Path | None:
    """`list_NAME` in `folder`, as text or CSV."""
    return next((path for ending in ("txt", "csv") if (path := folder / f"{name}.{ending}").is_file()), None)


def read_table(path: Path) -> tuple[list[str], Iterator[tuple[str, list[int]]]]:
    """Column names (none where the file has no header) and rows (file name, integers) of one of CelebA's tables."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text ({error.reason} at byte {error.start}): fetch it again") from None
    lines = [line.replace(",", " ").split() for line in text.splitlines() if line.strip()]
    if lines and len(lines[0]) == 1:
        lines = lines[1:]  # the number of images
    header = lines[0] if lines and Path(lines[0][0]).suffix.lower() not in SUFFIXES else []
    columns = header[1:] if header[:1] == ["image_id"] else header
    return columns, (_table_row(path, words) for words in lines[bool(header) :])


def _table_row(path: Path, words: list[str]) -> tuple[str, list[int]]:
    try:
        return words[0], [int(word) for word in words[1:]]
    except ValueError:
        raise ValueError(f"{path}: the line of {words[0]} holds more than whole numbers: fetch it again") from None


def celeba_attributes(path: Path) -> dict[str, np.ndarray]:
    """Labels [40] of 0 and 1 by file name."""
    columns, rows = read_table(path)
    if tuple(columns) != CELEBA_ATTRIBUTES:
        raise ValueError(f"{path} names {len(columns)} attributes, expected CelebA's 40 in their order: fetch it again")
    held = dict(rows)
    wrong = next((name for name, values in held.items() if len(values) != 40 or set(values) - {-1, 1}), None)
    if wrong is not None:
        raise ValueError(f"{path}: the line of {wrong} does not hold 40 times -1 or 1: fetch it again")
    return {name: (np.array(values, np.int64) + 1) // 2 for name, values in held.items()}


def celeba_partition(path: Path) -> dict[str, list[str]]:
    """File names by split."""
    held = dict(read_table(path)[1])
    wrong = next((name for name, values in held.items() if len(values) != 1 or values[0] not in (0, 1, 2)), None)
    if wrong is not None:
        raise ValueError(f"{path}: the line of {wrong} does not end in one of 0, 1 and 2: fetch it again")
    names = {split: [name for name, values in held.items() if values == [part]] for split, part in CELEBA_PARTS.items()}
    for split, part in CELEBA_PARTS.items():
        if not names[split]:
            raise ValueError(f"{path} lists no image of part {part}, from which {split}/ is made: fetch it again")
    return names


def load_celeba(source: Path) -> Loaded:
    """The official training and test parts of the aligned images, each squashed to 64 x 64, or the part of them listed."""
    tables = [celeba_table(source, name) for name in ("list_attr_celeba", "list_eval_partition")]
    nested = source / "img_align_celeba" / "img_align_celeba"  # as Kaggle packs it
    images = next((entry for entry in (nested, nested.parent) if entry.is_dir()), None)
    if images is None or None in tables:
        raise FileNotFoundError(f"{source} holds no CelebA: {CELEBA_PLACE.format(root='data')}")
    labels, names = celeba_attributes(tables[0]), celeba_partition(tables[1])
    wanted = [name for split in SPLITS for name in names[split]]
    _refuse_missing(f"{tables[0]} has no line of", wanted, labels)
    _refuse_missing(f"{images} lacks", wanted, {entry.name for entry in images.iterdir()})
    splits = {}
    for split in SPLITS:
        pictures = Pictures([str(images / name) for name in names[split]], CELEBA, "squash")
        splits[split] = pictures.raw(np.array([labels[name] for name in names[split]], np.int64).reshape(-1, 40))
    return Loaded(splits, "the official parts 0 and 2; part 1 (validation) left out", published=False)


def _refuse_missing(what: str, wanted: list[str], held: object) -> None:
    missing = [name for name in wanted if name not in held]
    if missing:
        more = f" and {len(missing) - 1:,} more" if len(missing) > 1 else ""
        raise FileNotFoundError(f"{what} {missing[0]}{more} of {len(wanted):,}: fetch the set again, or list fewer")


def find_celeba(root: Path) -> Path | None:
    """The folder of the images and tables: `root/celeba`, or among the downloads."""
    folders = (root / "celeba", root / "CelebA", root / "downloads" / "celeba", root / "downloads" / "CelebA")
    return next((folder for folder in folders if (folder / "img_align_celeba").is_dir()), None)
