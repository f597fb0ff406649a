"""The original's way to a data set's statistics, for statistics_of_images.py: everything in memory, in float32.

    python benchmarks/original_statistics.py FOLDER/original.json THREADS

It reads FOLDER/images.npy, uint8 [N, C, H, W].
"""

import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from diffusion_model import arrays, experiment


def main(argv: list[str]) -> int:
    """Run the command."""
    torch.set_num_threads(int(argv[1]))
    tell(original, Path(argv[0]))
    return 0


def tell(way: Callable[[Path], tuple[torch.Tensor, dict[str, float]]], path: Path) -> None:
    """Run one way on the images beside `path` and write there its seconds, bytes and eigenvalues."""
    before, start, cpu = peak(), time.perf_counter(), time.process_time()
    values, parts = way(path.with_name("images.npy"))
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    content = {"seconds": seconds, "cpu": cpu, "bytes": peak() - before, "whole": peak(), "parts": parts}
    arrays.write_json(path, content | {"values": values.tolist()})


def peak() -> int:
    """The most memory that this process has held, in bytes; getrusage would tell of the process that started it too."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s*(\d+) kB", status).group(1)) * 1024


def original(path: Path) -> tuple[torch.Tensor, dict[str, float]]:
    """A data set of PIL images as torchvision's, ToTensor and Normalize in a loader, torch.cov, singular values."""
    from PIL import Image  # only here, so that the other way does not pay for them
    from torchvision import transforms

    start = time.perf_counter()
    images = np.ascontiguousarray(np.load(path, allow_pickle=False).transpose(0, 2, 3, 1))
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.5,) * 3)])

    class Pictures(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(images)

        def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
            return transform(Image.fromarray(images[row])), 0

    loader = torch.utils.data.DataLoader(Pictures(), batch_size=512)
    rows = torch.cat([batch for batch, _ in loader]).flatten(1)
    loaded = time.perf_counter()
    rows.mean(0)
    covariance = torch.cov(rows.T)
    middle = time.perf_counter()
    _, values, _ = torch.linalg.svd(covariance)
    parts = {"loading": loaded - start, "covariance": middle - loaded, "decomposition": time.perf_counter() - middle}
    return values, parts


if __name__ == "__main__":
    experiment.launch(main, sys.argv[1:])
