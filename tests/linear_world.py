"""A small data set and an untrained run on it, for the tests of features and of the linear structure."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from diffusion_model import checkpoint, data, experiment, features
from linear_structure import get_parameters, inputs

SHAPE = (3, 8, 8)


def make_data(root: Path, name: str = "dots", count: int = 240, seed: int = 0) -> data.Split:
    """A set of 8 x 8 images: one bright cell of four, of one of two colours, on noise; its training split."""
    random = np.random.default_rng(seed)
    place, colour = random.integers(0, 4, count), random.integers(0, 2, count)
    images = random.integers(90, 140, (count, *SHAPE), dtype=np.uint8)
    for index in range(count):
        top, left = 4 * (place[index] // 2), 4 * (place[index] % 2)
        images[index, 2 * colour[index], top : top + 4, left : left + 4] = 230
    source = root / f"{name}.npz"
    root.mkdir(parents=True, exist_ok=True)
    np.savez(source, images=images, labels=np.stack([place, colour], 1), attributes=np.array(["place", "colour"]))
    data.prepare(name, root, source)
    return data.open_split(name, "train", root)


def make_run(folder: Path, split: data.Split, config: str = "configs/edm.py:smoke", mode: str | None = None) -> Path:
    """A run with freshly initialised weights."""
    flat = experiment.flatten(experiment.load_config(config)) | {"data.name": split.name}
    flat |= {"model.mode": mode} if mode else {}
    scaling = data.scaling("unit", split)
    record = {
        "config": flat, "scaling": scaling.as_dict(), "shape": list(split.shape), "std": 0.3,
        "data": {"name": split.name, "hash": split.hash},
    }  # fmt: skip
    checkpoint.write_run(folder, record)
    torch.manual_seed(0)
    state = checkpoint.build(record).state_dict()
    average = {name: tensor for name, tensor in state.items() if name.startswith("net.")}
    checkpoint.save(folder, 1, {"model": state, "average": average}, keep=1)
    return folder


def make_world(folder: Path) -> tuple[Path, Path, inputs.Inputs]:
    """A run below a folder, its statistics, and both opened."""
    run_folder, params = make_run(folder / "run", make_data(folder / "data")), folder / "params"
    assert get_parameters.main(["dots", "gaussian", str(params)]) == 0
    return run_folder, params, inputs.open_inputs(run_folder, params, folder / "data", None, torch.device("cpu"))


def run(main: Callable[[list[str]], int | None], *argv: object) -> int:
    """Exit status of a command."""
    with pytest.raises(SystemExit) as stop:
        experiment.launch(main, [str(entry) for entry in argv])
    return stop.value.code


class Pixels:
    """An extractor without a network: the means of the quarters of each image."""

    distance, kernel_distance = "Frechet distance (pixels)", "kernel distance (pixels)"
    dimension, fingerprint, resizing = 12, "00000001", "none"
    provenance = features.Extractor.provenance

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, images: np.ndarray) -> torch.Tensor:
        quarters = np.asarray(images).reshape(len(images), 3, 2, 4, 2, 4).mean((3, 5))
        return torch.from_numpy(quarters.reshape(len(images), -1)).float()
