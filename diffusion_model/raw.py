"""What a loader gives: images and labels on their way from the files they came in to the project's own arrays.

A loader is `load(source) -> Loaded`, one `Raw` a split. Images in memory are cut out by `Raw.read`; images that must be
decoded from many files also have `Raw.key`, which makes them read on several processes and resumed block by block.

Legend: N images, B of them in a block, C channels, H x W pixels, A label columns.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from diffusion_model.experiment import seed_of

SPLITS = ("train", "test")


@dataclass(frozen=True)
class Raw:
    """One split before it is written.

    read: row numbers -> uint8 [B, C, H, W]; a file that cannot be read is a ValueError that names it.
    labels: integers [N, A].
    key: row numbers -> what their pixels are a function of (files, dates, size). None where reading is cheap.
    """

    read: Callable[[np.ndarray], np.ndarray]
    labels: np.ndarray
    key: Callable[[np.ndarray], str] | None = None


@dataclass(frozen=True)
class Loaded:
    """Both splits, and what the files say beyond the table of data sets.

    published: the source is the set as published, so that its counts are expected; a part of it is not.
    """

    splits: dict[str, Raw]
    splitting: str = "as in the source"
    published: bool = True
    attributes: dict[str, int] = field(default_factory=dict)
    class_names: dict[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Dataset:
    """One built-in set: `find(root)` gives its source on this machine, `download(root)` fetches it, `load(source)` reads it."""

    load: Callable[[Path | None], Loaded]
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


def fixed_order(count: int, *key: object) -> np.ndarray:
    """The numbers 0 .. count - 1 in a random order that is a function of `key` alone."""
    return np.array(sorted(range(count), key=lambda index: seed_of(*key, index)), np.int64)
