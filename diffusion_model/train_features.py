"""Train the small classifier whose features measure distances between sets of images.

NAME is a data set; all of its label columns are learned at once. The network and the accuracies on the test split go to
DATA/NAME/features/classifier/, once: what is finished for the same data and options is kept.

  python diffusion_model/train_features.py synthetic16

Expected: about 10 s for synthetic16 and a minute for Fashion-MNIST on 2 CPU cores.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffusion_model import arrays, data, locks
from diffusion_model.experiment import Above, AtLeast, Parser, choose_device, generator, launch, progress
from diffusion_model.features import Classifier, classifier_folder


def make_parser() -> Parser:
    """The command line."""
    parser = Parser(__doc__, prog="train_features.py")
    parser.add_argument("name", metavar="NAME", help="data set")
    parser.add_data()
    parser.add_argument(
        "--images", type=AtLeast(1, most=10**10), default=60_000, help="training images in all, repetitions counted"
    )
    parser.add_argument("--batch", type=AtLeast(2, most=65_536), default=128, help="images a step")
    parser.add_argument("--learning-rate", type=Above(0.0), default=3e-3, help="highest rate of AdamW, one cycle")
    parser.add_argument("--width", type=AtLeast(1, most=1024), default=32, help="channels of the first convolution")
    parser.add_argument("--seed", type=int, default=0, help="of weights and batches")
    parser.add_device()
    return parser


def train(
    split: data.Split, width: int, images: int, batch: int, learning_rate: float, seed: int, device: torch.device
) -> Classifier:
    """A classifier of every label column of `split`, cross-entropies summed."""
    torch.manual_seed(generator("features", seed).initial_seed())
    network = Classifier(split.shape, list(split.attributes.values()), width).to(device).train()
    batch = min(batch, len(split))
    steps = max(1, images // batch)
    optimiser = torch.optim.AdamW(network.parameters(), learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, steps, pct_start=0.2)
    labels = torch.from_numpy(np.asarray(split.labels))
    random = generator("features", "batches", seed)
    order = torch.empty(0, dtype=torch.long)
    for _ in progress(range(steps), f"classifier of {split.name}", "step"):
        if len(order) < batch:
            order = torch.cat([order, torch.randperm(len(split), generator=random)])
        rows, order = order[:batch], order[batch:]
        pixels = torch.from_numpy(np.asarray(split.images[rows.numpy()])).to(device).float() / 255
        target = labels[rows].to(device)
        loss = sum(
            torch.nn.functional.cross_entropy(logits, target[:, column])
            for column, logits in enumerate(network.logits(pixels))
        )
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the classifier's loss became {loss.item()}: lower --learning-rate")
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return network.eval()


@torch.no_grad()
def accuracies(network: Classifier, split: data.Split, device: torch.device, batch: int = 512) -> dict[str, float]:
    """Accuracy in [0, 1] of each label column."""
    correct = np.zeros(len(split.attributes))
    for start in range(0, len(split), batch):
        pixels = torch.from_numpy(np.array(split.images[start : start + batch])).to(device).float() / 255
        guesses = torch.stack([logits.argmax(1) for logits in network.logits(pixels)], dim=1).cpu().numpy()
        correct += (guesses == split.labels[start : start + batch]).sum(0)
    return dict(zip(split.attributes, (correct / len(split)).tolist(), strict=True))


def main(argv: Sequence[str] | None = None) -> int:
    """Train, unless this very classifier is there already; print what it can tell apart."""
    args = make_parser().parse_args(argv)
    root = data.root(args.data)
    split = data.open_split(args.name, "train", root)
    if not split.attributes:
        raise ValueError(f"{split.name} has no labels, so no classifier can be trained on it: use --features inception")
    folder = classifier_folder(split, root)
    protocol = {name: getattr(args, name) for name in ("images", "batch", "learning_rate", "width", "seed")}
    if is_there(folder, split, protocol):
        return 0
    device = choose_device(args.device)
    with locks.held(folder, "trained", wait=True):
        if not is_there(folder, split, protocol):  # another command may have trained it meanwhile
            make(folder, split, data.open_split(args.name, "test", root), protocol, device)
    return 0


def is_there(folder: Path, split: data.Split, protocol: dict[str, Any]) -> bool:
    """Whether this very classifier is finished, which is said; another one there is a ValueError."""
    if arrays.is_finished(folder):
        meta = arrays.read_meta(folder, "classifier", "train it again")
        shape = {"data_hash": str, "protocol": dict, "accuracies": {...: float}}
        arrays.expect(meta, folder / "meta.json", shape, f"remove {folder} and train it anew")
        if meta["data_hash"] == split.hash and meta["protocol"] == protocol:
            print(f"skipped: {folder} is finished; test accuracy {_written(meta['accuracies'])}")
            return True
        changed = sorted(name for name in protocol if meta["protocol"].get(name) != protocol[name]) or ["the data"]
        raise ValueError(f"{folder} was trained with other {', '.join(changed)}: remove it to train it anew")
    return False


def make(folder: Path, split: data.Split, test: data.Split, protocol: dict[str, Any], device: torch.device) -> None:
    """Train the classifier and write it."""
    start = time.monotonic()
    network = train(split, device=device, **protocol)
    found = accuracies(network, test, device)
    path = folder / "weights.safetensors"
    arrays.write_tensors(path, network.state_dict())
    arrays.seal_folder(
        folder, "classifier", [], dataset=split.name, data_hash=split.hash, shape=list(split.shape),
        attributes=split.attributes, width=protocol["width"], fingerprint=f"{arrays.file_checksum(path):08x}",
        protocol=protocol, accuracies=found,
    )  # fmt: skip
    print(f"{folder}: test accuracy {_written(found)} after {time.monotonic() - start:.0f} s")


def _written(found: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in found.items())


if __name__ == "__main__":
    launch(main)
