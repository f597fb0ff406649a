"""The classifiers of the original (traj_drl) and one epoch of them, by its own classes and functions.

For fit_heads.py and parity.py.

Its scripts read options and pickles when imported, so their classes and their functions `train` and `eval` are taken out
of the source and run as they are, on tensors given here, in the loaders that the scripts make.
"""

import ast
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import parity
import torch
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

SCRIPTS = {  # head: its script, its class
    "mlp": ("mlp_classification_hyp.py", "Model"),
    "gru": ("rnn_classification_hyp.py", "Model"),
    "transformer": ("transformer_classification_hyp.py", "Transformer"),
}
BATCH = 256


def make(
    folder: Path, head: str, parts: dict[str, tuple[torch.Tensor, torch.Tensor]], classes: int, device: torch.device
) -> Callable[[], None]:
    """A function that makes one epoch of one fit: training, validation and test, as each epoch of the script does.

    `parts` holds features ([N, D] for mlp, else [N, T, D]) and labels of "train", "val" and "test".
    """
    loaders = {
        name: DataLoader(TensorDataset(*part), batch_size=BATCH, shuffle=name == "train", drop_last=name == "train")
        for name, part in parts.items()
    }
    script, model = SCRIPTS[head]
    names = definitions(folder / "downstream_classification" / script, device)
    names["model"] = names[model](parts["train"][0].shape[-1], classes).to(device)
    names["optimizer"] = torch.optim.Adam(names["model"].parameters(), lr=5e-4, weight_decay=1e-5)
    names["criterion"] = torch.nn.CrossEntropyLoss()
    time = (0.0,) if head == "mlp" else ()

    def epoch() -> None:
        names["train"](1, loaders["train"], *time)
        for part in ("val", "test"):
            names["eval"](1, loaders[part])

    return epoch


def network(folder: Path, head: str, features: int, classes: int) -> torch.nn.Module:
    """A classifier with the numbers that `parity.fill_head` gives ours too."""
    script, model = SCRIPTS[head]
    made = definitions(folder / "downstream_classification" / script, torch.device("cpu"))[model](features, classes)
    parity.fill({name: parameter.data for name, parameter in made.named_parameters()})
    return made


def definitions(script: Path, device: torch.device) -> dict[str, Any]:
    """The classes and functions of a script, in a namespace of what they use."""
    if not script.is_file():
        raise FileNotFoundError(f"no {script}: pass the root of a checkout of traj_drl as --original")
    tree = ast.parse(script.read_text())
    tree.body = [node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    if device.type == "cpu":
        torch.Tensor.cuda = lambda tensor: tensor  # its GRU makes its first state on the GPU
    quiet = Path(os.devnull).open("w")  # noqa: SIM115 - open as long as the bars that write to it
    names = {
        "torch": torch, "nn": torch.nn, "F": torch.nn.functional, "np": np, "math": __import__("math"), "device": device,
        "tqdm": lambda loader, **options: tqdm(loader, file=quiet, **options),
    }  # fmt: skip
    exec(compile(tree, str(script), "exec"), names)
    return names
