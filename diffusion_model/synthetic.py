"""Synthetic: images whose every factor is known, drawn on the spot.

One of 5 shapes in one cell of a 4 x 4 grid, one of 9 saturated foreground hues on one of 9 muted backgrounds of another
hue: 4 * 4 * 5 * 9 * 8 = 5,760 images. The backgrounds stay within 24 of the middle grey, for saturated ones would hold
nearly all the variance, and a model would learn nothing else within minutes.

Legend: N images of side x side pixels; a cell has side / 4.
"""

import colorsys
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np

from diffusion_model.raw import Dataset, Loaded, Raw, fixed_order

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

    def load(source: Path | None) -> Loaded:
        labels = np.array(COMBINATIONS)[fixed_order(len(COMBINATIONS), "synthetic")]
        parts = {"train": labels[:TRAIN_COUNT], "test": labels[TRAIN_COUNT:]}
        return Loaded(
            {split: Raw(lambda rows, part=part: draw(part[rows], side), part) for split, part in parts.items()}
        )

    return Dataset(
        load=load,
        shape=(3, side, side),
        attributes={"background": HUES, "foreground": HUES, "location": GRID * GRID, "shape": len(SHAPES)},
        counts=(TRAIN_COUNT, len(COMBINATIONS) - TRAIN_COUNT),
        origin="made by the project",
        licence="Apache-2.0",
        class_names={"shape": tuple(SHAPES)},
    )
