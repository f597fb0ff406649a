"""Do VE, VP and sub-VP, trained alike, give denoisers of the same quality? Finished runs against each other, level by level.

Every RUN denoises the same test images with the same noise at the same levels; its error is the mean squared error a
pixel in model space. Runs of one process (sde.name and model.precondition) are its seeds: their spread is the training
noise, and gaps between processes are held against it by Tukey's test on the logarithm of the error (the probability of
so large a gap between the processes if they were one). The runs must be of mode none and differ in the process, the
noise embedding and the seed alone. Writes processes.png, its numbers as CSV, and processes.json to --out.

The forms ve and sde predict the noise, for which the weight dsm counts every level alike. With the form edm and
log-normal levels no process enters the training at all: such runs would be equal by construction, not by quality.

  for seed in 0 1 2; do
    for process in ve:ve:4.0 vp:sde:0.02 subvp:sde:0.02; do
      IFS=: read -r name form scale <<< "$process"
      python diffusion_model/main.py --mode train --config configs/edm.py:synthetic16-study --workdir runs/$name-$seed \\
        --config.seed=$seed --config.objective.weight=dsm \\
        --config.sde.name=$name --config.model.precondition=$form --config.model.fourier_scale=$scale
    done
  done
  python benchmarks/compare_processes.py runs/ve-* runs/vp-* runs/subvp-*
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import studentized_range

from diffusion_model import arrays, checkpoint, data, experiment, figures
from diffusion_model.experiment import AtLeast
from diffusion_model.score_model import ScoreModel

MAY_DIFFER = ("seed", "sde.", "model.precondition", "model.embedding", "model.fourier_scale", "logging.")


def make_parser() -> experiment.Parser:
    """The command line."""
    parser = experiment.Parser(__doc__, prog="compare_processes.py")
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="finished runs of mode none")
    parser.add_argument("--out", type=Path, default=Path("processes"), help="folder of the figure and the numbers")
    parser.add_argument("--n", type=AtLeast(1), default=1000, help="test images, drawn by a fixed seed")
    parser.add_argument("--levels", type=AtLeast(2), default=12, help="number of levels, even in the logarithm")
    parser.add_argument("--level-min", type=float, default=0.05, help="lowest level, in model space")
    parser.add_argument("--level-max", type=float, default=20.0, help="highest level")
    parser.add_argument("--batch", type=AtLeast(1), default=250, help="images at once")
    parser.add_data()
    parser.add_device()
    parser.add_process()
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    args = make_parser().parse_args(argv)
    if not 0 < args.level_min < args.level_max:
        raise experiment.UsageError(f"levels from {args.level_min} to {args.level_max}: expected 0 < lowest < highest")
    records = [checkpoint.read_run(run) for run in args.runs]
    check_alike(args.runs, records)
    split = data.open_split_of(records[0], "test", args.data)
    levels = np.geomspace(args.level_min, args.level_max, args.levels)
    device = experiment.choose_device(args.device)
    errors: dict[str, list[list[float]]] = {}
    steps = set()
    for run, record in zip(args.runs, records, strict=True):
        own = args.process if ":" in record["config"]["sde.name"] else None
        model = checkpoint.load_score_model(run, device=device, process=own)
        steps.add(model.step)
        images = split.sample(args.n).images
        errors.setdefault(process_of(record), []).append(
            [
                denoising_error(model, images, float(level), args.batch)
                for level in experiment.progress(levels, run.name)
            ]
        )
    if len(steps) > 1:
        raise ValueError(f"the runs stand at different steps, {sorted(steps)}: train all of them to the end")
    table = compare({name: np.array(found) for name, found in errors.items()})
    report(
        table, levels, records[0]["std"], args.out, runs=[str(run) for run in args.runs], images=min(args.n, len(split))
    )
    return 0


def process_of(record: dict[str, Any]) -> str:
    """What a run's process is called: the SDE (of a user's file, the class) and the preconditioning."""
    config = record["config"]
    return f"{config['sde.name'].rpartition(':')[2]} ({config['model.precondition']})"


def check_alike(runs: Sequence[Path], records: Sequence[dict[str, Any]]) -> None:
    """Refuse runs that differ in more than the process and the seed, or of which there is one process only."""
    first = records[0]
    for run, record in zip(runs, records, strict=True):
        if record["config"]["model.mode"] != "none":
            raise ValueError(f"{run} has model.mode {record['config']['model.mode']}: expected runs of mode none")
        names = sorted(first["config"].keys() | record["config"].keys())
        differing = [
            f"{name}: {first['config'].get(name)!r} and {record['config'].get(name)!r}"
            for name in names
            if not name.startswith(MAY_DIFFER) and first["config"].get(name) != record["config"].get(name)
        ]
        differing += [name for name in ("data", "scaling") if first[name] != record[name]]
        if differing:
            raise ValueError(f"{runs[0]} and {run} were not trained alike ({differing[0]}): train them with one preset")
    if len({process_of(record) for record in records}) < 2:
        raise ValueError(f"all runs are {process_of(first)}: give runs of at least two processes")


@torch.no_grad()
def denoising_error(model: ScoreModel, images: np.ndarray, level: float, batch: int) -> float:
    """Mean squared error a pixel of denoising uint8 images [N, C, H, W]; the noise belongs to image and level."""
    device, total = next(model.parameters()).device, 0.0
    for start in range(0, len(images), batch):
        x0 = model.scaling.to_model(torch.from_numpy(np.array(images[start : start + batch])).to(device))
        noise = experiment.sample_noise("processes", range(start, start + len(x0)), model.shape).to(device)
        total += float((model.denoise(x0 + level * noise, level) - x0).double().square().mean()) * len(x0)
    return total / len(images)


def compare(errors: dict[str, np.ndarray]) -> dict[str, Any]:
    """Errors [runs, levels] by process -> their geometric means, the gap between processes, and the noise of training.

    spread: standard deviation over the seeds of ln error, pooled over processes; gap: largest ratio of two processes
    minus 1; p: Tukey's. Without a second run of any process there is no spread, and both are NaN.
    """
    logs = {name: np.log(found) for name, found in errors.items()}
    means = np.stack([found.mean(0) for found in logs.values()])
    counts = np.array([len(found) for found in logs.values()])
    freedom = int((counts - 1).sum())
    gap = means.max(0) - means.min(0)
    spread, p = np.full_like(gap, np.nan), np.full_like(gap, np.nan)
    if freedom:
        squares = sum(((found - found.mean(0)) ** 2).sum(0) for found in logs.values())
        spread = np.sqrt(squares / freedom)
        one_mean = spread * np.sqrt((1 / counts).mean())  # of one process; unequal counts by their harmonic mean
        p = studentized_range.sf(gap / one_mean, len(counts), freedom)
    return {
        "errors": errors,
        "means": dict(zip(errors, np.exp(means), strict=True)),
        "gap": np.expm1(gap), "spread": spread, "p": p,
    }  # fmt: skip


def report(table: dict[str, Any], levels: np.ndarray, std: float, out: Path, **protocol: Any) -> None:
    """Print the comparison and write it: processes.png, .csv and .json."""
    names = list(table["means"])
    print("   level  " + "  ".join(f"{name:>14}" for name in names) + "     gap  spread      p")
    for index, level in enumerate(levels):
        values = "  ".join(f"{table['means'][name][index]:14.6f}" for name in names)
        gap, spread, p = (table[name][index] for name in ("gap", "spread", "p"))
        print(f"{level:8.3f}  {values}  {gap:6.1%}  {spread:6.1%}  {p:5.2f}")
    figure, axes = figures.panels(1, 2, sharex=True)
    bound = std**2 * levels**2 / (std**2 + levels**2)
    centre = np.exp(np.mean([np.log(mean) for mean in table["means"].values()], axis=0))
    axes[0, 0].plot(levels, bound, color="grey", linestyle=":", label="best for white Gaussian data")
    for name, colour in zip(names, figures.COLOURS, strict=False):
        mean, found = table["means"][name], table["errors"][name]
        for axis, scale in ((axes[0, 0], 1.0), (axes[0, 1], centre)):
            axis.plot(levels, mean / scale, "o-", color=colour, label=f"{name}, {len(found)} runs")
            figures.band(axis, levels, found.min(0) / scale, found.max(0) / scale, colour)
    axes[0, 0].set(xscale="log", yscale="log", xlabel="level", title="Error of the denoiser")
    axes[0, 0].set_ylabel("mean squared error a pixel")
    axes[0, 1].set(xlabel="level", ylabel="error / mean of the processes", title="Gap between processes")
    axes[0, 0].legend()
    measures = {name: table[name] for name in ("gap", "spread", "p")}
    shown = figures.save(figure, out / "processes.png", {"level": levels, **table["means"], **measures})
    numbers = {
        name: [None if np.isnan(value) else float(value) for value in values] for name, values in measures.items()
    }
    errors = {name: found.tolist() for name, found in table["errors"].items()}
    content = {"levels": levels.tolist(), "errors": errors, **numbers, **protocol}
    arrays.write_json(out / "processes.json", {"format": arrays.FORMAT, "kind": "processes", **content})
    worst = int(np.argmax(table["gap"]))
    noise = "" if np.isnan(table["spread"][worst]) else f" against a spread over seeds of {table['spread'][worst]:.1%}"
    print(f"largest gap {table['gap'][worst]:.1%} at level {levels[worst]:.3g}{noise}: {shown}")


if __name__ == "__main__":
    experiment.launch(main)
