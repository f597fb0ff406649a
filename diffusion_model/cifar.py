"""CIFAR-10 and CIFAR-100: 3 x 32 x 32, from the binary versions alone: the Python versions are pickles.

A binary file is a row of records: the labels (one byte; in CIFAR-100 two, superclass before class), then 3,072 pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffusion_model.raw import SPLITS, Loaded, Raw

PIXELS = 3 * 32 * 32
URL = "https://www.cs.toronto.edu/~kriz"
# the superclass of each class of CIFAR-100, in the order of the classes
SUPERCLASS = np.array([
    4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11, 6, 11, 5, 10, 7, 6, 13, 15, 3, 15, 0, 11, 1, 10,
    12, 14, 16, 9, 11, 5, 5, 19, 8, 8, 15, 13, 14, 17, 18, 10, 16, 4, 17, 4, 2, 0, 17, 4, 18, 17, 10, 3, 2, 12, 12, 16,
    12, 1, 9, 19, 2, 10, 0, 1, 16, 12, 9, 13, 15, 13, 16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14, 13,
])  # fmt: skip
CLASSES10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CLASSES100 = (
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl", "boy",
    "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair", "chimpanzee", "clock",
    "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin", "elephant", "flatfish",
    "forest", "fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp", "lawn_mower", "leopard", "lion",
    "lizard", "lobster", "man", "maple_tree", "motorcycle", "mountain", "mouse", "mushroom", "oak_tree", "orange",
    "orchid", "otter", "palm_tree", "pear", "pickup_truck", "pine_tree", "plain", "plate", "poppy", "porcupine",
    "possum", "rabbit", "raccoon", "ray", "road", "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk",
    "skyscraper", "snail", "snake", "spider", "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank",
    "telephone", "television", "tiger", "tractor", "train", "trout", "tulip", "turtle", "wardrobe", "whale",
    "willow_tree", "wolf", "woman", "worm",
)  # fmt: skip
SUPERCLASSES = (
    "aquatic mammals", "fish", "flowers", "food containers", "fruit and vegetables", "household electrical devices",
    "household furniture", "insects", "large carnivores", "large man-made outdoor things",
    "large natural outdoor scenes", "large omnivores and herbivores", "medium-sized mammals",
    "non-insect invertebrates", "people", "reptiles", "small mammals", "trees", "vehicles 1", "vehicles 2",
)  # fmt: skip


@dataclass(frozen=True)
class Version:
    """How one of the two sets is published: archive, its MD5 sum, its folder and its files."""

    title: str
    archive: str
    md5: str
    binary: str
    files: dict[str, tuple[str, ...]]
    label_bytes: int
    labels: Callable[[np.ndarray], np.ndarray]  # classes [N] -> labels [N, A]

    @property
    def record(self) -> int:
        """Bytes of one image with its labels."""
        return self.label_bytes + PIXELS

    @property
    def place(self) -> str:
        """Which files to place where."""
        return f"place the folder {self.binary} (from {URL}/{self.archive}) in {{root}}"

    def unpacked(self, folder: Path) -> bool:
        """Whether all files lie in `folder`, none cut short by an unpacking that was killed."""
        paths = [folder / name for names in self.files.values() for name in names]
        return all(path.is_file() and path.stat().st_size % self.record == 0 for path in paths)


def class_alone(classes: np.ndarray) -> np.ndarray:
    """Labels [N, 1]."""
    return classes[:, None]


def with_superclass(classes: np.ndarray) -> np.ndarray:
    """Labels [N, 2]: class, superclass; a class out of range is left to the check of all labels."""
    return np.stack([classes, SUPERCLASS[classes.clip(max=len(SUPERCLASS) - 1)]], axis=1)


CIFAR10 = Version(
    "CIFAR-10", "cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530", "cifar-10-batches-bin",
    {"train": tuple(f"data_batch_{index}.bin" for index in range(1, 6)), "test": ("test_batch.bin",)}, 1, class_alone,
)  # fmt: skip
CIFAR100 = Version(
    "CIFAR-100", "cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8", "cifar-100-binary",
    {"train": ("train.bin",), "test": ("test.bin",)}, 2, with_superclass,
)  # fmt: skip


def load(version: Version, folder: Path) -> Loaded:
    """Both splits from `folder`, or from the published folder inside it."""
    names = [name for names in version.files.values() for name in names]
    inside = (folder, folder / version.binary)
    binary = next((entry for entry in inside if any((entry / name).is_file() for name in names)), None)
    if binary is not None:
        return Loaded({split: read_binary(version, binary, split) for split in SPLITS})
    stem = Path(names[0]).stem  # what a file of the Python version is called
    pickles = [path for path in (folder / stem, *folder.glob(f"*/{stem}")) if path.is_file()]
    found = (
        f"{pickles[0].parent} is the Python version, a pickle, which is never read"
        if pickles
        else f"{folder} holds none"
    )
    raise FileNotFoundError(f"no binary version of {version.title}: {found}: {version.place.format(root=folder)}")


def read_binary(version: Version, folder: Path, split: str) -> Raw:
    """One split of the binary version."""
    held = np.concatenate([read_records(version, folder / name) for name in version.files[split]])
    skip = version.label_bytes
    classes = held[:, skip - 1].astype(np.int64)
    labels = version.labels(classes)
    if skip == 2 and not np.array_equal(labels[:, 1], held[:, 0]):
        raise ValueError(f"{folder}: {split} has superclasses that are not those of its classes: fetch it again")
    return Raw(lambda rows: held[rows, skip:].reshape(-1, 3, 32, 32), labels)


def read_records(version: Version, path: Path) -> np.ndarray:
    """The records of one file, uint8 [N, record]."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {version.place.format(root=path.parent.parent)}")
    content = np.fromfile(path, np.uint8)
    if not content.size or content.size % version.record:
        raise ValueError(
            f"{path} has {content.size} bytes, expected a multiple of {version.record} (labels and pixels): fetch it again"
        )
    return content.reshape(-1, version.record)


def find(version: Version, root: Path) -> Path | None:
    """Where the published folder was placed: in `root` or in a folder of the set's name; or where it was downloaded."""
    placed = (root, root / version.title.lower().replace("-", ""))
    downloads = root / "downloads"
    if version.unpacked(downloads / version.binary):
        placed = (*placed, downloads)
    return next((folder for folder in placed if (folder / version.binary).is_dir()), None)


def download(version: Version, target: Path) -> Path:
    """Fetch and unpack the archive with torchvision's downloader, which checks the MD5 sum."""
    from torchvision.datasets.utils import download_and_extract_archive

    download_and_extract_archive(f"{URL}/{version.archive}", str(target), md5=version.md5)
    return target
