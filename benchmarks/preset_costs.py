"""What do the presets cost? A Markdown table of time, images, parameters, arithmetic, memory and disk.

Everything but the time of a measured row comes from shapes and needs no data (see diffusion_model/footprint.py). --measure
trains that many images of each study preset here, on one thread, and scales the time to the preset's images; without it
their time is left open. Two presets at once on two cores take longer each than one alone.

  python benchmarks/preset_costs.py
  python benchmarks/preset_costs.py --measure 4000 --only study
"""

import json
import tempfile
from collections.abc import Sequence
from math import prod
from pathlib import Path

import numpy as np
import torch

from diffusion_model import experiment, footprint
from diffusion_model import main as command
from diffusion_model.experiment import AtLeast
from diffusion_model.sources import DATASETS

FILES = ("configs/drl.py", "configs/edm.py")
COLUMNS = ("preset", "device", "time", "images", "parameters", "FLOPs", "memory, float32, with torch", "checkpoints", "data")  # fmt: skip
TORCH = 0.5e9  # bytes of torch itself


def make_parser() -> experiment.Parser:
    """The command line."""
    parser = experiment.Parser(__doc__, prog="preset_costs.py")
    parser.add_argument("--only", default="", help="presets whose name holds this (default: all but smoke)")
    parser.add_argument(
        "--measure", type=AtLeast(1), metavar="IMAGES", help="train so many images of each study preset"
    )
    parser.add_data()
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    args = make_parser().parse_args(argv)
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|")
    for file in FILES:
        for preset in experiment.load_presets(file):
            if preset != "smoke" and args.only in preset:
                print("| " + " | ".join(row(f"{file}:{preset}", args.measure, args.data)) + " |", flush=True)
    return 0


def row(given: str, measured: int | None, data: Path | None) -> list[str]:
    """The cells of one preset."""
    config = experiment.flatten(experiment.load_config(given))
    dataset, study = DATASETS[config["data.name"]], given.endswith("-study")
    cost = footprint.measure(footprint.describe(config, dataset.shape))
    time = f"{cost.gpu_hours:.{0 if cost.gpu_hours >= 10 else 1}f} h (estimated)"
    if study:
        time = f"{config['training.images'] / rate(given, measured, data) / 60:.0f} min (measured)" if measured else ""
    return [
        f"`{given.removeprefix('configs/')}`", "one CPU core" if study else "one GPU", time, f"{config['training.images']:,}",
        f"{sum(cost.parameters.values()) / 1e6:.2f} M", f"{cost.flops:.1e}", f"{(cost.memory + TORCH) / 1e9:.1f} GB",
        f"{cost.disk / 1e6:.0f} MB", f"{prod(dataset.shape) * sum(dataset.counts or ()) / 1e6:.0f} MB",
    ]  # fmt: skip


def rate(given: str, images: int, data: Path | None) -> float:
    """Images per second of a real training on one thread; the median over its log, whose first line is the start's."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        where = ["--workdir", str(run), *(["--data", str(data)] if data else [])]
        lengths = [f"--config.training.images={images}", f"--config.logging.every={max(1, images // 10)}"]
        command.main(["--mode", "train", "--device", "cpu", "--config", given, *where, *lengths])
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        return float(np.median([line["images_per_second"] for line in lines[1:] or lines]))


if __name__ == "__main__":
    experiment.launch(main)
