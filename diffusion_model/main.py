"""Train, evaluate and sample score models.

    python diffusion_model/main.py --mode train --config configs/edm.py:synthetic16 --workdir runs/edm-synthetic16
    python diffusion_model/main.py --mode train --config configs/drl.py:cifar10 --workdir runs/a --config.seed=1
    python diffusion_model/main.py --mode eval --workdir runs/a
    python diffusion_model/main.py --mode sample --workdir runs/edm-synthetic16 --n 64
    python diffusion_model/main.py --mode publish --workdir runs/a --out docs/runs/a

train writes config.json, env.json, log.txt, metrics.jsonl, checkpoints/STEP/ and samples/ below the workdir; the same
command again resumes from the newest checkpoint. eval writes eval.json: the loss terms of the test split, the same
for any --batch but for rounding. sample writes
samples/SAMPLER*.npy and a grid of them; a run with an encoder samples from the codes of given images (--images), and one of
the modes vae-* and ae-* reconstructs them. publish writes a small run for others to start from: config.json and the weights
in half precision. Under torchrun the ranks share the work of train, eval and sample.
"""

import contextlib
import json
import math
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffusion_model import (
    arrays,
    augment,
    board,
    bounds,
    checkpoint,
    data,
    experiment,
    figures,
    footprint,
    ranks,
    readouts,
    reports,
    results,
    run_state,
    sampling,
    sde,
    training,
)
from diffusion_model.experiment import AtLeast
from diffusion_model.samplers import GRIDS, SAMPLERS, Churn, make_levels
from diffusion_model.score_model import MODES, ScoreModel
from diffusion_model.sources import DATASETS

GRID = 64  # images of a sample grid
SAMPLING = ("n", "steps", "sampler", "grid", "churn", "churn_levels", "churn_noise", "seed_base", "images")
MODE_OF = dict.fromkeys(SAMPLING, ("sample",)) | {
    "batch": ("sample", "eval"),
    "out": ("publish",),
    "dry_run": ("train",),
}
TERMS = ("score", "reconstruction", "kl", "l1")  # of the loss, as logged


def make_parser() -> experiment.Parser:
    """The command line."""
    parser = experiment.Parser(__doc__, whole=True, prog="main.py")
    parser.add_argument("--mode", required=True, choices=("train", "eval", "sample", "publish"), help="what to do")
    parser.add_argument("--workdir", required=True, type=Path, help="the run's folder")
    parser.add_data()
    parser.add_device()
    parser.add_process()
    parser.add_argument(
        "--dry-run", action="store_true", help="train: print configuration, sizes and estimates, and stop"
    )
    parser.add_argument("--n", type=AtLeast(1), default=GRID, help="sample: number of images")
    parser.add_argument("--steps", type=AtLeast(2, most=10_000), default=18, help="sample: solver steps")
    parser.add_argument("--sampler", default="heun", choices=tuple(SAMPLERS), help="sample: solver")
    parser.add_argument("--grid", default="edm", choices=tuple(GRIDS), help="sample: how the levels are spaced")
    parser.add_argument(
        "--churn", type=AtLeast(0.0), default=0.0, help="sample: S_churn of EDM's stochastic sampler (heun)"
    )
    parser.add_argument(
        "--churn-levels",
        type=AtLeast(0.0),
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="sample: S_min, S_max (default: all levels)",
    )
    parser.add_argument("--churn-noise", type=AtLeast(0.0), default=1.0, help="sample: S_noise")
    parser.add_argument(
        "--seed-base", type=int, default=0, help="sample: seed of the first image, the next has the next"
    )
    parser.add_argument("--batch", type=AtLeast(1), default=256, help="sample, eval: images at once")
    parser.add_argument(
        "--images", choices=data.SPLITS, help="sample: the split whose images give the codes (runs with an encoder)"
    )
    parser.add_argument("--out", type=Path, help="publish: folder of the small run")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = make_parser()
    args = parser.parse_args(argv)
    for name, modes in MODE_OF.items():
        if getattr(args, name) != parser.get_default(name) and args.mode not in modes:
            wanted = " or ".join(modes)
            raise experiment.UsageError(f"--{name.replace('_', '-')} goes with --mode {wanted}, not with {args.mode}")
    if args.mode == "train":
        return train(args)
    if args.overrides or args.config:
        raise experiment.UsageError(
            f"--mode {args.mode} takes its configuration from {args.workdir}/config.json, not --config"
        )
    if args.mode == "publish":
        return publish(args)
    with ranks.session(experiment.choose_device(args.device)) as device:
        return {"eval": evaluate, "sample": sample}[args.mode](args, device)


def train(args: Any) -> int:
    """Train to the end, or from the newest checkpoint on."""
    if not args.config:
        raise experiment.UsageError("--mode train needs --config FILE:PRESET, such as configs/edm.py:synthetic16")
    if args.process:
        raise experiment.UsageError(f"--mode train takes --config.sde.name={args.process}, not --process")
    config = experiment.flatten(experiment.load_config(args.config, args.overrides))
    check(config, args.config)
    if args.dry_run:
        return estimate(config, args.data)
    with ranks.session(experiment.choose_device(args.device)) as device:
        split = data.open_split(config["data.name"], "train", args.data)
        record = describe_run(config, split)
        training.check_batch(checkpoint.unflatten(config)["training"], config["model.mode"], split.shape[1])
        with torch.device("meta"):
            checkpoint.build(
                record, sde.named_file(config["sde.name"])
            )  # refuses what no network can be built from, before anything is written
        return run_to_end(args.workdir, record, split, device)


def describe_run(config: dict[str, Any], split: data.Split) -> dict[str, Any]:
    """What config.json holds: the configuration, and what of the data and of the user's own SDE the model depends on."""
    augment.check_side(config["data.augmentation"], min(split.shape[1:]))
    statistics = data.channel_statistics(split)
    scaling = data.scaling(config["data.scaling"], split, statistics)
    std = float(np.sqrt(np.mean((statistics[1] * scaling.scale) ** 2)))
    if not std > 0:
        raise ValueError(f"every pixel of {split.name}/{split.split} is the same: there is nothing to learn from")
    return {
        "config": config | sde.fingerprint(config["sde.name"]), "scaling": scaling.as_dict(), "shape": list(split.shape),
        "std": std, "data": {"name": split.name, "hash": split.hash},
    }  # fmt: skip


def run_to_end(run: Path, record: dict[str, Any], split: data.Split, device: torch.device) -> int:
    """Train from the newest checkpoint of RUN to the last step, with its log, curves, state and pictures."""
    with run_state.tracked(run, active=ranks.first()) as note:
        if ranks.first():
            record = checkpoint.write_run(run, record)
            arrays.write_json(run / "env.json", experiment.environment())
        process = sde.named_file(
            record["config"]["sde.name"]
        )  # named by the command line: no record of the run's is read
        trainer = training.Trainer(run, record, split, device, process)
        check_same(record, trainer.step)
        say = Log(run / "log.txt" if ranks.first() else None)
        say(
            f"{run}: {split.name}, {len(split)} images, {count(trainer.model)} parameters, step {trainer.step} of {trainer.total}"
        )
        for fact in trainer.said:
            say(f"{run}: {fact}")
        note(step=trainer.step, total=trainer.total, world=experiment.world())
        if ranks.first():
            experiment.truncate_lines(run / "metrics.jsonl", "step", trainer.step)
        sample_every = trainer.config["logging"]["sample_every"]
        drawn = trainer.step * trainer.config["training"]["batch"] // sample_every
        with contextlib.closing(board.Board(run, trainer.step, active=ranks.first())) as curves, stop_cleanly(trainer):
            for entry in training.train(trainer):
                if ranks.first():
                    with reports.survived(run / "metrics.jsonl"):
                        arrays.append_text(run / "metrics.jsonl", json.dumps(entry) + "\n")
                    curves(entry)
                    note(step=trainer.step)
                    say(f"{run.name}: {line(entry, trainer)}")
                    pictures = entry["images"] // sample_every
                    if pictures > drawn or trainer.step == trainer.total:
                        with reports.survived(run / "samples"):
                            sampling.draw(trainer)
                    drawn = pictures
            ranks.barrier()  # no rank leaves, stopped or finished, before the first has written the last checkpoint
        say(f"{run}: finished at step {trainer.step}")
    return 0


def check_same(record: dict[str, Any], step: int) -> None:
    """Refuse ranks that see other images or another checkpoint than the first one does. All ranks call it."""
    mine = json.loads(json.dumps({"data": record["data"], "scaling": record["scaling"], "step": step}))
    theirs = ranks.from_first(mine)
    other = [name for name in mine if mine[name] != theirs[name]]
    if other:
        raise ValueError(
            f"rank {experiment.rank()} has {other[0]} {mine[other[0]]}, the first rank {theirs[other[0]]}: give all machines "
            "the same images (--data) and one shared file system for the run"
        )


def check(config: dict[str, Any], given: str) -> None:
    """Refuse values that no later stage can work with, in the configuration `given` on the command line."""
    needed = bounds.FIELDS - config.keys()
    if needed:
        raise experiment.UsageError(
            f"{given} does not configure a run (it has no {min(needed)}): give a preset of configs/drl.py or configs/edm.py"
        )
    if wrong := bounds.fault(config):
        raise experiment.UsageError(f"--config.{wrong}")
    if config["training.mixup"] and MODES[config["model.mode"]].encoder is None:
        raise experiment.UsageError(
            "--config.training.mixup=True: mixup mixes what the encoder sees, and model.mode none has no encoder: take False"
        )
    try:
        name = config["sde.name"]
        section = checkpoint.unflatten(config | sde.fingerprint(name))["sde"]
        sde.from_config(section, process=sde.named_file(name))
    except ValueError as error:
        raise experiment.UsageError(f"--config.{error}") from None


class Log:
    """Prints a line and appends it to a file; silent on all ranks but the first."""

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def __call__(self, text: str) -> None:
        if self.path is None:
            return
        print(text, file=sys.stderr, flush=True)
        with reports.survived(self.path):
            arrays.append_text(self.path, text + "\n")


class stop_cleanly:
    """On SIGTERM, SIGINT or SIGUSR1 (a scheduler's warning), finish the step, write a checkpoint and leave as by Ctrl-C."""

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

    def __init__(self, trainer: training.Trainer) -> None:
        self.trainer = trainer

    def __enter__(self) -> None:
        self.before = {number: signal.signal(number, self._ask) for number in self.SIGNALS}

    def _ask(self, number: int, frame: Any) -> None:
        self.trainer.stop = True

    def __exit__(self, *failure: Any) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        if self.trainer.stop and not any(failure):
            raise KeyboardInterrupt


def line(entry: dict[str, Any], trainer: training.Trainer) -> str:
    """One record as a line of the log."""
    terms = ", ".join(f"{name} {entry[name]:.5g}" for name in TERMS if name in entry)
    return (
        f"step {entry['step']}/{trainer.total}: {terms}, {entry['images_per_second']:.0f} images/s, "
        f"{entry['memory_mb']:.0f} MB, {entry['seconds_left']:.0f} s left"
    )


def count(model: torch.nn.Module) -> str:
    """Number of parameters, with thousands separated."""
    return f"{sum(parameter.numel() for parameter in model.parameters()):,}"


def estimate(config: dict[str, Any], root: Path | None) -> int:
    """Print what a run would be: configuration, parameters, arithmetic, time, memory and disk.

    A built-in data set need not be there: its shape is known.
    """
    name = data.canonical(config["data.name"])
    if data.is_prepared(name, root) or name not in DATASETS:
        split = data.open_split(name, "train", root)
        record = describe_run(config, split)
        found = f"{len(split):,} images {split.shape}, std {record['std']:.4f} in model space"
    else:
        record = footprint.describe(config | sde.fingerprint(config["sde.name"]), DATASETS[name].shape)
        found = f"images {DATASETS[name].shape}; not prepared, run `python diffusion_model/prepare_data.py {name}`"
    for field, value in record["config"].items():
        print(f"{field:28} {value}")
    cost = footprint.measure(record, sde.named_file(config["sde.name"]))
    parts = ", ".join(f"{part} {size:,}" for part, size in cost.parameters.items())
    facts = {
        "data": f"{name}: {found}",
        "parameters": f"{parts}, in all {sum(cost.parameters.values()):,}",
        "steps": f"{cost.steps:,}",
        "arithmetic": f"{cost.flops:.3g} FLOPs in all",
        "time, estimated": f"{cost.gpu_hours:.2g} h on one GPU, {cost.flops / 3.6e14:.3g} h at 0.1 TFLOP/s (two CPU cores)",
        "memory, estimated": f"{cost.memory / 1e6:,.0f} MB in float32, and about 500 MB for torch itself",
        "disk, estimated": f"{cost.disk / 1e6:,.1f} MB of checkpoints",
    }
    for fact, value in facts.items():
        print(f"{fact:28} {value}")
    return 0


def sample(args: Any, device: torch.device) -> int:
    """Draw images from a run; reconstruct given ones with a run that has a decoder. Ranks share the images."""
    churn = churn_of(args)
    model = checkpoint.load_score_model(args.workdir, device=device, process=args.process)
    given, of_images = None, {}
    if model.encoder is not None:
        if args.images is None:
            raise experiment.UsageError(
                f"{args.workdir} has model.mode {model.mode}, which needs the code of an image: pass --images train or --images test"
            )
        split = data.open_split_of(checkpoint.read_run(args.workdir), args.images, args.data)
        given, of_images = split.sample(args.n).images, {"images": split.split, "images_hash": split.hash}
    elif args.images is not None:
        raise experiment.UsageError(f"{args.workdir} has model.mode none and takes no --images")
    if model.decoder is not None:
        return save_reconstructions(args, model, given, of_images)
    levels = make_levels(args.grid, model.sde, args.steps)
    count = args.n if given is None else len(given)
    codes = "" if given is None else f"_{args.images}"
    path = args.workdir / "samples" / f"{solver_name(args)}_seed{args.seed_base}{codes}_n{count}.npy"
    protocol = protocol_of(model, seed_base=args.seed_base, n=count, sampler=args.sampler, steps=args.steps,
                           grid=args.grid, level_min=float(levels[-2]), level_max=float(levels[0]), churn=args.churn,
                           churn_levels=args.churn_levels, churn_noise=args.churn_noise, **of_images)  # fmt: skip
    results.check_file(path, protocol)
    mine = ranks.share(count, args.batch)
    seeds = range(args.seed_base, args.seed_base + count)[mine.start : mine.stop]
    chosen = None if given is None else given[mine.start : mine.stop]
    pixels = ranks.gather_rows(sampling.sample_images(model, seeds, args.sampler, levels, args.batch, chosen, churn))
    if pixels is not None:
        results.write_file(path, protocol, lambda place: arrays.write_array(place, pixels))
        shown = figures.image_grid(pixels[:GRID], 8, path.with_suffix(".png"))
        print(f"{len(pixels)} images at step {model.step}: {path}, {shown}")
    return 0


def protocol_of(model: ScoreModel, **options: Any) -> dict[str, Any]:
    """What decides images that a run makes: its step and weights, and these options."""
    return {"step": model.step, "weights": readouts.fingerprint(model), **options}


def churn_of(args: Any) -> Churn | None:
    """EDM's churn as the options have it, None without; a UsageError where it cannot be."""
    if not args.churn:
        if args.churn_levels or args.churn_noise != 1:
            raise experiment.UsageError("--churn-levels and --churn-noise say how to churn: pass --churn, above 0, too")
        return None
    if args.sampler != "heun":
        raise experiment.UsageError(f"--sampler {args.sampler} is deterministic: --churn goes with --sampler heun")
    low, high = args.churn_levels or (0.0, math.inf)
    if low > high:
        raise experiment.UsageError(f"--churn-levels {low:g} {high:g}: expected the lower one first")
    return Churn(args.churn, low, high, args.churn_noise)


def solver_name(args: Any) -> str:
    """What names the samples of a solver: heun18, unipc-bh1-18, heun18_log, heun18_churn40-0.05-50-1.003."""
    name = f"{args.sampler}{'-' if args.sampler[-1].isdigit() else ''}{args.steps}"
    name += "" if args.grid == "edm" else f"_{args.grid}"
    if args.churn:
        name += "_churn" + "-".join(
            f"{value:g}" for value in (args.churn, *(args.churn_levels or ()), args.churn_noise)
        )
    return name


def save_reconstructions(args: Any, model: ScoreModel, given: np.ndarray, of_images: dict[str, Any]) -> int:
    """samples/reconstructions_*: uint8 [N, T, C, H, W] at three times, and a picture: images, then a row a time."""
    mine, times = ranks.share(len(given), args.batch), (0.0, 0.5, 1.0)
    path = args.workdir / "samples" / f"reconstructions_{args.images}_n{len(given)}.npy"
    protocol = protocol_of(model, n=len(given), times=times, **of_images)
    results.check_file(path, protocol)
    made = ranks.gather_rows(sampling.reconstruct_images(model, given[mine.start : mine.stop], times, args.batch))
    if made is not None:
        results.write_file(path, protocol, lambda place: arrays.write_array(place, made))
        rows = np.concatenate([np.array(given[:8]), *np.moveaxis(made[:8], 1, 0)])
        shown = figures.image_grid(rows, min(8, len(given)), path.with_suffix(".png"))
        print(f"{len(made)} reconstructions at the times {times} at step {model.step}: {path}, {shown}")
    return 0


def publish(args: Any) -> int:
    """Write a run as a small one: configuration, provenance and half-precision weights."""
    if args.out is None:
        raise experiment.UsageError("--mode publish needs --out DIR")
    before = args.workdir / "env.json"
    environment = arrays.read_json(before) if before.is_file() else experiment.environment()
    arrays.expect(environment, before, {})
    trained_on = {name: environment.get(name) for name in ("python", "torch", "gpu")}
    out = checkpoint.publish(args.workdir, args.out, args.process, trained_on=trained_on)
    size = (out / "weights.safetensors").stat().st_size / 2**20
    print(f"{out}: {size:.2f} MB of weights")
    return 0


@torch.no_grad()
def evaluate(args: Any, device: torch.device) -> int:
    """eval.json: the loss terms of the test split under the averaged weights, with the same draws at every call.

    An image's level and noise are a function of its index, so the batch changes a term by rounding alone.
    """
    model = checkpoint.load_score_model(args.workdir, device=device, process=args.process)
    split, sums = data.open_split_of(checkpoint.read_run(args.workdir), "test", args.data), {}
    for start in experiment.progress(ranks.deal(range(0, len(split), args.batch)), "evaluating", "batches"):
        pixels = torch.from_numpy(np.array(split.images[start : start + args.batch])).to(device)
        draws = training.draw_each(model, model.config, range(start, start + len(pixels)), device)
        terms = model.loss(model.scaling.to_model(pixels), draws)
        sums[f"{start:012}"] = {name: float(value) * len(pixels) for name, value in terms.items()}
    batches = {start: terms for share in ranks.collect(sums) for start, terms in share.items()}
    held = [batches[start] for start in sorted(batches)]  # added in one order, however the ranks shared them
    loss = {name: sum(terms[name] for terms in held) / len(split) for name in TERMS if name in held[0]}
    if ranks.first():
        draws = "one level and noise an image, by its index"
        content = {"step": model.step, "split": "test", "images": len(split), "draws": draws, "loss": loss}
        arrays.write_json(args.workdir / "eval.json", content)
        terms = ", ".join(f"{name} {value:.5g}" for name, value in loss.items())
        print(f"{args.workdir}, step {model.step}, test: {terms}")
    return 0


if __name__ == "__main__":
    experiment.launch(main)
